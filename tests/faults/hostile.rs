//! Rows that a careless service, or a malicious one, could write. What Kafka can carry arrives byte
//! for byte; what it cannot is parked with a reason; the next row of the lane arrives whatever stood
//! before it; and nothing of what only the service should know is in a log.

use std::fmt::Write as _;
use std::time::Duration;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::checker::java_partition;
use crate::support::kafka::{Header, Record};
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::{self, World};

/// What no log may hold. It is in every payload, key and header value that has room for it.
const CANARY: &str = "canary-4711";
/// The broker's own limit for a record batch, and what the rest of a record takes at most.
const LIMIT_BYTES: usize = 1_048_588;
const ROOM_BYTES: usize = 400;

/// A table, and what its columns are made of.
struct Table {
    outbox: Outbox,
    payload: &'static str,
    headers: &'static str,
}

/// One row, and what must become of it.
#[derive(Clone)]
struct Row {
    name: String,
    key: Option<String>,
    aggregate_type: String,
    event_type: String,
    /// As text; in hex for bytea.
    payload: Option<String>,
    headers: Option<String>,
    topic: Option<String>,
    /// The class of its reason, if it must be parked.
    parked: Option<&'static str>,
    /// Headers that Postgres itself cannot read out of the JSON.
    own_headers: Option<Vec<Header>>,
}

/// A row as it was written: what must arrive.
struct Wanted {
    row: Row,
    id: Uuid,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
}

impl Table {
    fn new(name: &str, layout: Layout, payload: &'static str, headers: &'static str) -> Self {
        let mut outbox = Outbox::new(name, layout, OnPublished::Mark);
        // one lane, so that every row stands behind all those before it
        outbox.config = "lanes = 1\ntopic = \"${aggregate_type}\"".to_owned();
        Self {
            outbox,
            payload,
            headers,
        }
    }

    fn native(name: &str, payload: &'static str, headers: &'static str) -> Self {
        Self::new(name, Layout::Native, payload, headers)
    }

    fn classic(name: &str) -> Self {
        Self::new(name, Layout::Classic, "jsonb", "")
    }

    async fn create(&self, world: &World) {
        self.outbox.create(world).await;
        let table = &self.outbox.table;
        let mut alter = format!(
            "alter table {table} alter column aggregate_id drop not null,
               alter column payload drop not null,
               alter column payload type {} using null",
            self.payload
        );
        if self.outbox.layout == Layout::Native {
            let headers = format!(", alter column headers type {} using null", self.headers);
            alter.push_str(&headers);
        }
        world.execute(&alter).await;
    }

    /// Writes a row, and learns from Postgres what its bytes are.
    async fn insert(&self, world: &World, row: Row) -> Wanted {
        let table = &self.outbox.table;
        let (payload, value) = match self.payload {
            "bytea" => ("decode($4, 'hex')".to_owned(), "payload".to_owned()),
            other => (
                format!("$4::text::{other}"),
                "convert_to(payload::text, 'UTF8')".to_owned(),
            ),
        };
        let key = match self.outbox.layout {
            Layout::Classic => "$1::text::uuid",
            Layout::Native | Layout::Debezium => "$1::text",
        };
        let (columns, values) = match self.outbox.layout {
            Layout::Classic | Layout::Debezium => ("", String::new()),
            Layout::Native => (
                ", headers, topic",
                format!(", $5::text::{}, $6::text", self.headers),
            ),
        };
        let sql = format!(
            "insert into {table} (aggregate_id, aggregate_type, event_type, payload{columns})
             values ({key}, $2, $3, {payload}{values}) returning id, {value}"
        );
        let mut insert = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&row.key)
            .bind(&row.aggregate_type)
            .bind(&row.event_type)
            .bind(&row.payload);
        if self.outbox.layout == Layout::Native {
            insert = insert.bind(&row.headers).bind(&row.topic);
        }
        let inserted = insert.fetch_one(&world.pool).await;
        let (id, value): (Uuid, Option<Vec<u8>>) =
            inserted.unwrap_or_else(|error| panic!("{}: {error}", row.name));
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let mut headers = vec![
            ("event_id".to_owned(), text(&id.to_string())),
            ("event_type".to_owned(), text(&row.event_type)),
        ];
        if let (Some(own), None) = (&row.own_headers, row.parked) {
            headers.extend(own.iter().cloned());
        } else if let (Some(_), None) = (&row.headers, row.parked) {
            let kind = self.headers;
            let sql = format!(
                "select key, convert_to(case {kind}_typeof(value) when 'string' then value #>> '{{}}'
                          when 'null' then null else value::text end, 'UTF8')
                   from {table}, {kind}_each(headers) where id = $1"
            );
            let own = sqlx::query_as(AssertSqlSafe(sql)).bind(id);
            let own: Vec<Header> = own.fetch_all(&world.pool).await.unwrap();
            headers.extend(own);
        }
        Wanted {
            row,
            id,
            value,
            headers,
        }
    }
}

/// An ordinary row of `topic`, to be made odd in one way.
fn row(name: impl Into<String>, topic: &str) -> Row {
    let name = name.into();
    Row {
        key: Some(format!("{CANARY}-{}", Uuid::new_v4())),
        aggregate_type: topic.to_owned(),
        event_type: "Changed".to_owned(),
        payload: Some(format!("{{\"secret\": \"{CANARY}\"}}")),
        headers: None,
        topic: None,
        parked: None,
        own_headers: None,
        name,
    }
}

/// Writes each row with a good one of another aggregate behind it, lets a relay that says all it
/// can say publish them, and looks at what became of each.
async fn publish(world: &World, topics: &[&str], tables: Vec<(Table, Vec<Row>)>) {
    for (table, _) in &tables {
        table.create(world).await;
    }
    let outboxes: Vec<&Outbox> = tables.iter().map(|(table, _)| &table.outbox).collect();
    let setup = world.relay(&outboxes).env("RUST_LOG", "trace");
    setup.migrate().await;
    let mut wanted = Vec::new();
    for (table, rows) in &tables {
        for hostile in rows {
            let mut good = row(format!("the row behind {}", hostile.name), topics[0]);
            good.key = Some(Uuid::new_v4().to_string());
            if table.payload == "bytea" {
                good.payload = Some("00ff".to_owned());
            }
            wanted.push(table.insert(world, hostile.clone()).await);
            wanted.push(table.insert(world, good).await);
        }
    }
    let relay = setup.run();
    for outbox in &outboxes {
        outbox.wait_drained(world, Duration::from_secs(90)).await;
    }
    // parked rows leave the outbox as the published ones do: now everything was judged once
    relay.stop().await;

    let mut records = Vec::new();
    for topic in topics {
        records.extend(world.kafka.read_all(topic).await);
    }
    let mut count = 0;
    for wanted in &wanted {
        match wanted.row.parked {
            None => arrived(world, wanted, &records).await,
            Some(class) => {
                stayed(world, wanted, class, &records).await;
                count += 1;
            }
        }
    }
    assert_eq!(parked(world).await, count, "nothing else was parked");
    assert!(records.len() >= wanted.len() - usize::try_from(count).unwrap());
    for line in world.log_lines() {
        assert!(!line.contains(CANARY), "in the log: {line}");
    }
}

async fn arrived(world: &World, wanted: &Wanted, records: &[Record]) {
    let Wanted {
        row,
        id,
        value,
        headers,
    } = wanted;
    let name = &row.name;
    let id = Some(id.to_string().into_bytes());
    let of_row = |record: &&Record| record.headers.first().is_some_and(|(_, it)| *it == id);
    let copies: Vec<&Record> = records.iter().filter(of_row).collect();
    assert!(!copies.is_empty(), "{name}: it did not arrive");
    let topic = row.topic.as_ref().unwrap_or(&row.aggregate_type);
    let partitions = world.kafka.partitions(topic).await;
    let key = row.key.as_ref().map(|key| key.as_bytes().to_vec());
    for record in copies {
        // not `assert_eq`, which would print a megabyte
        assert!(record.topic == *topic, "{name}: another topic");
        assert!(record.key == key, "{name}: another key");
        assert!(record.value == *value, "{name}: another value");
        assert!(record.headers == *headers, "{name}: other headers");
        let partition = java_partition(record.key.as_deref().unwrap_or_default(), partitions);
        assert_eq!(record.partition, partition, "{name}");
    }
}

async fn stayed(world: &World, wanted: &Wanted, class: &str, records: &[Record]) {
    let name = &wanted.row.name;
    let id = Some(wanted.id.to_string().into_bytes());
    let sent = records
        .iter()
        .any(|record| record.headers.first().is_some_and(|(_, it)| *it == id));
    assert!(!sent, "{name}: it arrived");
    type Found = (String, String, String, Option<String>, Option<Vec<u8>>);
    let sql = "select state, reason_class, reason, aggregate_id, value
         from outbox_relay.parked where event_id = $1";
    let found = sqlx::query_as::<_, Found>(sql).bind(wanted.id);
    let found = found.fetch_optional(&world.pool).await.unwrap();
    let (state, of_class, reason, key, value) =
        found.unwrap_or_else(|| panic!("{name}: it is not parked"));
    assert_eq!((&*state, &*of_class), ("blocked", class), "{name}");
    assert!(
        !reason.is_empty() && !reason.contains(CANARY),
        "{name}: {reason}"
    );
    assert!(key == wanted.row.key, "{name}: another key is parked");
    assert!(value == wanted.value, "{name}: another value is parked");
}

/// Texts that programs stumble over.
fn odd_texts() -> Vec<(&'static str, String)> {
    vec![
        ("a space", " ".into()),
        ("a line feed", "a\r\nb".into()),
        ("quotes", "'\"`\\\\$1${x}%s{}".into()),
        ("emoji", "👩‍👩‍👧‍👦🏴󠁧󠁢󠁳󠁣󠁴󠁿".into()),
        ("right to left", "\u{202e}שלום\u{202c} مرحبا".into()),
        ("combining marks", format!("e{}", "\u{301}".repeat(100))),
        ("not composed", "é e\u{301}".into()),
        ("no characters", "\u{ffff}\u{fffe}\u{10ffff}\u{fdd0}".into()),
        (
            "controls",
            "\u{1}\u{7f}\u{85}\u{feff}\u{200b}\u{1b}[31m".into(),
        ),
        ("a long text", "x".repeat(100_000)),
    ]
}

/// The longest of these nestings that Postgres takes.
async fn deepest(world: &World, kind: &str, around: impl Fn(usize) -> String) -> String {
    for levels in [100_000, 20_000, 6_000, 3_000] {
        let text = around(levels);
        let take = sqlx::query(AssertSqlSafe(format!("select $1::text::{kind}"))).bind(&text);
        if take.execute(&world.pool).await.is_ok() {
            return text;
        }
    }
    panic!("Postgres takes thousands of levels")
}

fn nested(levels: usize) -> String {
    format!("{}\"{CANARY}\"{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn a_topic_that_is_no_name_parks_its_row_wherever_it_is_from() {
    support::run(async |world| {
        let topic = world.topic("topics");
        let longest = format!("{topic}-._-{}", "x".repeat(249 - 4 - topic.len()));
        for topic in [&topic, &longest] {
            world.kafka.create_topic(topic, 2, &[]).await;
        }
        let mut illegal: Vec<(String, String)> = vec![
            ("nothing".into(), String::new()),
            ("a dot".into(), ".".into()),
            ("two dots".into(), "..".into()),
            ("250 letters".into(), "x".repeat(250)),
            ("a slash".into(), format!("{topic}/x")),
            ("a way out".into(), "../../etc/passwd".into()),
            ("a space behind".into(), format!("{topic} ")),
            ("an umlaut".into(), "größe".into()),
            ("a template".into(), "${event_type}".into()),
            ("a list".into(), format!("{topic},{topic}")),
            ("a Kelvin sign".into(), "\u{212a}".into()),
        ];
        let odd = odd_texts().into_iter();
        illegal.extend(odd.map(|(name, text)| (name.to_owned(), text)));
        let refused = |name: String, row: Row| Row {
            parked: Some("illegal_topic"),
            name,
            ..row
        };
        let (mut own, mut by_template, mut classic) = (Vec::new(), Vec::new(), Vec::new());
        for (name, text) in &illegal {
            let mut bad = refused(format!("own topic: {name}"), row("", &topic));
            bad.topic = Some(text.clone());
            own.push(bad);
            let bad = refused(format!("template: {name}"), row("", text));
            by_template.push(bad.clone());
            classic.push(Row {
                key: Some(Uuid::new_v4().to_string()),
                name: format!("classic: {name}"),
                ..bad
            });
        }
        let mut good = row("own topic: 249 letters", &topic);
        good.topic = Some(longest.clone());
        own.push(good);
        by_template.push(row("template: 249 letters", &longest));
        let tables = vec![
            (Table::native("own", "jsonb", "jsonb"), own),
            (Table::native("by_template", "jsonb", "jsonb"), by_template),
            (Table::classic("classic"), classic),
        ];
        publish(world, &[&topic, &longest], tables).await;
    });
}

#[test]
fn payloads_of_every_kind_arrive_byte_equal_up_to_the_topics_limit() {
    support::run(async |world| {
        let topic = world.topic("payloads");
        world.kafka.create_topic(&topic, 2, &[]).await;
        let of = |name: &str, payload: &str| Row {
            payload: Some(payload.to_owned()),
            ..row(name, &topic)
        };
        let large = |name: &str, payload: &str| Row {
            parked: Some("too_large"),
            ..of(name, payload)
        };
        let none = || Row {
            payload: None,
            ..row("a tombstone", &topic)
        };
        let padded = |bytes: usize| format!("{CANARY}{}", "x".repeat(bytes - CANARY.len()));
        let under = padded(LIMIT_BYTES - ROOM_BYTES);
        let over = padded(LIMIT_BYTES + 1);

        let mut texts = vec![
            of("nothing", ""),
            none(),
            of("under", &under),
            large("over", &over),
        ];
        let mut documents = vec![
            of("jsonb: null", "null"),
            of("jsonb: an empty string", "\"\""),
            of(
                "jsonb: large numbers",
                "[1e400, -1e-400, 1.50, 123456789012345678901234567890]",
            ),
            of("jsonb: a key twice", "{\"a\": 1, \"a\": 2, \"\": 3}"),
            of("jsonb: under", &format!("\"{under}\"")),
            large("jsonb: over", &format!("\"{over}\"")),
            none(),
        ];
        let mut jsons = vec![
            of("json: large numbers", "  [1e400,\n-1e-400,   1.50]  "),
            of("json: a key twice", "{\"a\": 1, \"a\": 2, \"a\": {}}"),
            of("json: an escaped NUL", "{\"a\\u0000b\": \"\\u0000\"}"),
            of("json: half a character", "\"\\ud800\""),
        ];
        for (name, text) in odd_texts() {
            texts.push(of(&format!("text: {name}"), &text));
            let quoted = serde_json::to_string(&[&text, &format!("{text}{CANARY}")]).unwrap();
            documents.push(of(&format!("jsonb: {name}"), &quoted));
            jsons.push(of(&format!("json: {name}"), &quoted));
        }
        documents.push(of("jsonb: deep", &deepest(world, "jsonb", nested).await));
        jsons.push(of("json: deep", &deepest(world, "json", nested).await));

        let every: String = (0..=255_u8).fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        let bytes = vec![
            of("bytea: nothing", ""),
            of("bytea: every byte", &every),
            of("bytea: no UTF-8", "c328fffe"),
            of("bytea: under", &"ab".repeat(LIMIT_BYTES - ROOM_BYTES)),
            large("bytea: over", &"ab".repeat(LIMIT_BYTES + 1)),
            none(),
        ];
        // classic keys are uuids
        let classic = documents.iter().map(|row| Row {
            key: Some(Uuid::new_v4().to_string()),
            name: format!("classic: {}", row.name),
            ..row.clone()
        });
        let classic = classic.collect();
        let tables = vec![
            (Table::classic("classic"), classic),
            (Table::native("documents", "jsonb", "jsonb"), documents),
            (Table::native("jsons", "json", "jsonb"), jsons),
            (Table::native("texts", "text", "jsonb"), texts),
            (Table::native("bytes", "bytea", "jsonb"), bytes),
        ];
        publish(world, &[&topic], tables).await;
    });
}

#[test]
fn odd_keys_and_types_arrive_as_they_are_and_a_missing_key_is_parked() {
    support::run(async |world| {
        let topic = world.topic("keys");
        world.kafka.create_topic(&topic, 5, &[]).await;
        let mut keys = vec![Row {
            key: Some(String::new()),
            ..row("an empty key", &topic)
        }];
        for (name, text) in odd_texts() {
            let named = |what: &str| row(format!("{what}: {name}"), &topic);
            keys.push(Row {
                key: Some(format!("{text}{CANARY}{text}")),
                ..named("key")
            });
            // no template makes a topic of these, so the row says its own
            keys.push(Row {
                aggregate_type: text.clone(),
                topic: Some(topic.clone()),
                ..named("aggregate type")
            });
            keys.push(Row {
                event_type: text.clone(),
                ..named("event type")
            });
            keys.push(Row {
                key: Some(format!("{CANARY}{text}")),
                event_type: text,
                topic: Some("no name".to_owned()),
                parked: Some("illegal_topic"),
                ..named("all of it, parked")
            });
        }
        keys.push(Row {
            event_type: String::new(),
            ..row("an empty event type", &topic)
        });
        keys.push(Row {
            aggregate_type: String::new(),
            topic: Some(topic.clone()),
            ..row("an empty aggregate type", &topic)
        });
        let keyless = Row {
            key: None,
            parked: Some("no_aggregate_id"),
            ..row("no key", &topic)
        };
        keys.push(keyless.clone());
        // more than an index of Postgres takes, and these do not compress
        let noise: String = (0..300)
            .map(|_| Uuid::new_v4().simple().to_string())
            .collect();
        keys.push(Row {
            key: Some(format!("{CANARY}{noise}")),
            ..row("a key of 9,600 bytes", &topic)
        });
        keys.push(Row {
            key: Some(format!("{CANARY}{noise}{noise}")),
            topic: Some(String::new()),
            parked: Some("illegal_topic"),
            ..row("a key of 19,200 bytes, parked", &topic)
        });
        let tables = vec![
            (Table::native("keys", "jsonb", "jsonb"), keys),
            (Table::classic("classic"), vec![keyless]),
        ];
        publish(world, &[&topic], tables).await;
    });
}

#[test]
fn headers_arrive_as_they_are_or_park_their_row() {
    support::run(async |world| {
        let topic = world.topic("headers");
        world.kafka.create_topic(&topic, 2, &[]).await;
        let of = |name: &str, headers: &str| Row {
            headers: Some(headers.to_owned()),
            ..row(name, &topic)
        };
        let bad = |name: &str, headers: &str| Row {
            parked: Some("bad_header"),
            ..of(name, headers)
        };
        let many = |headers: usize| {
            let headers: Vec<String> = (0..headers)
                .map(|n| format!("\"header-{n}\": \"{CANARY}-{n}\""))
                .collect();
            format!("{{{}}}", headers.join(", "))
        };
        let long = |bytes| format!("{{\"{}\": \"{CANARY}\"}}", "n".repeat(bytes));
        let too_long = format!("{{\"a\": \"{CANARY}{}\"}}", "v".repeat(LIMIT_BYTES));
        let all_kinds = format!(
            "{{\"null\": null, \"number\": 1e400, \"fraction\": 1.50, \"yes\": true, \"text\": \"{CANARY}\",
               \"empty\": \"\", \"list\": [1, \"{CANARY}\"], \"object\": {{\"{CANARY}\": {{}}}}}}"
        );
        let mut common = vec![
            bad("an array", &format!("[\"{CANARY}\"]")),
            bad("a string", &format!("\"{CANARY}\"")),
            bad("a number", "4711"),
            bad("null", "null"),
            bad("a boolean", "true"),
            bad("event_id", &format!("{{\"event_id\": \"{CANARY}\"}}")),
            bad(
                "event_type",
                &format!("{{\"a\": 1, \"event_type\": \"{CANARY}\"}}"),
            ),
            bad("event_id, escaped", "{\"event\\u005fid\": null}"),
            bad("an empty name", &format!("{{\"\": \"{CANARY}\"}}")),
            of("no headers", "{}"),
            of(
                "almost event_id",
                "{\"Event_Id\": \"x\", \"event_id \": \"y\"}",
            ),
            of("all kinds", &all_kinds),
            bad(
                "as if published again",
                "{\"outbox_relay_replayed_at\": \"now\"}",
            ),
            bad("as if a dead letter", "{\"outbox_relay_state\": \"dead\"}"),
            of("almost the relay's", "{\"outbox_relay\": \"x\"}"),
            of("1,000 headers", &many(1_000)),
            bad("1,001 headers", &many(1_001)),
            bad("10,000 headers", &many(10_000)),
            of("a long name", &long(1_024)),
            bad("a longer name", &long(1_025)),
            Row {
                parked: Some("too_large"),
                ..of("a long value", &too_long)
            },
        ];
        for (name, text) in odd_texts() {
            let quoted = serde_json::to_string(&text).unwrap();
            let headers = format!("{{{quoted}: {quoted}, \"canary\": \"{CANARY}\"}}");
            let name = format!("name and value: {name}");
            common.push(match text.len() > 1_024 {
                true => bad(&name, &headers),
                false => of(&name, &headers),
            });
        }
        let around = |levels| format!("{{\"deep\": {}}}", nested(levels));
        let mut jsonb = common.clone();
        jsonb.push(of("jsonb: deep", &deepest(world, "jsonb", around).await));

        // `json` is kept as it was written, so more can stand in it
        let mut json = common;
        json.push(of("json: deep", &deepest(world, "json", around).await));
        json.push(of(
            "json: a name twice",
            &format!("{{\"a\": 1, \"a\":   \"{CANARY}\"}}"),
        ));
        json.push(bad(
            "json: a NUL in a name",
            &format!("{{\"a\\u0000b\": \"{CANARY}\"}}"),
        ));
        json.push(bad("json: half a character", "{\"a\": \"\\ud800\"}"));
        json.push(bad(
            "json: half a character in a name",
            "{\"\\ud800\": \"a\"}",
        ));
        let with_nul = format!("{{\"a\": \"{CANARY}\\u0000\"}}");
        json.push(Row {
            own_headers: Some(vec![(
                "a".to_owned(),
                Some(format!("{CANARY}\0").into_bytes()),
            )]),
            ..of("json: a NUL in a value", &with_nul)
        });
        json.push(Row {
            payload: Some(format!("\"{}\"", "x".repeat(LIMIT_BYTES))),
            parked: Some("too_large"),
            ..of("json: a NUL in a value, parked", &with_nul)
        });
        let tables = vec![
            (Table::native("jsonb_headers", "jsonb", "jsonb"), jsonb),
            (Table::native("json_headers", "jsonb", "json"), json),
        ];
        publish(world, &[&topic], tables).await;
    });
}
