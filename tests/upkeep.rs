//! What goes on beside the flow: purging, wake-ups, and the end of it all.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::support::outbox::Outbox;
use crate::support::relay::Relay;
use crate::support::writers::{Ledger, Load, Writing, one};
use crate::support::{self, Own, World, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn marked_rows_are_purged_after_their_retention_in_batches() {
    const OLD: i64 = 12_000;
    /// The most that one deletion takes.
    const BATCH: i64 = 5_000;
    support::run(async |world| {
        let mut outbox = Outbox::classic();
        outbox.config = "retention = \"2s\"".to_owned();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 1, &[]).await;
        // Old rows that are marked, young ones, and ones that nobody can publish.
        let insert = |rows: i64, aggregate_type: &str, published_at: &str| {
            format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload, created_at, published_at)
                 select gen_random_uuid(), '{aggregate_type}', 'Past', '{{}}', now() - interval '1 year', {published_at}
                   from generate_series(1, {rows});"
            )
        };
        let nowhere = world.aggregate_type("Nowhere");
        world
            .execute(&format!(
                "{} {} {}
                 create table deletions (n bigint);
                 create function count_deletions() returns trigger language plpgsql security definer as $$
                   begin insert into public.deletions select count(*) from gone; return null; end $$;
                 create trigger count_deletions after delete on outbox
                   referencing old table as gone for each statement execute function count_deletions()",
                insert(OLD, "Past", "now() - interval '1 hour'"),
                insert(7, "Past", "now() + interval '1 hour'"),
                insert(3, &nowhere, "null"),
            ))
            .await;
        world.expect_errors(&topic_of(&nowhere));
        let relay = setup.run();
        let event = one(world, &outbox, &aggregate_type, &order, 1).await;
        let left = async || world.number("select count(*) from outbox").await;
        eventually(SOON, "what is old is gone", async || left().await == 10).await;
        relay.stop().await;
        assert_eq!(outbox.pending(world).await, 3, "pending rows are not old");
        assert_eq!(outbox.published(world).await, 7, "nor are young marks");
        let deleted = "select coalesce(sum(n), 0)::bigint from deletions";
        assert_eq!(world.number(deleted).await, OLD + 1);
        let most = world.number("select max(n) from deletions").await;
        assert_eq!(most, BATCH, "no deletion is larger");
        let mut ledger = Ledger::default();
        ledger.push(event);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_notification_wakes_the_relay_and_nothing_depends_on_it() {
    support::run(async |world| {
        let mut outbox = Outbox::classic();
        outbox.config = "notify = true".to_owned();
        outbox.create(world).await;
        let setup = world
            .relay(&[&outbox])
            .set("relay", "poll_interval_min", "\"10s\"")
            .set("relay", "poll_interval_max", "\"10s\"");
        setup.migrate().await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 1, &[]).await;
        let relay = setup.run();
        let listening = "from pg_stat_activity
             where datname = current_database() and query ilike 'listen %' and pid <> pg_backend_pid()";
        let listeners = async || world.number(&format!("select count(*) {listening}")).await;
        eventually(SOON, "the relay listens", async || listeners().await > 0).await;
        let mut ledger = Ledger::default();
        // The first event is the one that the topic is tried with.
        ledger.push(one(world, &outbox, &aggregate_type, &order, 1).await);
        outbox.wait_drained(world, SOON).await;
        for n in 2..=4 {
            sleep(Duration::from_millis(300)).await;
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
            outbox.wait_drained(world, Duration::from_secs(4)).await;
        }

        // Without its ear it hears nothing, and polls.
        world.expect_errors("terminat");
        for n in 5..=6 {
            world
                .number(&format!(
                    "select count(pg_terminate_backend(pid)) {listening}"
                ))
                .await;
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
            outbox.wait_drained(world, SOON).await;
        }
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

/// An outbox under load and a relay with batches in flight to a Kafka that is frozen.
struct Frozen {
    outbox: Outbox,
    topic: String,
    writing: Writing,
    relay: Relay,
}

/// Batches in flight: `WORKERS` of `ROWS_MAX` rows.
const WORKERS: usize = 2;
const ROWS_MAX: usize = 50;

impl Frozen {
    async fn new(world: &World, drain_timeout: &str) -> Self {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world
            .relay(&[&outbox])
            .workers(WORKERS)
            .set("relay", "claim_rows_max", &ROWS_MAX.to_string())
            .set("relay", "publish_timeout", "\"60s\"")
            .set("relay", "drain_timeout", drain_timeout);
        setup.migrate().await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = usize::MAX;
        load.rate = Some(300.0);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let writing = load.start(world, &outbox).await;
        let relay = setup.run();
        eventually(SOON, "events flow", async || {
            outbox.published(world).await > 100
        })
        .await;
        world.own_kafka().pause().await;
        let in_flight = "select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'outbox-relay'
               and state = 'idle in transaction' and state_change < clock_timestamp() - interval '500 ms'";
        eventually(SOON, "a batch waits for Kafka", async || {
            world.number(in_flight).await > 0
        })
        .await;
        Self {
            outbox,
            topic,
            writing,
            relay,
        }
    }

    /// Lets Kafka go on: what was marked is there, and a new relay brings the rest, in order.
    async fn thaw(self, world: &World) {
        let ledger = self.writing.stop().await;
        world.own_kafka().unpause().await;
        let marked = "select id from outbox where published_at is not null";
        let marked = sqlx::query_scalar::<_, Uuid>(marked)
            .fetch_all(&world.pool)
            .await
            .unwrap();
        let records = world.kafka.read_all(&self.topic).await;
        let there: HashSet<_> = records
            .iter()
            .filter_map(|record| record.headers.first()?.1.clone())
            .collect();
        let there = |id: &Uuid| there.contains(id.to_string().as_bytes());
        assert!(
            marked.iter().all(there),
            "nothing is marked that Kafka lacks"
        );
        let relay = world.relay(&[&self.outbox]).run();
        self.outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(WORKERS * ROWS_MAX);
    }
}

#[test]
fn a_stop_while_kafka_is_frozen_keeps_to_its_deadline_and_loses_nothing() {
    const DRAIN: Duration = Duration::from_secs(3);
    support::run_with(Own::KAFKA, async |world| {
        let mut frozen = Frozen::new(world, "\"3s\"").await;
        let asked = Instant::now();
        frozen.relay.sigterm();
        let status = frozen.relay.wait_exit(SOON).await;
        let took = asked.elapsed();
        assert!(status.success(), "{status}");
        assert!(took < DRAIN + Duration::from_secs(10), "it took {took:?}");
        assert!(
            took > DRAIN / 2,
            "what was in flight had its time: {took:?}"
        );
        frozen.thaw(world).await;
    });
}

#[test]
fn a_second_signal_ends_the_relay_at_once_and_loses_nothing() {
    support::run_with(Own::KAFKA, async |world| {
        let mut frozen = Frozen::new(world, "\"60s\"").await;
        frozen.relay.sigterm();
        frozen.relay.wait_line("stopping", SOON).await;
        sleep(Duration::from_secs(1)).await;
        assert!(frozen.relay.is_running(), "it finishes what is in flight");
        let asked = Instant::now();
        frozen.relay.sigterm();
        let status = frozen.relay.wait_exit(SOON).await;
        let took = asked.elapsed();
        assert!(status.success(), "{status}");
        assert!(took < Duration::from_secs(10), "it took {took:?}");
        frozen.thaw(world).await;
    });
}
