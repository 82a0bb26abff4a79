//! A record that the broker refuses, though the relay thought it would not.

use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use crate::support::checker::Fate;
use crate::support::outbox::{Outbox, parked};
use crate::support::writers::{Event, Ledger, insert, one};
use crate::support::{self, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);

/// The relay knew the topic's limit when somebody lowered it: the broker refuses whole batches then,
/// most of whose rows are innocent.
#[test]
fn a_row_that_the_broker_refuses_is_parked_and_those_that_shared_its_batch_are_not() {
    const AGGREGATES: usize = 40;
    const ROWS_EACH: i64 = 5;
    /// Which row of which aggregate is too large.
    const LARGE: (usize, i64) = (17, 3);
    const LIMIT: &str = "10000";
    /// The relay asks for a limit that a row exceeds, but not more often than this.
    const LIMIT_HEARD: Duration = Duration::from_secs(1);
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        world.expect_errors("park");
        let relay = setup.run();
        let mut ledger = Ledger::default();
        let first = Uuid::new_v4().to_string();
        for n in 1..=3 {
            ledger.push(one(world, &outbox, &aggregate_type, &first, n).await);
            outbox.wait_drained(world, SOON).await;
        }
        world
            .kafka
            .configure_topic(&topic, &[("max.message.bytes", LIMIT)])
            .await;

        let noise = "select string_agg(md5(random()::text), '') from generate_series(1, 470)";
        let noise: String = sqlx::query_scalar(noise)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let orders: Vec<_> = (0..AGGREGATES)
            .map(|_| Uuid::new_v4().to_string())
            .collect();
        let mut behind = Vec::new();
        let mut transaction = world.pool.begin().await.unwrap();
        for n in 1..=ROWS_EACH {
            for (i, order) in orders.iter().enumerate() {
                let large = (i, n) == LARGE;
                let payload = format!(
                    "{{\"n\": {n}, \"noise\": \"{}\"}}",
                    if large { &noise } else { "" }
                );
                let event = Event {
                    outbox: &outbox,
                    aggregate_type: &aggregate_type,
                    order,
                    n,
                    payload: Some(&payload),
                    trace: None,
                };
                let mut event = insert(&mut transaction, event).await.unwrap();
                event.fate = Fate::Committed;
                if i == LARGE.0 && n >= LARGE.1 {
                    behind.push(event);
                } else {
                    ledger.push(event);
                }
            }
        }
        transaction.commit().await.unwrap();
        outbox.wait_drained(world, Duration::from_secs(60)).await;

        // The broker refuses, or takes, whole batches: nothing of one that it refused is written.
        world.check(&ledger).await.assert_clean(AGGREGATES);
        let states =
            "select string_agg(state || ' ' || coalesce(reason_class, ''), ', ' order by seq)
             from outbox_relay.parked";
        let states: String = sqlx::query_scalar(states)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(states, "blocked too_large, behind , behind ");

        // With room for it, and somebody's word, the aggregate goes on, in order.
        world.kafka.configure_topic(&topic, &[]).await;
        sleep(LIMIT_HEARD).await;
        world
            .execute("update outbox_relay.parked set state = 'retry' where state = 'blocked'")
            .await;
        eventually(SOON, "the aggregate goes on", async || {
            parked(world).await == 0
        })
        .await;
        relay.stop().await;
        behind.into_iter().for_each(|event| ledger.push(event));
        world.check(&ledger).await.assert_clean(AGGREGATES);
    });
}
