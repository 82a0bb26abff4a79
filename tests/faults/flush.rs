//! Rows that become visible late, out of order, or before they are safe.

use std::time::Duration;

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use super::postgres_scene::{LONG, Scene, TROUBLE, small_batches};
use crate::support::checker::Fate;
use crate::support::debian::Stage;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::{Event, Ledger, insert};
use crate::support::{self, World, eventually, janitor, short_or_long, topic_of};

/// Nothing is written by the way.
const LAZY: [&str; 3] = [
    "wal_writer_delay=10s",
    "bgwriter_lru_maxpages=0",
    "autovacuum=off",
];

#[test]
fn a_row_that_a_crash_can_take_back_is_not_published_behind_the_flush_barrier() {
    support::run_on(Stage::primary(&LAZY), async |world, stage| {
        for round in 0..short_or_long(3, 30) {
            let left = crash_behind_an_asynchronous_commit(world, stage, round, true).await;
            assert_eq!(left, EVENTS, "what Kafka has is what the crash left");
        }
    });
}

#[test]
fn without_the_flush_barrier_a_crash_takes_back_what_an_asynchronous_commit_wrote() {
    support::run_on(Stage::primary(&LAZY), async |world, stage| {
        // what the README says can happen: if it does not here, the test above tests nothing
        let left = crash_behind_an_asynchronous_commit(world, stage, 0, false).await;
        assert_eq!(left, 0, "published and taken back");
    });
}

const EVENTS: i64 = 5;

/// A service commits some events asynchronously, a relay publishes all of them, and Postgres crashes
/// before the relay can mark them. How many of the rows are there after the crash.
async fn crash_behind_an_asynchronous_commit(
    world: &World,
    stage: &Stage,
    round: usize,
    barrier: bool,
) -> i64 {
    world.expect_errors(TROUBLE);
    let mut outbox = Outbox::new(
        &format!("outbox_{round}"),
        Layout::Classic,
        OnPublished::Mark,
    );
    outbox.config = format!("flush_before_publish = {barrier}");
    outbox.create(world).await;
    let setup = small_batches(world.relay(&[&outbox]));
    setup.migrate().await;
    let aggregate_type = world
        .aggregate_with_topic(&format!("Order{round}"), 1)
        .await;
    let topic = topic_of(&aggregate_type);
    // it lingers between Kafka's acknowledgement and the mark
    let relay = setup.failpoint("settle_before", "sleep(60000)").run();
    relay.wait_line("serving the outbox", LONG).await;
    // whatever was written until here is safe
    world.execute("checkpoint").await;
    let writer = "select pid::bigint from pg_stat_activity where backend_type = 'walwriter'";
    let writer = u32::try_from(world.number(writer).await).unwrap();
    // else it might be quicker than the crash
    janitor::signal(writer, Signal::STOP);

    let mut service = PgConnection::connect(&world.database_url).await.unwrap();
    for sql in ["set synchronous_commit = off", "begin"] {
        sqlx::query(sql).execute(&mut service).await.unwrap();
    }
    let order = Uuid::new_v4().to_string();
    let mut ledger = Ledger::default();
    for n in 1..=EVENTS {
        let event = Event {
            outbox: &outbox,
            aggregate_type: &aggregate_type,
            order: &order,
            n,
            payload: Some("{}"),
            trace: None,
        };
        let mut written = insert(&mut service, event).await.unwrap();
        written.fate = Fate::Committed;
        ledger.push(written);
    }
    sqlx::query("commit").execute(&mut service).await.unwrap();
    eventually(LONG, "Kafka has the events", async || {
        world.kafka.count(&topic).await == EVENTS
    })
    .await;
    stage.clusters[0].server.kill().await;
    relay.sigkill();
    stage.clusters[0].server.start().await;
    let visible = outbox.pending(world).await;
    if barrier {
        let status = small_batches(world.relay(&[&outbox]))
            .until_empty(LONG)
            .await;
        assert!(status.success(), "{status}");
        world.check(&ledger).await.assert_clean(5);
    }
    visible
}

#[test]
fn writers_that_commit_late_and_out_of_order_keep_the_order_of_their_aggregates() {
    support::run(async |world| {
        let scene = Scene::start(world, |setup| setup).await;
        let mut late = Ledger::default();
        for _ in 0..short_or_long(3, 20) {
            // each draws its numbers first and commits last
            let mut open = Vec::new();
            for _ in 0..4 {
                let mut service = PgConnection::connect(&world.database_url).await.unwrap();
                sqlx::query("begin").execute(&mut service).await.unwrap();
                let order = Uuid::new_v4().to_string();
                let events = write(&scene, &mut service, &order, 1..=3).await;
                open.push((service, order, events));
            }
            scene.flows().await;
            for (n, (mut service, order, events)) in open.into_iter().enumerate().rev() {
                if n == 2 {
                    sqlx::query("rollback").execute(&mut service).await.unwrap();
                    events.into_iter().for_each(|event| late.push(event));
                    continue;
                }
                sqlx::query("commit").execute(&mut service).await.unwrap();
                // its numbers are higher, its commit was there before the next one's
                sqlx::query("begin").execute(&mut service).await.unwrap();
                let more = write(&scene, &mut service, &order, 4..=5).await;
                sqlx::query("commit").execute(&mut service).await.unwrap();
                for mut event in events.into_iter().chain(more) {
                    event.fate = Fate::Committed;
                    late.push(event);
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        let (world, ledger) = scene.quiet().await;
        let ledger = Ledger::join([ledger, late]);
        world.check(&ledger).await.assert_clean(0);
    });
}

/// Events `numbers` of an order, in the open transaction of `service`.
async fn write(
    scene: &Scene<'_>,
    service: &mut PgConnection,
    order: &str,
    numbers: std::ops::RangeInclusive<i64>,
) -> Vec<support::checker::Written> {
    let mut events = Vec::new();
    for n in numbers {
        let event = Event {
            outbox: &scene.outbox,
            aggregate_type: &scene.aggregate_type,
            order,
            n,
            payload: Some("{}"),
            trace: None,
        };
        events.push(insert(service, event).await.unwrap());
    }
    events
}

#[test]
fn a_transaction_that_stays_open_for_long_delays_nobody() {
    support::run(async |world| {
        let scene = Scene::start(world, |setup| setup).await;
        // it pins what vacuum may clear, and has an event of its own that nobody may see
        let mut long = PgConnection::connect(&world.database_url).await.unwrap();
        let isolation = "begin isolation level repeatable read";
        sqlx::query(isolation).execute(&mut long).await.unwrap();
        let order = Uuid::new_v4().to_string();
        let mut events = write(&scene, &mut long, &order, 1..=1).await;
        for _ in 0..short_or_long(5, 200) {
            sleep(Duration::from_secs(1)).await;
            scene.flows().await;
        }
        let topic = topic_of(&scene.aggregate_type);
        let id = events[0].id.to_string();
        let seen = world.kafka.read_all(&topic).await;
        let its = |record: &support::kafka::Record| {
            record
                .headers
                .iter()
                .any(|(_, value)| value.as_deref() == Some(id.as_bytes()))
        };
        assert!(!seen.iter().any(its), "not before it is committed");
        sqlx::query(AssertSqlSafe("commit"))
            .execute(&mut long)
            .await
            .unwrap();
        events[0].fate = Fate::Committed;
        let (world, ledger) = scene.quiet().await;
        let mut late = Ledger::default();
        events.into_iter().for_each(|event| late.push(event));
        world
            .check(&Ledger::join([ledger, late]))
            .await
            .assert_clean(0);
    });
}
