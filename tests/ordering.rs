//! P3 and P7: an aggregate's events arrive in order whoever publishes them, and a row that cannot
//! be had delays its own aggregate alone.

use std::time::Duration;

use uuid::Uuid;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::{Ledger, Load, one};
use crate::support::{self, topic_of};

#[test]
fn four_relays_with_several_workers_keep_the_order_of_twenty_hot_aggregates() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Delete);
        outbox.create(world).await;
        let setup = world
            .relay(&[&outbox])
            .workers(4)
            // Small batches, so that an aggregate passes from relay to relay often.
            .set("relay", "claim_rows_max", "20");
        setup.migrate().await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = 6_000;
        load.writers = 8;
        world
            .kafka
            .create_topic(&topic_of(&load.aggregate_type), 4, &[])
            .await;
        let relays = [setup.run(), setup.run(), setup.run(), setup.run()];
        let ledger = load.start(world, &outbox).await.finish().await;
        outbox.wait_drained(world, Duration::from_secs(60)).await;
        for relay in relays {
            relay.stop().await;
        }
        let report = world.check(&ledger).await;
        report.assert_clean(0);
        assert!(report.delivered > 5_000, "{report}");
    });
}

#[test]
fn a_row_that_somebody_else_holds_locked_delays_its_own_aggregate_alone() {
    support::run(async |world| {
        let mut outbox = Outbox::classic();
        // All aggregates share the one lane there is.
        outbox.config = "lanes = 1".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let (held, free) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let mut ledger = Ledger::default();
        let mut ids = Vec::new();
        for n in 1..=4 {
            let event = one(world, &outbox, &aggregate_type, &held, n).await;
            ids.push(event.id);
            ledger.push(event);
            ledger.push(one(world, &outbox, &aggregate_type, &free, n).await);
        }
        let mut foreign = world.pool.begin().await.unwrap();
        sqlx::query("select 1 from outbox where id = $1 for update")
            .bind(ids[1])
            .execute(&mut *foreign)
            .await
            .unwrap();

        let relay = setup.run();
        let arrived = async |key: &str| {
            let records = world.kafka.read_all(&topic).await;
            let of_key = records
                .iter()
                .filter(|it| it.key.as_deref() == Some(key.as_bytes()));
            of_key.count()
        };
        // Several rounds: in each, the free aggregate's news passes the locked row.
        for n in 5..=10 {
            ledger.push(one(world, &outbox, &aggregate_type, &held, n).await);
            ledger.push(one(world, &outbox, &aggregate_type, &free, n).await);
            let want = usize::try_from(n).unwrap();
            support::eventually(Duration::from_secs(60), "the others flow", async || {
                arrived(&free).await == want
            })
            .await;
            assert_eq!(
                arrived(&held).await,
                1,
                "what is behind the locked row waits"
            );
        }
        foreign.rollback().await.unwrap();
        outbox.wait_drained(world, Duration::from_secs(60)).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}
