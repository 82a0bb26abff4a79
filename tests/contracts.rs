//! Contracts of events: what violates one no consumer sees, what fits one says so, and nothing changes
//! where there are none.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::operating::{SOON, ends, native};
use crate::see::{Seen, watched};
use crate::support::outbox::Outbox;
use crate::support::{self, World, eventually, topic_of};

/// What no reason, log or screen may show.
const CANARY: &str = "canary-4711";

const ORDER: &str = r#"{
  "type": "object", "required": ["n"],
  "properties": {"n": {"type": "integer"}, "total": {"$ref": "_money.json"}}
}"#;
const MONEY: &str = r#"{"type": "integer", "minimum": 0}"#;

/// A folder of contracts in the test's directory: paths and texts.
fn folder(world: &World, files: &[(&str, &str)]) -> PathBuf {
    let folder = world.directory.join("contracts");
    write(&folder, files);
    folder
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

fn outbox(folder: &Path, more: &str) -> Outbox {
    let mut outbox = native("outbox");
    outbox.config = format!("contracts = \"{}\"\n{more}", folder.display());
    outbox
}

/// Inserts one row; JSON or SQL's null for payload and headers.
async fn insert(
    world: &World,
    of: &str,
    key: &str,
    event_type: &str,
    payload: &str,
    headers: &str,
) {
    let quoted = |json: &str| match json {
        "null" => json.to_owned(),
        json => format!("'{json}'"),
    };
    let (payload, headers) = (quoted(payload), quoted(headers));
    let insert = format!(
        "insert into outbox (aggregate_id, aggregate_type, event_type, payload, headers)
         values ('{key}', '{of}', '{event_type}', {payload}, {headers})"
    );
    world.execute(&insert).await;
}

/// What arrived of an aggregate: the payload and the version that its header names.
async fn arrived(world: &World, of: &str, key: &str) -> Vec<(String, Option<String>)> {
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).unwrap();
    let records = world.kafka.read_all(&topic_of(of)).await;
    let of_key = |record: &&support::kafka::Record| record.key.as_deref() == Some(key.as_bytes());
    let mut of_key: Vec<_> = records.iter().filter(of_key).collect();
    of_key.sort_by_key(|record| record.offset);
    of_key
        .into_iter()
        .map(|record| {
            let named = record
                .headers
                .iter()
                .find(|(name, _)| name == "event_version");
            let payload = record.value.as_ref().map(text).unwrap_or_default();
            (
                payload,
                named.and_then(|(_, value)| value.as_ref()).map(text),
            )
        })
        .collect()
}

fn fits(payload: &str, version: &str) -> (String, Option<String>) {
    (payload.to_owned(), Some(version.to_owned()))
}

#[test]
fn a_row_that_violates_its_contract_waits_unseen_until_the_contract_is_mended() {
    support::run(async |world| {
        let files = [("OrderPaid.v1.json", ORDER), ("_money.json", MONEY)];
        let folder = folder(world, &files);
        let outbox = outbox(&folder, "");
        let (setup, of) = outbox.prepare(world).await;
        world.expect_errors("the old one stays in force");
        let bad = format!("{{\"n\": 2, \"total\": \"{CANARY}\"}}");
        for (key, payload) in [("a", "{\"n\": 1}"), ("a", &bad), ("a", "{\"n\": 3}")] {
            insert(world, &of, key, "OrderPaid", payload, "null").await;
        }
        insert(
            world,
            &of,
            "b",
            "OrderPaid",
            "{\"n\": 1, \"total\": 5}",
            "null",
        )
        .await;

        // who looks first is told
        let said = ends(&setup, &["check", "--quiet"], 1).await;
        let line = said
            .lines()
            .find(|line| line.contains("contracts"))
            .unwrap();
        assert!(line.contains("1 of 4 pending rows"), "{line}");
        assert!(line.contains("/total, by _money.json#/type"), "{line}");

        let setup = watched(setup);
        let seen = Seen::start(&setup).await;
        let relay = &seen.relay;
        outbox.wait_drained(world, SOON).await;
        assert_eq!(arrived(world, &of, "a").await, [fits("{\"n\": 1}", "1")]);
        let b = "{\"n\": 1, \"total\": 5}";
        assert_eq!(
            arrived(world, &of, "b").await,
            [fits(b, "1")],
            "neighbours flow"
        );
        let listed = ends(&setup, &["parked", "list"], 0).await;
        assert!(listed.contains("contract_violated"), "{listed}");
        let reason = "the payload violates OrderPaid.v1.json: at /total, by _money.json#/type";
        let shown = ends(&setup, &["parked", "show", "1"], 0).await;
        assert!(shown.contains(reason), "{shown}");
        let (_, metrics) = seen.get("/metrics").await;
        let counted = "outbox_relay_contract_violations_total{outbox=\"public.outbox\",event_type=\"OrderPaid\",outcome=\"parked\"} 1";
        assert!(metrics.contains(counted), "{metrics}");
        let before = seen.until("the contracts are told", |status| {
            status["outboxes"][0]["contracts"]["event_types"] == 1
        });
        let before = before.await["outboxes"][0]["contracts"]["digest"].clone();

        // a contract that cannot be read changes nothing
        write(&folder, &[("OrderPaid.v2.json", "{\"type\": \"strin\"}")]);
        relay.reload(|text| text);
        let line = relay.wait_line("the old one stays in force", SOON).await;
        assert!(line.contains("OrderPaid.v2.json: /type"), "{line}");

        // mended, and the row is judged anew
        let text = ORDER.replace(
            "{\"$ref\": \"_money.json\"}",
            "{\"type\": [\"integer\", \"string\"]}",
        );
        write(&folder, &[("OrderPaid.v2.json", &text)]);
        relay.reload(|text| text);
        relay
            .wait_line("\"key\":\"outbox.contracts of public.outbox\"", SOON)
            .await;
        seen.until("the new contracts are in force", |status| {
            status["outboxes"][0]["contracts"]["versions"] == 2
                && status["outboxes"][0]["contracts"]["digest"] != before
        })
        .await;
        ends(
            &setup,
            &["parked", "retry", "--reason", "contract_violated", "--yes"],
            0,
        )
        .await;
        eventually(SOON, "all is published", async || {
            arrived(world, &of, "a").await.len() == 3
        })
        .await;
        // what waited behind it is published as it stood when it was judged
        assert_eq!(
            arrived(world, &of, "a").await,
            [
                fits("{\"n\": 1}", "1"),
                fits(&bad, "2"),
                fits("{\"n\": 3}", "1")
            ]
        );
        seen.relay.stop().await;
        let shown: Vec<String> = world.log_lines();
        assert!(!shown.iter().any(|line| line.contains(CANARY)), "{shown:?}");
        let kept =
            format!("select count(*) from outbox_relay.parked where reason like '%{CANARY}%'");
        assert_eq!(world.number(&kept).await, 0);
    });
}

#[test]
fn a_retry_under_the_same_contract_parks_the_row_again() {
    support::run(async |world| {
        let folder = folder(world, &[("OrderPaid.v1.json", "{\"required\": [\"n\"]}")]);
        let outbox = outbox(&folder, "");
        let (setup, of) = outbox.prepare(world).await;
        insert(world, &of, "a", "OrderPaid", "{}", "null").await;
        setup.until_empty(SOON).await;
        ends(&setup, &["parked", "retry", "--yes"], 0).await;
        assert_eq!(setup.until_empty(SOON).await.code(), Some(75));
        let again =
            "select count(*) from outbox_relay.parked where state = 'blocked' and attempts = 2";
        assert_eq!(world.number(again).await, 1);
        assert_eq!(world.kafka.count(&topic_of(&of)).await, 0);
    });
}

#[test]
fn policies_versions_and_rows_that_name_theirs() {
    support::run(async |world| {
        let strict = "{\"required\": [\"n\", \"currency\"]}";
        let files = [
            ("OrderPaid.v1.json", "{\"required\": [\"n\"]}"),
            ("OrderPaid.v2.json", strict),
            ("OrderViewed.v1.json", strict),
        ];
        let folder = folder(world, &files);
        let outbox = outbox(
            &folder,
            "on_violation_by_event_type = { OrderViewed = \"warn\" }\n\
             on_missing_contract = \"park\"\non_rejected = \"dead_letter\"",
        );
        let (setup, of) = outbox.prepare(world).await;
        let (old, new) = ("{\"n\": 1}", "{\"n\": 1, \"currency\": \"EUR\"}");
        let rows = [
            ("newest", "OrderPaid", new, "null"),
            ("old", "OrderPaid", old, "null"),
            ("named", "OrderPaid", old, "{\"event_version\": 1}"),
            ("future", "OrderPaid", new, "{\"event_version\": \"3\"}"),
            ("null", "OrderPaid", new, "{\"event_version\": null}"),
            ("viewed", "OrderViewed", old, "null"),
            ("viewed", "OrderViewed", old, "null"),
            ("unknown", "OrderLost", old, "null"),
            ("tombstone", "OrderPaid", "null", "null"),
        ];
        for (key, event_type, payload, headers) in rows {
            insert(world, &of, key, event_type, payload, headers).await;
        }
        let setup = watched(setup);
        let seen = Seen::start(&setup).await;
        outbox.wait_drained(world, SOON).await;
        assert_eq!(arrived(world, &of, "newest").await, [fits(new, "2")]);
        assert_eq!(arrived(world, &of, "old").await, []);
        assert_eq!(arrived(world, &of, "named").await, [fits(old, "1")]);
        assert_eq!(arrived(world, &of, "future").await, []);
        assert_eq!(arrived(world, &of, "null").await, [fits(new, "2")]);
        let unlabelled = |payload: &str| (payload.to_owned(), None);
        let warned = [unlabelled(old), unlabelled(old)];
        assert_eq!(arrived(world, &of, "viewed").await, warned);
        assert_eq!(arrived(world, &of, "unknown").await, []);
        assert_eq!(arrived(world, &of, "tombstone").await, [unlabelled("")]);
        let parked = "select count(*) from outbox_relay.parked where state = 'dead' and reason_class = 'contract_";
        assert_eq!(world.number(&format!("{parked}violated'")).await, 2);
        assert_eq!(world.number(&format!("{parked}missing'")).await, 1);
        let (_, metrics) = seen.get("/metrics").await;
        let counted = |event_type: &str, outcome: &str, rows: u32| {
            let line = format!(
                "violations_total{{outbox=\"public.outbox\",event_type=\"{event_type}\",outcome=\"{outcome}\"}} {rows}"
            );
            assert!(metrics.contains(&line), "{line} in {metrics}");
        };
        counted("OrderPaid", "parked", 2);
        counted("OrderViewed", "published", 2);
        counted("OrderLost", "parked", 1);
        let lines = seen.relay.lines();
        let told = lines
            .iter()
            .filter(|line| line.contains("published all the same"));
        assert_eq!(told.count(), 1, "once, not for each row");
        seen.relay.stop().await;

        // the newest that fits, where any may
        let file = outbox.config.clone() + "\ncontract_version = \"any\"";
        let outbox = Outbox {
            config: file,
            ..outbox
        };
        insert(world, &of, "any", "OrderPaid", old, "null").await;
        insert(world, &of, "any", "OrderPaid", new, "null").await;
        insert(world, &of, "any", "OrderPaid", "{}", "null").await;
        world.relay(&[&outbox]).until_empty(SOON).await;
        assert_eq!(
            arrived(world, &of, "any").await,
            [fits(old, "1"), fits(new, "2")]
        );
    });
}

#[test]
fn without_contracts_nothing_is_added_or_asked() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, of) = outbox.prepare(world).await;
        insert(world, &of, "a", "OrderPaid", "{\"n\": 1}", "null").await;
        insert(
            world,
            &of,
            "a",
            "OrderPaid",
            "[]",
            "{\"event_version\": \"7\"}",
        )
        .await;
        assert!(setup.until_empty(SOON).await.success());
        let records = world.kafka.read_all(&topic_of(&of)).await;
        let names = |i: usize| -> Vec<&str> {
            records[i]
                .headers
                .iter()
                .map(|(name, _)| name.as_str())
                .collect()
        };
        assert_eq!(names(0), ["event_id", "event_type"]);
        assert_eq!(names(1), ["event_id", "event_type", "event_version"]);
    });
}

#[test]
fn a_replayed_row_names_its_version_again() {
    support::run(async |world| {
        let folder = folder(
            world,
            &[("OrderPaid.v1.json", ORDER), ("_money.json", MONEY)],
        );
        let mut outbox = outbox(&folder, "");
        outbox.on_published = support::outbox::OnPublished::Mark;
        let (setup, of) = outbox.prepare(world).await;
        insert(world, &of, "a", "OrderPaid", "{\"n\": 1}", "null").await;
        assert!(setup.until_empty(SOON).await.success());
        ends(&setup, &["replay", "--since", "1h", "--yes"], 0).await;
        let twice = [fits("{\"n\": 1}", "1"), fits("{\"n\": 1}", "1")];
        assert_eq!(arrived(world, &of, "a").await, twice);
    });
}

// ── the command line ──

/// A folder that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let name = format!("outbox-relay-contracts-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        write(&path, files);
        Self(path)
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

fn relay(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn contract_check_tells_what_breaks_and_ends_accordingly() {
    let old = Scratch::new(
        "old",
        &[("a/OrderPaid.v1.json", ORDER), ("a/_money.json", MONEY)],
    );
    let lower = MONEY.replace('0', "-5");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], i32, &'a str);
    let cases: [Case<'_>; 4] = [
        (
            "same",
            &[("a/OrderPaid.v1.json", ORDER), ("a/_money.json", MONEY)],
            0,
            "0 breaking",
        ),
        (
            "beside",
            &[
                ("a/OrderPaid.v1.json", ORDER),
                ("a/OrderPaid.v2.json", "{}"),
                ("a/_money.json", MONEY),
            ],
            0,
            "compatible   a/OrderPaid v2: a new version beside the others",
        ),
        (
            "part",
            &[("a/OrderPaid.v1.json", ORDER), ("a/_money.json", &lower)],
            1,
            "breaking     a/OrderPaid v1 /$defs/a~1_money.json/minimum: 0 → -5",
        ),
        (
            "gone",
            &[("a/Other.v1.json", "{}")],
            1,
            "breaking     a/OrderPaid v1: the event type is gone",
        ),
    ];
    for (name, files, code, line) in cases {
        let new = Scratch::new(name, files);
        let (ended, said, wrong) = relay(&["contract", "check", &old.text(), &new.text()]);
        assert_eq!(ended, Some(code), "{name}: {said}{wrong}");
        assert!(said.contains(line), "{name}: {said}");
    }
    let pattern = |text: &str| format!("{{\"type\": \"string\", \"pattern\": \"{text}\"}}");
    let (one, other) = (pattern("^a+$"), pattern("^aa*$"));
    let (one, other) = (
        Scratch::new("one", &[("E.v1.json", &one)]),
        Scratch::new("other", &[("next.json", &other)]),
    );
    let files = [
        format!("{}/E.v1.json", one.text()),
        format!("{}/next.json", other.text()),
    ];
    let arguments = ["contract", "check", &files[0], &files[1]];
    let (ended, said, _) = relay(&arguments);
    assert_eq!(ended, Some(1), "{said}");
    assert!(said.contains("cannot tell  next v1 /pattern"), "{said}");
    let (ended, said, _) = relay(&[&arguments[..], &["--allow-unknown", "--json"]].concat());
    assert_eq!(ended, Some(0), "{said}");
    let line: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(
        (&line["judgement"], &line["place"]),
        (&"cannot tell".into(), &"/pattern".into())
    );

    let wrong = Scratch::new(
        "wrong",
        &[("E.v1.json", "{\"$ref\": \"https://example.com/x.json\"}")],
    );
    let (ended, _, said) = relay(&["contract", "check", &wrong.text(), &wrong.text()]);
    assert_eq!(ended, Some(78), "{said}");
    assert!(
        said.contains("old/E.v1.json") && said.contains("nothing is fetched"),
        "{said}"
    );
    let (ended, _, _) = relay(&["contract", "check", &old.text()]);
    assert_eq!(ended, Some(64));
    let (ended, _, said) = relay(&["contract", "check", &old.text(), "/nowhere"]);
    assert_eq!(ended, Some(78), "{said}");
}

#[test]
fn contract_validate_holds_events_against_a_folder() {
    let folder = Scratch::new(
        "folder",
        &[("OrderPaid.v1.json", "{\"required\": [\"n\"]}")],
    );
    let events = [
        "{\"event_type\": \"OrderPaid\", \"payload\": {\"n\": 1}, \"id\": \"7\"}",
        "{\"event_type\": \"OrderPaid\", \"payload\": null}",
        "{\"event_type\": \"Other\", \"payload\": 3}",
    ];
    write(&folder.0, &[("good.jsonl", &events.join("\n"))]);
    let good = format!("{}/good.jsonl", folder.text());
    let (ended, said, wrong) = relay(&["contract", "validate", &folder.text(), &good]);
    assert_eq!(ended, Some(0), "{wrong}");
    assert_eq!(
        said,
        "1 event types in 1 versions; 2 events fit, 0 do not, 1 have no contract\n"
    );
    let bad =
        format!("{{\"event_type\": \"OrderPaid\", \"payload\": {{\"m\": \"{CANARY}\"}}}}\nno JSON");
    write(&folder.0, &[("bad.jsonl", &bad)]);
    let bad = format!("{}/bad.jsonl", folder.text());
    let (ended, _, said) = relay(&["contract", "validate", &folder.text(), &bad]);
    assert_eq!(ended, Some(1), "{said}");
    assert!(
        said.contains("bad.jsonl:1: OrderPaid: ") && said.contains("(`n` is missing)"),
        "{said}"
    );
    assert!(said.contains("bad.jsonl:2: "), "{said}");
    assert!(!said.contains(CANARY), "{said}");
}

#[test]
fn a_contract_that_is_wrong_ends_the_start_by_file_and_place() {
    let cases: [(&str, &str, &str); 6] = [
        ("E.v1.json", "{\"type\": \"strin\"}", "E.v1.json: /type: "),
        (
            "E.v1.json",
            "{",
            "E.v1.json: line 1, column 1: it is no JSON",
        ),
        (
            "E.v1.json",
            "{\"pattern\": \"(?=a)b\"}",
            "E.v1.json: /pattern: this is no regular expression that",
        ),
        (
            "E.v1.json",
            "{\"$ref\": \"_gone.json\"}",
            "the folder has no file _gone.json",
        ),
        (
            "E.1.json",
            "{}",
            "E.1.json: its name says no event type and version",
        ),
        ("_part.json", "{}", "has no contract in it"),
    ];
    for (n, (name, text, wanted)) in cases.into_iter().enumerate() {
        let folder = Scratch::new(&format!("wrong-{n}"), &[(name, text)]);
        let config = format!(
            "[database]\nurl = \"postgres://h/d\"\n[kafka]\nbrokers = \"h:9092\"\n\
             [[outbox]]\ntable = \"outbox\"\ncontracts = \"{}\"\n",
            folder.text()
        );
        let file = Scratch::new(&format!("config-{n}"), &[("relay.toml", &config)]);
        let file = format!("{}/relay.toml", file.text());
        let (ended, _, said) = relay(&["config", "check", "--config", &file]);
        assert_eq!(ended, Some(78), "{said}");
        assert!(
            said.contains("relay.toml:7: `outbox.contracts`: "),
            "{said}"
        );
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
}
