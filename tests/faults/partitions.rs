//! A partition that nobody leads, or that cannot be reached, beside healthy ones of its topic.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::kafka_scene::{SOON, setup};
use crate::support::checker::java_partition;
use crate::support::cluster;
use crate::support::outbox::{Outbox, parked};
use crate::support::servers::say;
use crate::support::writers::{Ledger, one};
use crate::support::{eventually, short_or_long, topic_of};

/// The batch that finds it out meets the publish deadline, 10 s; this is thrice that.
const FINDING_OUT_MAX: Duration = Duration::from_secs(30);
/// And so long an event may wait from then on: a try of the partition, 2 s, may be under way.
const BESIDE_MAX: Duration = Duration::from_secs(8);

/// One replica for each partition: while its broker is away nobody leads it, and the rest of the
/// topic is well.
#[test]
fn a_partition_without_a_leader_delays_its_own_aggregates_alone() {
    cluster::run(async |world, cluster| {
        const GONE: i32 = 2;
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = setup(world, cluster, &outbox);
        setup.migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        let topic = topic_of(&aggregate_type);
        cluster.create_topic(&topic, &[&[1], &[GONE], &[3]]).await;
        let orders: Vec<String> = (0..60).map(|_| Uuid::new_v4().to_string()).collect();
        let stuck = |order: &&String| java_partition(order.as_bytes(), 3) == GONE - 1;
        let (stuck, well): (Vec<&String>, Vec<&String>) = orders.iter().partition(stuck);
        let (stuck, well) = (stuck.as_slice(), well.as_slice());
        assert!(!stuck.is_empty() && !well.is_empty());
        let relay = setup.run();
        let mut ledger = Ledger::default();
        let mut n = 0;
        let mut write = async |orders: &[&[&String]], n| {
            for order in orders.iter().copied().flatten() {
                ledger.push(one(world, &outbox, &aggregate_type, order, n).await);
            }
        };
        n += 1;
        write(&[stuck, well], n).await;
        outbox.wait_drained(world, SOON).await;

        cluster.broker(GONE).kill().await;
        cluster.wait_gone(GONE).await;
        let (mut first, mut worst) = (None, Duration::ZERO);
        let rounds = short_or_long(6, 60);
        for round in 1..=rounds {
            n += 1;
            write(&[stuck, well], n).await;
            let written = Instant::now();
            let waiting = stuck.len() * round;
            let limit = if round == 1 {
                FINDING_OUT_MAX
            } else {
                BESIDE_MAX
            };
            eventually(limit, "the other partitions flow", async || {
                outbox.pending(world).await == i64::try_from(waiting).unwrap()
            })
            .await;
            match first {
                None => first = Some(written.elapsed()),
                Some(_) => worst = worst.max(written.elapsed()),
            }
            sleep(Duration::from_secs(1)).await;
        }
        say(&format!(
            "beside a partition without a leader: first {first:.1?}, then {worst:.1?} at most"
        ));
        assert_eq!(parked(world).await, 0, "no row is at fault");

        cluster.broker(GONE).start();
        cluster.wait_in_sync().await;
        let back = Instant::now();
        outbox.wait_drained(world, SOON).await;
        say(&format!(
            "all published {:.1?} after its return",
            back.elapsed()
        ));
        relay.stop().await;
        assert_eq!(parked(world).await, 0);
        let report = world.check_in(&cluster.kafka(), &ledger).await;
        report.assert_clean(stuck.len());
    });
}
