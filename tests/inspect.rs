//! `inspect`: where one event is.

use serde_json::Value;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::operating::{SOON, command, ends, native};
use crate::support::relay::Setup;
use crate::support::writers::{Ledger, one};
use crate::support::{self, World, eventually, topic_of};

/// What `inspect --json` says of an event.
async fn inspect(setup: &Setup<'_>, id: Uuid, code: i32) -> Value {
    let said = ends(setup, &["inspect", &id.to_string(), "--json"], code).await;
    let line = said.lines().find(|line| line.starts_with("{\"event_id\""));
    let line = line.unwrap_or_else(|| panic!("no JSON in {said}"));
    serde_json::from_str(line).unwrap()
}

async fn backend(world: &World) -> (sqlx::Transaction<'static, sqlx::Postgres>, i32) {
    let mut transaction = world.pool.begin().await.unwrap();
    let pid = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    (transaction, pid)
}

#[test]
fn a_published_event_is_found_where_kafka_has_it() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ledger = Ledger::default();
        let mut ids = Vec::new();
        for n in 1..=5 {
            let event = one(world, &outbox, &aggregate_type, "a", n).await;
            ids.push(event.id);
            ledger.push(event);
            ledger.push(one(world, &outbox, &aggregate_type, "b", n).await);
        }
        assert!(setup.until_empty(SOON).await.success());
        let records = world.kafka.read_all(&topic_of(&aggregate_type)).await;
        let id = ids[3].to_string();
        let is_it = |record: &&support::kafka::Record| {
            let value = Some(id.as_bytes().to_vec());
            record.headers.contains(&("event_id".to_owned(), value))
        };
        let record = records.iter().find(is_it).unwrap();
        let told = inspect(&setup, ids[3], 0).await;
        assert_eq!(told["state"], "published");
        assert_eq!(told["kafka"]["found"], true, "{told}");
        assert_eq!(told["kafka"]["partition"], record.partition);
        assert_eq!(told["kafka"]["offset"], record.offset);

        // bounded, and says so
        let few = ["inspect", &id, "--json", "--records", "1"];
        let said = ends(&setup, &few, 0).await;
        assert!(said.contains("raise --records"), "{said}");
        let nowhere = setup.set("kafka", "brokers", "\"127.0.0.1:9\"");
        let said = ends(&nowhere, &["inspect", &id], 0).await;
        assert!(said.contains("looked false"), "{said}");
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn an_event_that_is_not_published_is_told_with_what_it_waits_for() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ids = Vec::new();
        for n in 1..=3 {
            ids.push(one(world, &outbox, &aggregate_type, "a", n).await.id);
        }
        let told = inspect(&setup, ids[2], 0).await;
        assert_eq!(
            (&told["state"], &told["before"]),
            (&"pending".into(), &2.into())
        );
        assert!(told["lane"].is_number(), "{told}");
        assert_eq!(told["locked_by"], Value::Null);

        let (mut foreign, pid) = backend(world).await;
        let lock = format!("select from outbox where id = '{}' for update", ids[2]);
        sqlx::raw_sql(AssertSqlSafe(lock))
            .execute(&mut *foreign)
            .await
            .unwrap();
        let told = inspect(&setup, ids[2], 0).await;
        assert_eq!(told["state"], "pending");
        assert_eq!(told["locked_by"]["pid"], pid, "{told}");
        foreign.rollback().await.unwrap();

        ends(&setup, &["pause", "--yes"], 0).await;
        let told = inspect(&setup, ids[0], 0).await;
        assert_eq!(told["paused"], "outbox");
        ends(&setup, &["resume", "--yes"], 0).await;

        // one that a relay has in hand, and holds on to
        let frozen = world.relay(&[&outbox]).failpoint("claim_after", "pause");
        let relay = frozen.run();
        let first = ids[0].to_string();
        eventually(SOON, "the relay has the row", async || {
            let (_, said) = command(&setup, &["inspect", &first, "--json"]).await;
            said.contains("\"in_flight\"") && said.contains("outbox-relay")
        })
        .await;
        relay.sigkill();

        let spoil = format!("update outbox set topic = 'no such/topic' where id = '{first}'");
        eventually(SOON, "the row is free", async || {
            let free = format!("select count(*) from (select from outbox where id = '{first}' for update skip locked) t");
            world.number(&free).await == 1
        })
        .await;
        world.execute(&spoil).await;
        world.expect_errors("park");
        assert_eq!(setup.until_empty(SOON).await.code(), Some(75));
        let told = inspect(&setup, ids[0], 0).await;
        assert_eq!(told["state"], "parked");
        assert_eq!(told["parked"]["state"], "blocked");
        assert_eq!(told["parked"]["reason_class"], "illegal_topic");
        let told = inspect(&setup, ids[2], 0).await;
        assert_eq!(told["parked"]["before"], 2, "{told}");
    });
}

#[test]
fn an_event_that_nobody_knows_is_said_to_be_unknown() {
    support::run(async |world| {
        let outbox = native("outbox");
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        let id = Uuid::new_v4().to_string();
        let said = ends(&setup, &["inspect", &id], 78).await;
        assert!(said.contains("outbox-relay migrate"), "{said}");
        setup.migrate().await;
        let told = inspect(&setup, Uuid::new_v4(), 1).await;
        assert_eq!(told["state"], "unknown");
        let said = ends(&setup, &["inspect", &id], 1).await;
        assert!(said.contains("in no outbox, and not parked"), "{said}");
        let said = ends(&setup, &["inspect", "42"], 64).await;
        assert!(said.contains("EVENT_ID"), "{said}");
    });
}
