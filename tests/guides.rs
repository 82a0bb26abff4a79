//! The pages that tell a newcomer what to type: their commands are run as they stand there.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::process::Command;
use uuid::Uuid;

use crate::examples::{path, prepared_of};
use crate::operating::{SOON, ends};
use crate::support::kafka::blocking;
use crate::support::outbox::Outbox;
use crate::support::{self, Own, World, local, topic_of};

/// A fenced block of a page.
struct Block {
    /// What it is said to be.
    language: String,
    text: String,
}

/// The fenced blocks of a page, in its order.
fn blocks(page: &str) -> Vec<Block> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let page = fs::read_to_string(&file).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block {
                    language: language.to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => writeln!(block.text, "{line}").unwrap(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "every block ends");
    blocks
}

/// The one block of SQL that has `part` in it.
fn sql<'a>(blocks: &'a [Block], part: &str) -> &'a str {
    let mut found = blocks
        .iter()
        .filter(|block| block.language == "sql" && block.text.contains(part));
    let (one, more) = (found.next(), found.next());
    let one = one.unwrap_or_else(|| panic!("no block has {part}"));
    assert!(more.is_none(), "{part} is in one block");
    &one.text
}

/// A folder with Kafka's command-line tools, as a distribution of Kafka has them.
async fn kafka_tools() -> Result<PathBuf, String> {
    let version = local::KAFKA_VERSION;
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>
         <groupId>local</groupId><artifactId>test-kafka-tools</artifactId><version>1</version>
         <dependencies><dependency><groupId>org.apache.kafka</groupId>
         <artifactId>kafka-tools</artifactId><version>{version}</version></dependency></dependencies></project>"
    );
    let files = [("pom.xml".to_owned(), pom)];
    prepared_of("kafka-tools", &files, async |kept| {
        local::copy_jars(kept).await?;
        for (name, class) in [
            ("kafka-topics.sh", "TopicCommand"),
            ("kafka-console-consumer.sh", "consumer.ConsoleConsumer"),
        ] {
            let file = kept.join(name);
            let script = format!(
                "#!/bin/sh\nexec java -Xmx128m -cp '{}/*' org.apache.kafka.tools.{class} \"$@\"\n",
                path(&kept.join("jars"))
            );
            fs::write(&file, script).map_err(|error| error.to_string())?;
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(file, executable).map_err(|error| error.to_string())?;
        }
        Ok(())
    })
    .await
}

/// The page as one script: its commands, and its SQL by psql. The two addresses that the page has the reader
/// set are the test's.
fn script(blocks: &[Block], world: &World) -> String {
    let mut script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n".to_owned();
    let mut set = 0;
    for block in blocks {
        match block.language.as_str() {
            "sh" => {
                for line in block.text.lines() {
                    let ours = [
                        ("export DATABASE_URL=", &world.database_url),
                        ("export KAFKA_BROKERS=", &world.kafka.brokers),
                    ];
                    let ours = ours.iter().find(|(export, _)| line.starts_with(export));
                    match ours {
                        Some((export, value)) => {
                            set += 1;
                            writeln!(script, "{export}'{value}'").unwrap();
                        }
                        None => writeln!(script, "{line}").unwrap(),
                    }
                }
            }
            "sql" => writeln!(
                script,
                "psql -X -q -v ON_ERROR_STOP=1 \"$DATABASE_URL\" <<'SQL'\n{}SQL",
                block.text
            )
            .unwrap(),
            _ => {}
        }
    }
    assert_eq!(set, 2, "the page says where both addresses go");
    script
}

#[test]
fn whoever_follows_the_first_page_has_an_event_consumed() {
    let mut tools = Err(String::new());
    support::block_on(async { tools = kafka_tools().await });
    let tools = match tools {
        Ok(tools) => tools,
        Err(why) => return support::skip(&why),
    };
    // a broker of its own, for the topic's name is the page's
    support::run_with(Own::KAFKA, async |world| {
        let blocks = blocks("docs/getting-started.md");
        let relay = Path::new(env!("CARGO_BIN_EXE_outbox-relay"));
        let path = format!(
            "{}:{}:{}",
            path(&tools),
            path(relay.parent().unwrap()),
            std::env::var("PATH").unwrap()
        );
        let mut following = Command::new("bash");
        following
            .arg("-c")
            .arg(script(&blocks, world))
            .env_clear()
            .env("PATH", path)
            .envs(std::env::var_os("HOME").map(|home| ("HOME", home)))
            // many relays run on this machine at once
            .env("OUTBOX_RELAY__HTTP__LISTEN", "off")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let followed = following.output().await.unwrap();
        let said = String::from_utf8_lossy(&followed.stdout);
        let complained = String::from_utf8_lossy(&followed.stderr);
        assert!(
            followed.status.success(),
            "{}\n{said}\n{complained}",
            followed.status
        );
        // what the page says that the consumer prints
        let printed = blocks.iter().find(|block| block.language == "text");
        let printed = printed.unwrap().text.trim_end();
        let (first, last) = printed.split_once('…').unwrap();
        let arrived: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with(first) && line.ends_with(last))
            .collect();
        assert_eq!(arrived.len(), 1, "{printed} in {said}\n{complained}");
        assert_eq!(world.kafka.count("order-events").await, 1);
        let marked = "select count(*) from outbox where published_at is not null";
        assert_eq!(world.number(marked).await, 1);
        assert_eq!(world.number("select count(*) from outbox").await, 1);
    });
}

/// A consumer that follows the page, of `group`: for each record, the `effect` and then the offset. It is killed
/// again and again, before its commit and between the commit and the offset. How often, when it has come to
/// the end.
async fn consume(world: &World, topic: &str, group: &str, effect: &str) -> u32 {
    let partitions = world.kafka.partitions(topic).await;
    let left = world.kafka.count(topic).await;
    let (mut attempts, mut deaths, mut done) = (0_u32, 0, HashMap::new());
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment
            .add_partition_offset(topic, partition, Offset::Stored)
            .unwrap();
    }
    'life: loop {
        let consumer = Arc::new(world.kafka.member(group));
        consumer.assign(&assignment).unwrap();
        let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
        while done.values().sum::<i64>() < left {
            let polling = Arc::clone(&consumer);
            let record = blocking(move || {
                let record = polling.poll(Duration::from_millis(500))?;
                Some(record.unwrap().detach())
            });
            let Some(record) = record.await else {
                continue;
            };
            let header = record.headers().unwrap().get(0);
            assert_eq!(header.key, "event_id");
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            let mut transaction = connection.begin().await.unwrap();
            sqlx::query(AssertSqlSafe(effect.to_owned()))
                .bind(text(header.value))
                .bind(text(record.key()))
                .bind(text(record.payload()))
                .execute(&mut *transaction)
                .await
                .unwrap();
            attempts += 1;
            if attempts % 4 == 1 {
                // without a word to the server
                std::mem::forget(transaction);
                deaths += 1;
                continue 'life;
            }
            transaction.commit().await.unwrap();
            if attempts % 4 == 3 {
                deaths += 1;
                continue 'life;
            }
            let mut next = TopicPartitionList::new();
            next.add_partition_offset(
                topic,
                record.partition(),
                Offset::Offset(record.offset() + 1),
            )
            .unwrap();
            let committing = Arc::clone(&consumer);
            blocking(move || committing.commit(&next, CommitMode::Sync).unwrap()).await;
            done.insert(record.partition(), record.offset() + 1);
        }
        return deaths;
    }
}

#[test]
fn a_consumer_that_is_killed_again_and_again_does_each_thing_once_and_in_order() {
    const ORDERS: usize = 3;
    const EVENTS: usize = 5;
    support::run(async |world| {
        let page = blocks("docs/consuming.md");
        for table in ["create table processed_events", "create table invoices"] {
            world.execute(sql(&page, table)).await;
        }
        let (setup, order) = Outbox::classic().prepare(world).await;
        let ids: Vec<Uuid> = (0..ORDERS).map(|_| Uuid::new_v4()).collect();
        for n in 1..=EVENTS {
            for id in &ids {
                let total = format!("{{\"total\": {n}}}");
                sqlx::query("select outbox_relay.emit($1, $2, 'OrderPaid', $3)")
                    .bind(&order)
                    .bind(id)
                    .bind(total)
                    .execute(&world.pool)
                    .await
                    .unwrap();
            }
        }
        assert!(setup.until_empty(SOON).await.success());
        // some arrive a second time, after newer ones of their keys
        ends(&setup, &["replay", "--since", "1h", "--yes"], 0).await;
        assert!(setup.until_empty(SOON).await.success());
        let topic = topic_of(&order);
        assert_eq!(world.kafka.count(&topic).await, 30);

        let group = world.topic("invoicing");
        let deaths = consume(world, &topic, &group, sql(&page, "with fresh as")).await;
        assert!(deaths > 10, "it was killed {deaths} times");
        let invoices: Vec<(Uuid, String)> = sqlx::query_as(
            "select order_id, string_agg(total::text, ',' order by number) from invoices group by order_id",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        let invoices: HashMap<_, _> = invoices.into_iter().collect();
        for id in &ids {
            assert_eq!(invoices.get(id).map(String::as_str), Some("1,2,3,4,5"));
        }
        let marks = "select count(*) from processed_events where consumer = 'invoicing'";
        assert_eq!(world.number(marks).await, 15);

        // the marks go when they are old, and none before
        let forget = sql(&page, "delete from processed_events");
        world.execute(forget).await;
        assert_eq!(world.number(marks).await, 15);
        world
            .execute(
                "update processed_events set processed_at = now() - interval '31 days'
                  where event_id in (select event_id from processed_events limit 4)",
            )
            .await;
        world.execute(forget).await;
        assert_eq!(world.number(marks).await, 11);
    });
}

#[test]
fn a_read_model_that_knows_its_versions_tells_a_repeat_from_a_gap() {
    support::run(async |world| {
        let page = blocks("docs/consuming.md");
        world
            .execute(sql(&page, "create table order_summary"))
            .await;
        let (apply, judge) = (
            sql(&page, "insert into order_summary"),
            sql(&page, "select case when"),
        );
        let id = Uuid::new_v4().to_string();
        let mut told = Vec::new();
        for version in [2_i64, 1, 1, 2, 3, 2, 5, 4, 5] {
            let applied = sqlx::query(AssertSqlSafe(apply.to_owned()))
                .bind(&id)
                .bind(version)
                .bind(format!("at {version}"))
                .execute(&world.pool)
                .await
                .unwrap();
            told.push(match applied.rows_affected() {
                1 => "next".to_owned(),
                _ => sqlx::query_scalar::<_, String>(AssertSqlSafe(judge.to_owned()))
                    .bind(&id)
                    .bind(version)
                    .fetch_one(&world.pool)
                    .await
                    .unwrap(),
            });
        }
        let expected = [
            "gap", "next", "repeat", "next", "next", "repeat", "gap", "next", "next",
        ];
        assert_eq!(told, expected);
        let now = "select count(*) from order_summary where version = 5 and status = 'at 5'";
        assert_eq!(world.number(now).await, 1);
    });
}

#[test]
fn progress_by_seq_tells_new_from_late_and_a_reader_waits_for_its_own_write() {
    support::run(async |world| {
        let page = blocks("docs/consuming.md");
        for table in [
            "create table processed_events",
            "create table consumer_progress",
        ] {
            world.execute(sql(&page, table)).await;
        }
        Outbox::classic().create(world).await;
        world.relay(&[&Outbox::classic()]).migrate().await;
        let (write, take) = (sql(&page, "returning seq;"), sql(&page, "with marked as"));
        let (passed, acted) = (
            sql(&page, "select exists (select from consumer_progress"),
            sql(&page, "select exists (select from processed_events"),
        );
        let order = Uuid::new_v4().to_string();
        let mut tokens = Vec::new();
        for _ in 0..3 {
            let seq: i64 = sqlx::query_scalar(AssertSqlSafe(write.to_owned()))
                .bind("Order")
                .bind(&order)
                .bind("{}")
                .fetch_one(&world.pool)
                .await
                .unwrap();
            tokens.push(seq);
        }
        let ids: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let mut told = Vec::new();
        for nth in [0, 0, 2, 1, 2, 1] {
            // who looks before the event is there is told so
            let mut now = Vec::new();
            for _ in 0..2 {
                let passed: bool = sqlx::query_scalar(AssertSqlSafe(passed.to_owned()))
                    .bind("order-events")
                    .bind(&order)
                    .bind(tokens[nth])
                    .fetch_one(&world.pool)
                    .await
                    .unwrap();
                let acted: bool = sqlx::query_scalar(AssertSqlSafe(acted.to_owned()))
                    .bind(ids[nth])
                    .fetch_one(&world.pool)
                    .await
                    .unwrap();
                now.push((passed, acted));
                if now.len() == 1 {
                    let seen: String = sqlx::query_scalar(AssertSqlSafe(take.to_owned()))
                        .bind(ids[nth])
                        .bind("order-events")
                        .bind(&order)
                        .bind(tokens[nth])
                        .fetch_one(&world.pool)
                        .await
                        .unwrap();
                    told.push(seen);
                }
            }
            let (before, after) = (now[0], now[1]);
            assert_eq!(after, (true, true), "{nth}");
            match told.last().map(String::as_str) {
                Some("new") => assert_eq!(before, (false, false), "{nth}"),
                // a later one has passed it, and it was not acted on
                Some("late") => assert_eq!(before, (true, false), "{nth}"),
                _ => assert_eq!(before, (true, true), "{nth}"),
            }
        }
        assert_eq!(told, ["new", "repeat", "new", "late", "repeat", "repeat"]);
    });
}

#[test]
fn the_tables_of_the_page_are_those_of_the_kit() {
    support::run(async |world| {
        let page = blocks("docs/consuming.md");
        let described = async || {
            let columns: Vec<String> = sqlx::query_scalar(
                "select concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default)
                   from information_schema.columns where table_schema = 'public' order by 1",
            )
            .fetch_all(&world.pool)
            .await
            .unwrap();
            let indexes: Vec<String> = sqlx::query_scalar(
                "select indexdef from pg_indexes where schemaname = 'public' order by 1",
            )
            .fetch_all(&world.pool)
            .await
            .unwrap();
            (columns, indexes)
        };
        for table in [
            "create table processed_events",
            "create table consumer_progress",
        ] {
            world.execute(sql(&page, table)).await;
        }
        let of_page = described().await;
        assert_eq!((of_page.0.len(), of_page.1.len()), (7, 3));
        world
            .execute("drop table processed_events, consumer_progress")
            .await;
        world.execute(outbox_relay::consumer::TABLES).await;
        assert_eq!(described().await, of_page);
    });
}
