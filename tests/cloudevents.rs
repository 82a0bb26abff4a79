//! CloudEvents, as the official SDK reads them: both modes, every kind of payload, by a relay that runs for real.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::examples::{path, prepared_of, tool};
use crate::operating::{SOON, ends};
use crate::support::kafka::Record;
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::{self, World, eventually};

/// Python with the SDK; why there is none, else.
async fn sdk() -> Result<String, String> {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE.lock().await;
    let files = [
        ("requirements.txt", include_str!("sdk/requirements.txt")),
        ("parse.py", include_str!("sdk/parse.py")),
    ];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let kept = prepared_of("cloudevents", &files, async |kept| {
        tool(kept, "python3", &["-m", "venv", "venv"]).await?;
        let install = ["-q", "install", "--no-deps", "-r", "requirements.txt"];
        tool(kept, &path(&kept.join("venv/bin/pip")), &install).await
    });
    Ok(path(&kept.await?))
}

/// What the SDK reads in `records`.
fn read(sdk: &str, records: &[&Record]) -> Vec<Value> {
    let pack = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| STANDARD.encode(bytes));
    let line = |record: &&Record| {
        let headers = record.headers.iter();
        let headers: Vec<Value> = headers
            .map(|(name, value)| json!([name, pack(value)]))
            .collect();
        format!(
            "{}\n",
            json!({ "headers": headers, "key": pack(&record.key), "value": pack(&record.value) })
        )
    };
    let lines: String = records.iter().map(line).collect();
    let kept = Path::new(sdk);
    let mut python = Command::new(kept.join("venv/bin/python"))
        .arg(kept.join("parse.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut stdin = python.stdin.take().expect("a pipe");
    stdin.write_all(lines.as_bytes()).expect("it reads");
    drop(stdin);
    let output = python.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Runs the test with the SDK, or skips it.
fn with_sdk(test: impl AsyncFnOnce(&World, &str)) {
    let mut ready = Err(String::new());
    support::block_on(async { ready = sdk().await });
    match ready {
        Ok(kept) => support::run(async |world| test(world, &kept).await),
        Err(why) => support::skip(&why),
    }
}

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// As Postgres prints it as jsonb.
const PAYLOAD: &str = "{\"n\": 1.50, \"s\": \"é 😀 \\\"q\\\"\", \"big\": 12345678901234567890}";
const PRINTED: &str = "{\"n\": 1.50, \"s\": \"é 😀 \\\"q\\\"\", \"big\": 12345678901234567890}";

/// An outbox of the native layout whose payload is of this type, with `config` for its CloudEvents.
async fn outbox(world: &World, table: &str, payload: &str, config: &str) -> Outbox {
    world
        .execute(&format!(
            "create table {table} (
               id uuid primary key, aggregate_id text, aggregate_type text not null, event_type text not null,
               payload {payload}, headers jsonb, topic text, created_at timestamptz, published_at timestamptz)"
        ))
        .await;
    let mut outbox = Outbox::new(table, Layout::Native, OnPublished::Mark);
    outbox.config = format!(
        "topic = \"{}\"\non_rejected = \"dead_letter\"\ncloudevents = {{ {config} }}\n",
        world.topic(table)
    );
    world
        .kafka
        .create_topic(&world.topic(table), 1, &[("max.message.bytes", "4000")])
        .await;
    outbox
}

fn id(n: u32) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// Inserts an event: `payload` is an expression of SQL.
async fn insert(world: &World, table: &str, n: u32, key: &str, event_type: &str, payload: &str) {
    let headers =
        json!({ "traceparent": TRACEPARENT, "tracestate": "a=b,c=d", "tenant": "é", "none": null });
    world
        .execute(&format!(
            "insert into {table} (id, aggregate_id, aggregate_type, event_type, payload, headers, created_at)
             values ('{}', '{key}', 'Order Line', '{event_type}', {payload}, '{headers}', {})",
            id(n),
            match n % 2 {
                0 => "'2024-01-02 03:04:05.000006+00'",
                _ => "null",
            }
        ))
        .await;
}

fn attributes(n: u32, key: &str, media_type: Option<&str>) -> Value {
    let mut all = json!({
        "specversion": "1.0", "id": id(n), "source": "/shop/order%20line", "type": "com.shop.Örd",
        "subject": key, "partitionkey": key, "traceparent": TRACEPARENT, "tracestate": "a=b,c=d",
    });
    if n.is_multiple_of(2) {
        all["time"] = "2024-01-02T03:04:05.000006+00:00".into();
    }
    if let Some(media_type) = media_type {
        all["datacontenttype"] = media_type.into();
    }
    if key.is_empty() {
        let all = all.as_object_mut().unwrap();
        all.remove("subject");
        // the SDK takes the record's key for it
        all["partitionkey"] = "".into();
    }
    all
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let mut named = record.headers.iter().filter(|(it, _)| it == name);
    let (_, value) = named.next()?;
    assert!(named.next().is_none(), "{name} is there once");
    value.as_deref().map(|it| str::from_utf8(it).unwrap())
}

/// What is the same in both modes: the events as the SDK reads them, and the rows that are none.
async fn holds(world: &World, sdk: &str, mode: &str) {
    let config = |more: &str| {
        format!(
            "mode = \"{mode}\", source = \"/shop/${{aggregate_type:lower}}\", type = \"com.shop.${{event_type}}\"{more}"
        )
    };
    let media_type = ", datacontenttype = \"application/vnd.shop+json\"";
    let tables = [
        outbox(world, "of_jsonb", "jsonb", &config("")).await,
        outbox(world, "of_json", "json", &config("")).await,
        outbox(world, "of_text", "text", &config("")).await,
        outbox(world, "of_named", "text", &config(media_type)).await,
        outbox(world, "of_bytea", "bytea", &config("")).await,
    ];
    let setup = world.relay(&tables.iter().collect::<Vec<_>>());
    setup.migrate().await;
    let payload = format!("'{PAYLOAD}'");
    let text = "E'plain \"é\"\\n\\u0001'";
    for (table, n, key, payload) in [
        ("of_jsonb", 2, "o-é", payload.as_str()),
        ("of_jsonb", 3, "", "'[1, null]'"),
        ("of_jsonb", 4, "o-é", "null"),
        ("of_json", 6, "k", "E'{\"z\":1,\\n \"a\" : 2}'"),
        ("of_text", 8, "k", text),
        ("of_text", 9, "k", "''"),
        ("of_named", 10, "k", payload.as_str()),
        ("of_bytea", 12, "k", "'\\xff00fe'::bytea"),
    ] {
        insert(world, table, n, key, "Örd", payload).await;
    }
    // what is no CloudEvent
    insert(world, "of_json", 20, "p", "a\u{7}b", "'{}'").await;
    insert(world, "of_named", 22, "p", "Örd", "'{no json'").await;
    world
        .execute(&format!(
            "insert into of_jsonb (id, aggregate_id, aggregate_type, event_type, payload, headers) values
               ('{}', 'p', 'Order', 'Forged', '{{}}', '{{\"CE_id\": \"forged\"}}'),
               ('{}', 'p', 'Order', 'Forged', '{{}}', '{{\"content-type\": \"forged\"}}')",
            id(24),
            id(26)
        ))
        .await;
    world.expect_errors("park");
    assert_eq!(setup.until_empty(SOON).await.code(), Some(75));
    let is_structured = mode == "structured";
    for (n, class, published) in [
        (20, "not_a_cloudevent", false),
        (22, "not_a_cloudevent", !is_structured),
        (24, "bad_header", false),
        (26, "bad_header", false),
    ] {
        let why = format!(
            "select count(*) from outbox_relay.parked where event_id = '{}' and reason_class = '{class}'
                and reason not like '%forged%'",
            id(n)
        );
        assert_eq!(world.number(&why).await, i64::from(!published), "{n}");
    }

    let text = |text: &'static str| Some(text.as_bytes());
    let data: Value = serde_json::from_str(PRINTED).unwrap();
    let expected = [
        (
            "of_jsonb",
            0,
            2,
            "o-é",
            Some("application/json"),
            data.clone(),
            text(PRINTED),
        ),
        (
            "of_jsonb",
            1,
            3,
            "",
            Some("application/json"),
            json!([1, null]),
            text("[1, null]"),
        ),
        ("of_jsonb", 2, 4, "o-é", None, Value::Null, None),
        (
            "of_json",
            0,
            6,
            "k",
            Some("application/json"),
            json!({"z": 1, "a": 2}),
            text("{\"z\":1,\n \"a\" : 2}"),
        ),
        (
            "of_text",
            0,
            8,
            "k",
            Some("text/plain"),
            "plain \"é\"\n\u{1}".into(),
            text("plain \"é\"\n\u{1}"),
        ),
        // the SDK reads an empty value as none in binary mode
        (
            "of_text",
            1,
            9,
            "k",
            Some("text/plain"),
            if is_structured {
                "".into()
            } else {
                Value::Null
            },
            text(""),
        ),
        (
            "of_named",
            0,
            10,
            "k",
            Some("application/vnd.shop+json"),
            data,
            text(PAYLOAD),
        ),
        (
            "of_bytea",
            0,
            12,
            "k",
            Some("application/octet-stream"),
            json!({"bytes": "ff00fe"}),
            Some(&b"\xff\x00\xfe"[..]),
        ),
    ];
    for (table, at, n, key, media_type, data, bytes) in expected {
        let bytes: Option<&[u8]> = bytes;
        let records = world.kafka.read_all(&world.topic(table)).await;
        let record = &records[at];
        let mut event = read(sdk, &[record]).remove(0);
        if n % 2 == 1 {
            // the SDK gives one that has no time its own
            assert_eq!(header(record, "ce_time"), None);
            event["attributes"].as_object_mut().unwrap().remove("time");
        }
        assert_eq!(
            event["attributes"],
            attributes(n, key, media_type),
            "{table} {n}"
        );
        assert_eq!(event["data"], data, "{table} {n}");
        // beside what is the CloudEvent's: P6, and the row's own
        assert_eq!(header(record, "event_id"), Some(id(n).as_str()));
        assert_eq!(header(record, "event_type"), Some("Örd"));
        assert_eq!(header(record, "tenant"), Some("é"));
        assert_eq!(header(record, "traceparent"), Some(TRACEPARENT));
        assert!(record.headers.contains(&("none".to_owned(), None)));
        assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
        let value = record.value.as_deref();
        if !is_structured || bytes.is_none() {
            assert_eq!(
                value, bytes,
                "the payload is untouched, and a tombstone is one"
            );
            assert_eq!(header(record, "content-type"), media_type);
            assert_eq!(header(record, "ce_id"), Some(id(n).as_str()));
            assert_eq!(header(record, "ce_specversion"), Some("1.0"));
            continue;
        }
        let structured = "application/cloudevents+json; charset=UTF-8";
        assert_eq!(header(record, "content-type"), Some(structured));
        assert!(
            !record
                .headers
                .iter()
                .any(|(name, _)| name.starts_with("ce_"))
        );
        // a payload of JSON stands in it as Postgres printed it
        if media_type.is_some_and(|it| it.ends_with("json")) {
            let (value, bytes) = (
                str::from_utf8(value.unwrap()),
                str::from_utf8(bytes.unwrap()),
            );
            let end = format!(",\"data\":{}}}", bytes.unwrap());
            assert!(value.unwrap().ends_with(&end), "{value:?}");
        }
    }
    let counts = [
        ("of_jsonb", 3),
        ("of_json", 1),
        ("of_text", 2),
        ("of_bytea", 1),
    ];
    for (table, count) in counts {
        assert_eq!(
            world.kafka.count(&world.topic(table)).await,
            count,
            "{table}"
        );
    }
}

#[test]
fn the_official_sdk_reads_binary_cloudevents_of_every_kind_of_payload() {
    with_sdk(async |world, sdk| holds(world, sdk, "binary").await);
}

#[test]
fn the_official_sdk_reads_structured_cloudevents_of_every_kind_of_payload() {
    with_sdk(async |world, sdk| holds(world, sdk, "structured").await);
}

#[test]
fn a_trace_in_columns_of_its_own_travels_as_headers_and_as_attributes() {
    with_sdk(async |world, sdk| {
        let topic = world.topic("traced");
        world
            .execute(
                "create table outbox (id uuid primary key, key text, kind text not null, name text not null, body jsonb,
                   traceparent text, tracestate text, at timestamptz)",
            )
            .await;
        let mut outbox = Outbox::new("outbox", Layout::Debezium, OnPublished::Delete);
        outbox.config = format!(
            "layout = {{ id = \"id\", aggregate_id = \"key\", aggregate_type = \"kind\", event_type = \"name\", \
             payload = \"body\", created_at = \"at\" }}\ntopic = \"{topic}\"\n\
             headers = {{ event_id = \"event_id\", aggregate_type = \"of\", seq = \"version\", created_at = \"written\" }}\n\
             headers_from = [\"traceparent\", \"tracestate\"]\n\
             cloudevents = {{ mode = \"binary\", source = \"/shop\" }}\n"
        );
        world.kafka.create_topic(&topic, 1, &[]).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        world
            .execute(&format!(
                "insert into outbox values
                   ('{}', 'a', 'cart', 'Filled', '{{}}', '{TRACEPARENT}', 'x=y', '2024-01-02 03:04:05.6+00'),
                   ('{}', 'a', 'cart', 'Filled', '{{}}', null, null, null)",
                id(2),
                id(4)
            ))
            .await;
        assert!(setup.until_empty(SOON).await.success());
        let records = world.kafka.read_all(&topic).await;
        let events = read(sdk, &records.iter().collect::<Vec<_>>());
        let (traced, bare) = (&events[0]["attributes"], &events[1]["attributes"]);
        assert_eq!(traced["traceparent"], TRACEPARENT);
        assert_eq!(traced["tracestate"], "x=y");
        assert_eq!(traced["time"], "2024-01-02T03:04:05.600000+00:00");
        assert_eq!(traced["type"], "Filled");
        assert!(bare.get("traceparent").is_none() && bare.get("tracestate").is_none());
        let first = &records[0];
        assert_eq!(header(first, "traceparent"), Some(TRACEPARENT));
        assert_eq!(header(first, "tracestate"), Some("x=y"));
        assert_eq!(header(first, "of"), Some("cart"));
        assert_eq!(header(first, "version"), Some("1"));
        assert_eq!(
            header(first, "written"),
            Some("2024-01-02T03:04:05.600000Z")
        );
        assert_eq!(header(&records[1], "ce_time"), None);
        assert!(
            records[1]
                .headers
                .contains(&("traceparent".to_owned(), None))
        );
    });
}

#[test]
fn a_cloudevent_is_the_same_after_parking_as_a_dead_letter_and_replayed() {
    with_sdk(async |world, sdk| {
        let config = "mode = \"structured\", source = \"https://shop.example\"";
        let mut outbox = outbox(world, "outbox", "jsonb", config).await;
        let (topic, letters) = (world.topic("outbox"), world.topic("letters"));
        outbox.config = outbox.config.replace("\"dead_letter\"", "\"block\"");
        outbox
            .config
            .push_str(&format!("dead_letter_topic = \"{letters}\"\n"));
        world.kafka.create_topic(&letters, 1, &[]).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        // the first one is too large, compressed too; the second waits behind it
        let large =
            "(select to_jsonb(string_agg(md5(i::text), '')) from generate_series(1, 300) i)";
        insert(world, "outbox", 2, "a", "Grew", large).await;
        insert(world, "outbox", 4, "a", "Filled", "'{\"n\": 1.50}'").await;
        insert(world, "outbox", 6, "b", "Filled", "'{\"n\": 1.50}'").await;
        world.expect_errors("park");
        let relay = setup.run();
        eventually(SOON, "all is published or parked", async || {
            outbox.pending(world).await == 0
        })
        .await;
        assert_eq!(parked(world).await, 2);
        let why = "select count(*) from outbox_relay.parked where reason_class = 'too_large' and state = 'blocked'";
        assert_eq!(world.number(why).await, 1);
        eventually(SOON, "the letter is sent", async || {
            world.kafka.count(&letters).await == 1
        })
        .await;
        let letter = &world.kafka.read_all(&letters).await[0];
        let event = &read(sdk, &[letter])[0];
        assert_eq!(event["attributes"]["id"], id(2).as_str());
        assert_eq!(event["data"].as_str().map(str::len), Some(9_600));

        let shown = setup.spawn(&["parked", "show", "2", "--payload"]);
        shown.wait_line("specversion", SOON).await;
        ends(&setup, &["parked", "skip", "--key", "a", "--yes"], 0).await;
        eventually(SOON, "the one behind is published", async || {
            world.kafka.count(&topic).await == 2
        })
        .await;
        relay.stop().await;
        ends(&setup, &["replay", "--key", "b", "--yes"], 0).await;
        let records = world.kafka.read_all(&topic).await;
        assert_eq!(records.len(), 3);
        let events = read(sdk, &records.iter().collect::<Vec<_>>());
        for (event, n) in events.iter().zip([6, 4, 6]) {
            assert_eq!(event["attributes"]["id"], id(n).as_str());
            assert_eq!(event["attributes"]["source"], "https://shop.example");
            assert_eq!(
                event["attributes"]["time"],
                "2024-01-02T03:04:05.000006+00:00"
            );
            assert_eq!(event["data"], json!({ "n": 1.5 }));
        }
        // one that waited behind a parked row differs from its like by nothing but its id and its key
        let of = |record: &Record| String::from_utf8(record.value.clone().unwrap()).unwrap();
        let like = of(&records[0])
            .replace(&id(6), &id(4))
            .replace("\"b\"", "\"a\"");
        assert_eq!(of(&records[1]), like);
        let (first, copy) = (&records[0], &records[2]);
        assert_eq!((&copy.key, &copy.value), (&first.key, &first.value));
        assert_eq!(copy.headers[..first.headers.len()], first.headers[..]);
        assert_eq!(copy.headers.len(), first.headers.len() + 1);
    });
}
