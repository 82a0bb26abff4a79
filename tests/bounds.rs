//! P8: what a relay takes depends on its limits, not on the backlog.

use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::{self, eventually, topic_of};

#[test]
fn large_rows_of_one_aggregate_drain_in_bounded_memory() {
    const ROWS: i64 = 1_000;
    const PEAK_KIB: u64 = 128 * 1024;
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Delete);
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 1, &[]).await;
        // More than the limit all together; on disk, and in Kafka, they compress to little.
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select '{order}', '{aggregate_type}', 'Large', jsonb_build_object('n', n, 'text', repeat('x', 900000))
                 from generate_series(1, {ROWS}) n"
            ))
            .await;
        let mut relay = setup.spawn(&["run", "--until-empty"]);
        let mut peak = 0;
        while relay.is_running() {
            peak = relay.peak_memory_kib().unwrap_or(0).max(peak);
            sleep(Duration::from_millis(20)).await;
        }
        assert!(relay.wait_exit(Duration::from_secs(1)).await.success());
        assert_eq!(world.kafka.count(&topic).await, ROWS);
        assert!(peak < PEAK_KIB, "{peak} KiB");
    });
}

/// Each keeps what it once had, and by default there are eight for each core (`src/ops/malloc.c`).
#[test]
fn a_relay_of_many_threads_has_few_arenas() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Delete);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let rows = format!(
            "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
             select gen_random_uuid(), '{aggregate_type}', 'Created', '{{}}' from generate_series(1, 1000)"
        );
        let topic = topic_of(&aggregate_type);
        let relay = setup.run();
        for published in 1..=5 {
            world.execute(&rows).await;
            eventually(Duration::from_secs(60), "all are published", async || {
                world.kafka.count(&topic).await == published * 1_000
            })
            .await;
        }
        if let Some(arenas) = relay.arenas() {
            assert!(arenas < 4, "{arenas} arenas beside the first");
        }
        relay.stop().await;
    });
}

#[test]
fn an_idle_relay_costs_next_to_nothing() {
    const WATCHED: Duration = Duration::from_secs(6);
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let relay = setup.run();
        sleep(Duration::from_secs(2)).await;
        let before = relay.processor_time();
        sleep(WATCHED).await;
        if let (Some(before), Some(after)) = (before, relay.processor_time()) {
            let used = after - before;
            // A build without optimisation on a busy machine; the benchmark holds the real bound.
            assert!(used < WATCHED / 20, "{used:?} in {WATCHED:?}");
        }
        relay.stop().await;
    });
}
