//! Coming from Debezium: the same bytes, its configuration read, and the day of the change.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use crate::operating::ends;
use crate::support::kafka::Record;
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::writers::{Ledger, one};
use crate::support::{self, World, eventually};

const SOON: Duration = Duration::from_secs(60);

/// What the real router made of rows: tests/vectors/debezium/README.md.
fn vectors() -> Vec<Value> {
    let text = include_str!("vectors/debezium/event_router.json");
    let vectors: Value = serde_json::from_str(text).expect("JSON");
    vectors["tables"].as_array().expect("a list").clone()
}

/// What `config import-debezium` prints of `text`: to stdout, to stderr, and its exit code.
fn imported(world: &World, name: &str, text: &str) -> (String, String, Option<i32>) {
    let file = world.directory.join(name);
    std::fs::write(&file, text).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args(["config", "import-debezium"])
        .arg(&file)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (
        text(output.stdout),
        text(output.stderr),
        output.status.code(),
    )
}

/// The outbox of a table of the vectors, with the config that is made of its connector's, which has `more`.
fn outbox_of(world: &World, table: &Value, more: &[(&str, &str)]) -> Outbox {
    let name = table["table"].as_str().unwrap();
    let mut config = serde_json::json!({
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "table.include.list": format!("public.{name}"),
        "transforms": "outbox",
        "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
    });
    for (option, value) in table["smt"].as_object().unwrap() {
        config[format!("transforms.outbox.{option}")] = value.clone();
    }
    for (setting, value) in more {
        config[*setting] = (*value).into();
    }
    let connector = serde_json::json!({ "name": name, "config": config }).to_string();
    let (toml, left, code) = imported(world, &format!("{name}.json"), &connector);
    assert_eq!(code, Some(0), "{left}");
    let left: Vec<&str> = left
        .lines()
        .filter(|line| !line.contains("bootstrap.servers"))
        .collect();
    assert_eq!(left, Vec::<&str>::new());
    let (_, lines) = toml.split_once("[[outbox]]\n").unwrap();
    let (table, lines) = lines.split_once('\n').unwrap();
    assert_eq!(table, format!("table = \"public.{name}\""));
    let mut outbox = Outbox::new(name, Layout::Debezium, OnPublished::Delete);
    outbox.config = lines.to_owned();
    outbox
}

#[test]
fn records_are_byte_equal_to_those_of_the_event_router() {
    support::run(async |world| {
        let tables = vectors();
        let outboxes: Vec<Outbox> = tables.iter().map(|it| outbox_of(world, it, &[])).collect();
        let mut topics = BTreeSet::new();
        for table in &tables {
            create(world, table).await;
            let rows = table["rows"].as_array().unwrap();
            topics.extend(rows.iter().map(|row| row["topic"].as_str().unwrap()));
        }
        for topic in &topics {
            world.kafka.create_topic(topic, 1, &[]).await;
        }
        let setup = world.relay(&outboxes.iter().collect::<Vec<_>>());
        setup.migrate().await;
        for table in &tables {
            insert(world, table).await;
        }
        let status = setup.until_empty(SOON).await;
        assert!(status.success(), "{status}");

        let mut records: BTreeMap<Vec<u8>, Record> = BTreeMap::new();
        for topic in &topics {
            for record in world.kafka.read_all(topic).await {
                let (_, id) = record.headers[0].clone();
                assert!(records.insert(id.unwrap(), record).is_none());
            }
        }
        let mut compared = 0;
        for table in &tables {
            for row in table["rows"].as_array().unwrap() {
                let id = row["row"][0].as_str().unwrap();
                let ours = &records[id.as_bytes()];
                let mut headers: Vec<_> = (row["headers"].as_array().unwrap().iter())
                    .map(|header| (header[0].as_str().unwrap().to_owned(), bytes(&header[1])))
                    .collect();
                // the one thing that is sent otherwise: docs/debezium.md says so
                if table["table"] == "times" {
                    for (header, cell) in [(1, 5), (2, 6)] {
                        let printed = row["row"][cell].as_str().unwrap().as_bytes().to_vec();
                        assert_ne!(headers[header].1.as_ref(), Some(&printed));
                        headers[header].1 = Some(printed);
                    }
                }
                assert_eq!(ours.topic, row["topic"].as_str().unwrap(), "{row}");
                assert_eq!(ours.key, bytes(&row["key"]), "{row}");
                assert_eq!(ours.value, bytes(&row["value"]), "{row}");
                assert_eq!(ours.headers, headers, "{row}");
                compared += 1;
            }
        }
        assert_eq!((compared, records.len()), (22, 22));
        let topics: Vec<&str> = topics.into_iter().collect();
        world.kafka.delete_topics(&topics).await;
    });
}

/// What the real connector, its router and JsonConverter made of rows.
fn converted() -> Vec<Value> {
    let text = include_str!("vectors/debezium/connector.json");
    let vectors: Value = serde_json::from_str(text).expect("JSON");
    vectors["tables"].as_array().expect("a list").clone()
}

/// Payloads that Debezium sends in spite of what they are, and the relay does not.
const NO_JSON: [&str; 2] = ["'{\"a\": 1} x'", "'{\"a\": 1'"];

/// Compares all rows of the vectors in one of the two formats; how many there are, and how many of them were
/// parked.
async fn compare_converted(world: &World, format: &str, schemas: &str) -> (usize, usize) {
    let mut tables = converted();
    // the expanded ones are compared without schemas, as the relay has them
    tables.retain(|it| format == "json" || it["table"] != "j_expanded");
    let begin = world.topic("json");
    let replacement = format!("{begin}.${{routedByValue}}");
    let more = [
        (
            "transforms.outbox.route.topic.replacement",
            replacement.as_str(),
        ),
        (
            "key.converter",
            "org.apache.kafka.connect.json.JsonConverter",
        ),
        ("key.converter.schemas.enable", schemas),
        (
            "value.converter",
            "org.apache.kafka.connect.json.JsonConverter",
        ),
        ("value.converter.schemas.enable", schemas),
        (
            "header.converter",
            "org.apache.kafka.connect.json.JsonConverter",
        ),
        ("header.converter.schemas.enable", schemas),
    ];
    let mut outboxes: Vec<Outbox> = Vec::new();
    let mut topics = BTreeSet::new();
    for table in &tables {
        let mut outbox = outbox_of(world, table, &more);
        outbox.config.push_str("on_rejected = \"dead_letter\"\n");
        outboxes.push(outbox);
        world.execute(table["create"].as_str().unwrap()).await;
        let rows = table["rows"].as_array().unwrap().iter();
        topics.extend(rows.filter_map(|row| row["topic"].as_str()));
    }
    let own = |topic: &str| topic.replace("outbox.event", &begin);
    for topic in &topics {
        world.kafka.create_topic(&own(topic), 1, &[]).await;
    }
    let setup = world.relay(&outboxes.iter().collect::<Vec<_>>());
    setup.migrate().await;
    for row in tables.iter().flat_map(|it| it["rows"].as_array().unwrap()) {
        world.execute(row["insert"].as_str().unwrap()).await;
    }
    if format == "json" {
        world.expect_errors("park");
    }
    let status = setup.until_empty(SOON).await;
    assert_eq!(status.code(), Some(if format == "json" { 75 } else { 0 }));

    let mut records: BTreeMap<String, Record> = BTreeMap::new();
    for topic in &topics {
        for record in world.kafka.read_all(&own(topic)).await {
            let id = record.headers[0].1.clone().unwrap();
            assert!(
                records
                    .insert(String::from_utf8(id).unwrap(), record)
                    .is_none()
            );
        }
    }
    let (mut rows, mut parked_rows) = (0, 0);
    let text = |value: &Value| value.as_str().map(|text| text.as_bytes().to_vec());
    for row in tables.iter().flat_map(|it| it["rows"].as_array().unwrap()) {
        rows += 1;
        let insert = row["insert"].as_str().unwrap();
        if row["error"].is_string() || NO_JSON.iter().any(|it| insert.contains(it)) {
            let (_, id) = insert.split_once("values ('").unwrap();
            let why = format!(
                "select count(*) from outbox_relay.parked where event_id = '{}' and state = 'dead'
                    and reason_class = 'bad_payload'",
                id.split_at(36).0
            );
            assert_eq!(world.number(&why).await, 1, "{insert}");
            parked_rows += 1;
            continue;
        }
        let expected = &row[format];
        let id = expected["headers"][0][1].as_str().unwrap();
        let ours = records
            .remove(id)
            .unwrap_or_else(|| panic!("{insert}: {id}"));
        assert_eq!(ours.topic, own(row["topic"].as_str().unwrap()), "{insert}");
        assert_eq!(ours.key, text(&expected["key"]), "{insert}");
        assert_eq!(
            ours.value.map(|it| String::from_utf8(it).unwrap()),
            expected["value"].as_str().map(str::to_owned),
            "{insert}"
        );
        let headers = expected["headers"].as_array().unwrap().iter();
        let headers: Vec<_> = headers
            .map(|it| (it[0].as_str().unwrap().to_owned(), text(&it[1])))
            .collect();
        assert_eq!(ours.headers, headers, "{insert}");
    }
    assert!(records.is_empty());
    let topics: Vec<String> = topics.into_iter().map(own).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    world.kafka.delete_topics(&topics).await;
    (rows, parked_rows)
}

#[test]
fn records_are_byte_equal_to_those_of_json_converter_without_schemas() {
    support::run(async |world| {
        let compared = compare_converted(world, "json", "false").await;
        assert_eq!(compared, (69, 11));
    });
}

#[test]
fn records_are_byte_equal_to_those_of_json_converter_with_schemas() {
    support::run(async |world| {
        let compared = compare_converted(world, "json_with_schema", "true").await;
        assert_eq!(compared, (20, 0));
    });
}

#[test]
fn formats_are_kept_by_parking_and_read_by_tail_and_inspect_and_replayed() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Debezium, OnPublished::Archive);
        let topic = world.topic("formats");
        outbox.config = format!(
            "topic = \"{topic}\"\nheaders = {{ event_id = \"id\", event_type = \"kind\", seq = \"seq\" }}\n\
             tombstone_on_empty_payload = true\n\
             formats = {{ key = \"json_with_schema\", value = \"json\", headers = \"json_with_schema\" }}\n"
        );
        world
            .execute(
                "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid bigint not null,
                   type text not null, payload text)",
            )
            .await;
        world
            .kafka
            .create_topic(&topic, 4, &[("max.message.bytes", "2000")])
            .await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let id = |n: u128| Uuid::from_u128(n).to_string();
        // what does not get small by being compressed
        let large = "(select string_agg(md5(i::text), '') from generate_series(1, 300) i)";
        // the second waits behind the first, which is too large
        for (n, key, payload) in [(1, 7, large), (2, 7, "' '"), (3, 8, "'a'")] {
            world
                .execute(&format!(
                    "insert into outbox values ('{}', 'Order', {key}, 'Filled', {payload})",
                    id(n)
                ))
                .await;
        }
        world.expect_errors("park");
        let relay = setup.run();
        eventually(SOON, "all is published or parked", async || {
            outbox.pending(world).await == 0
        })
        .await;
        assert_eq!(parked(world).await, 2);
        ends(&setup, &["parked", "skip", "--key", "7", "--yes"], 0).await;
        eventually(SOON, "the one behind is published", async || {
            world.kafka.count(&topic).await == 2
        })
        .await;
        relay.stop().await;
        let all = world.kafka.read_all(&topic).await;
        let of = |key: &str| {
            let key = format!(
                "{{\"schema\":{{\"type\":\"int64\",\"optional\":false}},\"payload\":{key}}}"
            );
            let its = |record: &&Record| record.key.as_deref() == Some(key.as_bytes());
            all.iter().find(its).expect("a record of that key")
        };
        assert_eq!(of("7").value, None, "a tombstone, after parking too");
        assert_eq!(of("8").value.as_deref(), Some(&b"\"a\""[..]));
        let uuid = "{\"type\":\"string\",\"optional\":false,\"name\":\"io.debezium.data.Uuid\",\"version\":1}";
        for (key, n) in [("7", 2), ("8", 3)] {
            let wrapped = |schema: &str, payload: &str| {
                Some(format!("{{\"schema\":{schema},\"payload\":{payload}}}").into_bytes())
            };
            let text = "{\"type\":\"string\",\"optional\":false}";
            let headers = [
                ("id".to_owned(), wrapped(uuid, &format!("\"{}\"", id(n)))),
                ("kind".to_owned(), wrapped(text, "\"Filled\"")),
                (
                    "seq".to_owned(),
                    wrapped("{\"type\":\"int64\",\"optional\":false}", &n.to_string()),
                ),
            ];
            assert_eq!(of(key).headers, headers);
        }
        let tailed = ends(
            &setup,
            &["tail", "--json", "--key", "8", "--type", "Filled"],
            0,
        )
        .await;
        let lines: Vec<Value> = (tailed.lines())
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line["offset"].is_number())
            .collect();
        assert_eq!(lines.len(), 1, "{tailed}");
        assert_eq!(lines[0]["event_id"], id(3).as_str());
        let inspected = ends(&setup, &["inspect", "--json", &id(3)], 0).await;
        assert!(inspected.contains("\"found\":true"), "{inspected}");
        ends(&setup, &["replay", "--key", "8", "--yes"], 0).await;
        let again = world.kafka.read_all(&topic).await;
        let copies: Vec<&Record> = (again.iter())
            .filter(|record| record.key == of("8").key)
            .collect();
        assert_eq!(copies.len(), 2);
        assert_eq!(copies[0].value, copies[1].value);
        assert_eq!(copies[0].partition, copies[1].partition);
        assert_eq!(copies[1].headers[..3], copies[0].headers[..]);
    });
}

#[test]
fn a_column_that_has_no_such_format_is_refused_at_the_start() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Debezium, OnPublished::Delete);
        outbox.config =
            "headers_from = [\"at\", \"n\"]\nformats = { headers = \"json\" }".to_owned();
        world
            .execute(
                "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null,
                   type text not null, payload text, at timestamptz, n int default 1 + 1)",
            )
            .await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        world.expect_errors("JsonConverter");
        world.expect_errors("default");
        let mut relay = setup.run();
        let status = relay.wait_exit(SOON).await;
        assert_eq!(status.code(), Some(78));
        let said = relay.lines().join("\n");
        assert!(
            said.contains("the column at is timestamp with time zone"),
            "{said}"
        );
        assert!(
            said.contains("the column n has the default (1 + 1)"),
            "{said}"
        );
        let checked = ends(&setup, &["check"], 1).await;
        assert!(
            checked.contains("the column at is timestamp with time zone"),
            "{checked}"
        );
    });
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let decode = |text| base64::engine::general_purpose::STANDARD.decode(text);
    value.as_str().map(|text| decode(text).expect("base64"))
}

fn columns(table: &Value) -> Vec<(&str, &str)> {
    let columns = table["columns"].as_array().unwrap().iter();
    columns
        .map(|it| (it[0].as_str().unwrap(), it[1].as_str().unwrap()))
        .collect()
}

async fn create(world: &World, table: &Value) {
    let columns: Vec<String> = (columns(table).iter())
        .map(|(name, of_type)| {
            let needed = ["aggregatetype", "type", "kind", "name", "id", "uid"].contains(name);
            format!(
                "\"{name}\" {of_type}{}",
                if needed { " not null" } else { "" }
            )
        })
        .collect();
    let name = table["table"].as_str().unwrap();
    let sql = format!(
        "create table {name} ({}, primary key ({}))",
        columns.join(", "),
        key(table)
    );
    world.execute(&sql).await;
}

fn key(table: &Value) -> &str {
    columns(table)[0].0
}

async fn insert(world: &World, table: &Value) {
    let (name, columns) = (table["table"].as_str().unwrap(), columns(table));
    let names: Vec<String> = columns
        .iter()
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    let places = columns
        .iter()
        .enumerate()
        .map(|(i, (_, of_type))| match *of_type {
            "bytea" => format!("convert_to(${}, 'UTF8')", i + 1),
            of_type => format!("${}::text::{of_type}", i + 1),
        });
    let places: Vec<String> = places.collect();
    let sql = format!(
        "insert into {name} ({}) values ({})",
        names.join(", "),
        places.join(", ")
    );
    for row in table["rows"].as_array().unwrap() {
        let mut query = sqlx::query(AssertSqlSafe(sql.clone()));
        for cell in row["row"].as_array().unwrap() {
            query = query.bind(cell.as_str().map(str::to_owned));
        }
        query.execute(&world.pool).await.expect("a row");
    }
}

/// A table by names of its own: what its config says, and the statement that makes it.
const OWN_COLUMNS: &str = "\
layout = { id = \"Uid\", aggregate_id = \"key\", aggregate_type = \"order\", event_type = \"name\", payload = \"body\", headers = \"extra\", created_at = \"at\" }
topic = \"${tenant:lower}.${order}\"
headers = { event_id = \"id\", event_type = \"kind\", aggregate_type = \"of\", seq = \"version\", created_at = \"written\" }
headers_from = [\"tenant\", \"n:header:count\"]
on_published = \"archive\"";
const OWN_TABLE: &str = "create table outbox (
    \"Uid\" uuid primary key, key text, \"order\" text not null, name text not null, body jsonb, extra jsonb,
    at timestamptz not null, tenant text, n int)";

#[test]
fn a_table_of_own_columns_keeps_its_records_through_parking_and_its_history() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Debezium, OnPublished::Archive);
        let tenant = world.topic("Acme");
        outbox.config = OWN_COLUMNS.to_owned();
        world.execute(OWN_TABLE).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let topic = format!("{}.cart", tenant.to_lowercase());
        world.kafka.create_topic(&topic, 1, &[]).await;
        let row = |n: i32, key: &str, tenant: Option<&str>, extra: &str| {
            let tenant = tenant.map_or_else(|| "null".to_owned(), |it| format!("'{it}'"));
            let id = Uuid::from_u128(u128::try_from(n).unwrap());
            format!(
                "insert into outbox values ('{id}', '{key}', 'cart', 'Filled', '{{\"n\": {n}}}', {extra},
                   '2024-01-02 03:04:05.6+00', {tenant}, {n})"
            )
        };
        world.expect_errors("park");
        // the second of its aggregate cannot be routed, and the third waits behind it, never a record yet
        for sql in [
            row(1, "a", Some(&tenant), "null"),
            row(2, "a", None, "null"),
            row(3, "a", Some(&tenant), "'{\"trace\": \"x\"}'"),
            row(4, "b", Some(&tenant), "'{\"kind\": \"forged\"}'"),
            row(5, "c", Some(&tenant), "null"),
        ] {
            world.execute(&sql).await;
        }
        let relay = setup.run();
        eventually(SOON, "all is published or parked", async || {
            outbox.pending(world).await == 0
        })
        .await;
        assert_eq!(parked(world).await, 3);
        let why = "select count(*) from outbox_relay.parked
                    where (state = 'blocked' and reason like '%tenant is null%')
                       or (state = 'blocked' and reason like '%`kind`%') or state = 'behind'";
        assert_eq!(world.number(why).await, 3);
        ends(&setup, &["parked", "skip", "--key", "a", "--yes"], 0).await;
        let archived = "select count(*) from outbox_relay.history_public_outbox";
        eventually(SOON, "the one behind is published", async || {
            world.number(archived).await == 3
        })
        .await;
        relay.stop().await;

        let records = world.kafka.read_all(&topic).await;
        let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
        for (record, n, key) in [(0, 1, "a"), (1, 5, "c"), (2, 3, "a")] {
            let record = &records[record];
            let id = Uuid::from_u128(n).to_string();
            let mut expected = vec![
                header("id", &id),
                header("kind", "Filled"),
                header("of", "cart"),
                header("version", &n.to_string()),
                header("written", "2024-01-02T03:04:05.600000Z"),
                header("tenant", &tenant),
                header("count", &n.to_string()),
            ];
            if n == 3 {
                expected.push(header("trace", "x"));
            }
            assert_eq!(record.headers, expected);
            assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
            assert_eq!(record.value, Some(format!("{{\"n\": {n}}}").into_bytes()));
        }
        assert_eq!(records.len(), 3);
        // the history has them as the table had them, the parked one too
        let same = "select count(*) from outbox_relay.history_public_outbox
                     where \"order\" = 'cart' and name = 'Filled' and n = seq and body = jsonb_build_object('n', n)
                       and at = '2024-01-02 03:04:05.6+00' and tenant is not null
                       and extra is not distinct from case n when 3 then '{\"trace\": \"x\"}'::jsonb end";
        assert_eq!(world.number(same).await, 3);
        let pending = "select pending from outbox_relay.backlog where outbox = 'public.outbox'";
        assert_eq!(world.number(pending).await, 0);
        // and a replay makes the same of them, but for the header that says so
        ends(&setup, &["replay", "--key", "a", "--yes"], 0).await;
        let again = world.kafka.read_all(&topic).await;
        assert_eq!(again.len(), 5);
        for (copy, first) in [(&again[3], &records[0]), (&again[4], &records[2])] {
            assert_eq!(copy.headers[..first.headers.len()], first.headers[..]);
            assert_eq!((&copy.key, &copy.value), (&first.key, &first.value));
        }
    });
}

#[test]
fn rows_without_a_time_are_numbered_in_the_order_they_were_inserted() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Debezium, OnPublished::Delete);
        outbox.create(world).await;
        let aggregate_type = world.aggregate_with_topic("Order", 1).await;
        for n in 1..=30 {
            let gone = one(world, &outbox, &aggregate_type, "gone", n).await;
            world
                .execute(&format!("delete from outbox where id = '{}'", gone.id))
                .await;
        }
        let mut ledger = Ledger::default();
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        // their places are free now, at the table's beginning: what comes last lies first
        world.execute("vacuum outbox").await;
        for n in 21..=40 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        let inverted = "select count(*) from outbox where (payload->>'n')::int > 20
                           and ctid < (select min(ctid) from outbox where (payload->>'n')::int <= 20)";
        assert!(
            world.number(inverted).await > 0,
            "the table lies as it was written"
        );
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        assert!(setup.until_empty(SOON).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_connectors_configuration_is_carried_over_and_what_is_not_is_said() {
    support::run(async |world| {
        let properties = "\
# Debezium Server
debezium.sink.type=kafka
debezium.sink.kafka.producer.bootstrap.servers=kafka:9092
debezium.sink.kafka.producer.compression.type=zstd
debezium.sink.kafka.producer.acks=all
debezium.sink.kafka.producer.sasl.jaas.config=x required password=\"canary-4711\";
debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector
debezium.source.database.hostname=db.shop
debezium.source.database.port=5433
debezium.source.database.user=relay user
debezium.source.database.password=canary-4711
debezium.source.database.dbname=shop
debezium.source.database.sslmode=require
debezium.source.table.include.list=public\\\\.outbox,Shop.Out
debezium.source.slot.name=dbz
debezium.format.key=json
debezium.format.key.schemas.enable=false
debezium.format.key.decimal.format=NUMERIC
debezium.format.value=simplestring
debezium.transforms=unwrap,outbox
debezium.transforms.unwrap.type=io.debezium.transforms.ExtractNewRecordState
debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
debezium.transforms.outbox.route.topic.replacement=shop.$${routedByValue}.events
debezium.transforms.outbox.table.expand.json.payload=true
debezium.transforms.outbox.table.fields.additional.placement=tenant:header,\\
    at:envelope,part:partition
";
        let (toml, left, code) = imported(world, "application.properties", properties);
        assert_eq!(code, Some(0), "{left}");
        assert!(
            !toml.contains("canary-4711") && !left.contains("canary-4711"),
            "{toml}{left}"
        );
        let expected = "\
# From a configuration of Debezium. What could not be carried over was said on stderr.

[database]
url = \"postgres://relay%20user@db.shop:5433/shop?sslmode=require\"
# password_file = \"/run/secrets/database-password\"

[kafka]
brokers = \"kafka:9092\"

[kafka.properties]
\"compression.type\" = \"zstd\"

[[outbox]]
table = \"public.outbox\"
layout = \"debezium\"
# Debezium leaves this to the service; rows that the service deletes itself are never seen
on_published = \"delete\"
topic = \"shop.${aggregate_type}.events\"
headers = { event_id = \"id\" }
headers_from = [\"tenant:header\"]
formats = { key = \"json\", headers = \"json_with_schema\" }
";
        assert!(toml.starts_with(expected), "{toml}");
        assert!(toml.contains("table = '\"Shop\".\"Out\"'"), "{toml}");
        let said: Vec<&str> = left
            .lines()
            .map(|line| line.trim_start_matches("not carried over: "))
            .collect();
        for begin in [
            "transforms.unwrap: the relay has no transforms",
            "database.password: passwords are not printed",
            "producer.override.acks: ",
            "producer.override.sasl.jaas.config: it holds a password",
            "transforms.outbox.table.fields.additional.placement: `at:envelope`: ",
            "transforms.outbox.table.fields.additional.placement: `part:partition`: ",
            "transforms.outbox.table.expand.json.payload: a payload is expanded only where",
            "format.key.decimal.format: JsonConverter's own default is kept",
            "slot.name: the relay reads the table",
            "sink.type: ",
        ] {
            assert!(
                said.iter().any(|line| line.starts_with(begin)),
                "{begin}\n{left}"
            );
        }
        assert_eq!(said.len(), 10, "{left}");
        // what is printed is a config
        let file = world.directory.join("imported.toml");
        std::fs::write(&file, &toml).expect("a file");
        let check = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
            .args(["config", "check", "--config"])
            .arg(&file)
            .env_clear()
            .output()
            .expect("the program starts");
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stderr)
        );

        for (text, why) in [
            ("{", "it is no JSON"),
            ("", "no settings"),
            (
                "{\"connector.class\": \"io.debezium.connector.mysql.MySqlConnector\"}",
                "Postgres",
            ),
            ("{\"transforms\": \"\"}", "EventRouter"),
        ] {
            let (_, said, code) = imported(world, "wrong", text);
            assert_eq!(code, Some(78), "{said}");
            assert!(said.contains(why), "{said}");
        }
    });
}

/// The statements of the step of docs/debezium.md that deletes what Debezium has published.
fn trimming() -> Vec<String> {
    let text = include_str!("../docs/debezium.md");
    let (_, after) = text
        .split_once("```sql\nbegin isolation")
        .expect("the step");
    let (block, _) = after.split_once("```").expect("its end");
    let statements = format!("begin isolation{block}");
    let lines = statements.lines().filter(|line| !line.starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let statements = text.split(';').map(str::trim).filter(|it| !it.is_empty());
    statements.map(str::to_owned).collect()
}

/// What stands in for Debezium: it reads the log of a slot, and has told the slot how far, later.
struct Reader {
    slot: String,
    published: BTreeSet<Uuid>,
}

impl Reader {
    /// Publishes all that there is.
    async fn publish(&mut self, world: &World) {
        let sql = format!(
            "select substring(data from 'id\\[uuid\\]:''([0-9a-f-]+)''')::uuid
               from pg_logical_slot_peek_changes('{}', null, null)
              where data like 'table public.outbox: INSERT:%'",
            self.slot
        );
        let ids: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&world.pool)
            .await
            .expect("a log");
        self.published.extend(ids);
    }

    /// Tells the slot that it has published up to `lsn`.
    async fn confirm(&self, world: &World, lsn: &str) {
        let sql = format!(
            "select pg_replication_slot_advance('{}', '{lsn}')::text",
            self.slot
        );
        world.execute(&sql).await;
    }
}

async fn lsn(world: &World) -> String {
    let sql = "select pg_current_wal_insert_lsn()::text";
    sqlx::query_scalar(sql)
        .fetch_one(&world.pool)
        .await
        .expect("Postgres answers")
}

#[test]
fn a_cutover_by_the_book_loses_nothing_and_repeats_what_was_not_confirmed() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Debezium, OnPublished::Delete);
        outbox.create(world).await;
        let aggregate_type = world.aggregate_with_topic("Order", 1).await;
        let mut debezium = Reader {
            slot: format!("cut_{}", std::process::id()),
            published: BTreeSet::new(),
        };
        let made = format!(
            "select pg_create_logical_replication_slot('{}', 'test_decoding')::text",
            debezium.slot
        );
        world.execute(&made).await;
        let mut written = Vec::new();
        for n in 1..=20 {
            written.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;

        let mut operator = PgConnection::connect(&world.database_url)
            .await
            .expect("a connection");
        let statements = trimming();
        let [begin, seen, published, delete, commit] = statements.as_slice() else {
            panic!("{statements:?}");
        };
        for statement in [begin] {
            sqlx::raw_sql(AssertSqlSafe(statement.clone()))
                .execute(&mut operator)
                .await
                .expect("begun");
        }
        let seen: String =
            sqlx::query_scalar(AssertSqlSafe(seen.replace(" as seen", "::text as seen")))
                .fetch_one(&mut operator)
                .await
                .expect("how far the log goes");
        // the service goes on
        for n in 21..=25 {
            written.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        let published = published
            .replace("0/0", &seen)
            .replace("'outbox'", &format!("'{}'", debezium.slot));
        let ask = || AssertSqlSafe(published.clone());
        let yet: bool = sqlx::query_scalar(ask())
            .fetch_one(&mut operator)
            .await
            .expect("a slot");
        assert!(!yet, "nothing was confirmed so far");
        debezium.publish(world).await;
        debezium.confirm(world, &seen).await;
        let now: bool = sqlx::query_scalar(ask())
            .fetch_one(&mut operator)
            .await
            .expect("a slot");
        assert!(now);
        for statement in [delete, commit] {
            sqlx::raw_sql(AssertSqlSafe(statement.clone()))
                .execute(&mut operator)
                .await
                .expect("deleted");
        }
        // Debezium publishes three more and tells the slot of none, and is stopped
        for n in 26..=28 {
            written.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        debezium.publish(world).await;
        let stopped_at = lsn(world).await;
        for n in 29..=35 {
            written.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        assert!(setup.until_empty(SOON).await.success());

        let mut relayed: Vec<Uuid> = Vec::new();
        for record in world.kafka.read_all(&written[0].topic).await {
            let (_, id) = &record.headers[0];
            relayed.push(
                std::str::from_utf8(id.as_ref().unwrap())
                    .unwrap()
                    .parse()
                    .unwrap(),
            );
        }
        let expected: Vec<Uuid> = written[20..].iter().map(|event| event.id).collect();
        assert_eq!(
            relayed, expected,
            "what Debezium had not confirmed, in its order, and no row twice"
        );
        let both = relayed
            .iter()
            .filter(|id| debezium.published.contains(id))
            .count();
        assert_eq!(
            both, 8,
            "published up to {stopped_at} and confirmed up to {seen}"
        );
        let all: BTreeSet<Uuid> = relayed.iter().chain(&debezium.published).copied().collect();
        assert_eq!(all.len(), written.len(), "none is lost");
        let dropped = format!("select pg_drop_replication_slot('{}')::text", debezium.slot);
        world.execute(&dropped).await;
    });
}
