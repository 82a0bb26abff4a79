//! What the brokers write: disks that are full, logs that are truncated, replicas that come and go.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::time::sleep;
use uuid::Uuid;

use super::kafka_scene::{SOON, Scene, WINDOW, setup};
use crate::support::cluster::{self, BROKERS, Broker};
use crate::support::outbox::{Outbox, parked};
use crate::support::writers::{Ledger, one};
use crate::support::{eventually, short_or_long, topic_of};

/// Few enough that most batches are one row: what a producer of a new id sends first decides.
const LOW_RATE: f64 = 10.0;

/// A producer of a new id, whose first request fails while a second one is let in, would take the
/// second's acknowledgement for both.
#[test]
fn replicas_that_come_and_go_at_a_low_rate_lose_nothing() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start(world, cluster, LOW_RATE).await;
        let rounds = short_or_long(2, 30);
        for away in [[2, 3], [3, 1], [1, 2]].into_iter().cycle().take(rounds) {
            // their leaders move, and the minimum is lost
            for id in away {
                cluster.broker(id).pause();
                cluster.wait_gone(id).await;
            }
            sleep(Duration::from_secs(2)).await;
            for id in away {
                cluster.broker(id).unpause();
            }
            cluster.wait_in_sync().await;
            scene.even("replicas back").await;
        }
        scene.end(rounds * WINDOW).await;
    });
}

/// The broker comes back with less than it had acknowledged, as one does whose disk lied to it. That
/// is lost, and no relay can help it; but the producer's next number fits no more, which is fatal to
/// the producer: it is made anew, and what is written from then on arrives.
#[test]
fn a_log_that_was_truncated_under_the_producer_ends_that_producer_alone() {
    cluster::run(async |world, cluster| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = setup(world, cluster, &outbox).workers(1);
        let setup = setup.env("RUST_LOG", "info,librdkafka=debug");
        setup.migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        let topic = topic_of(&aggregate_type);
        cluster.create_topic(&topic, &[&[1]]).await;
        let mut relay = setup.run();
        let order = Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        let mut lost = Vec::new();
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
            outbox.wait_drained(world, SOON).await;
        }
        let broker = cluster.broker(1);
        let log = broker.process().data().join(format!("{topic}-0"));
        let kept = broker.process().data().with_file_name("kept");
        broker.stop().await;
        copy(&log, &kept);
        broker.start();
        cluster.wait_in_sync().await;
        for n in 21..=40 {
            lost.push(one(world, &outbox, &aggregate_type, &order, n).await);
            outbox.wait_drained(world, SOON).await;
        }
        broker.stop().await;
        fs::remove_dir_all(&log).unwrap();
        copy(&kept, &log);
        broker.start();
        cluster.wait_in_sync().await;
        let other = Uuid::new_v4().to_string();
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &aggregate_type, &other, n).await);
            outbox.wait_drained(world, SOON).await;
        }
        assert_eq!(parked(world).await, 0, "no row is at fault");
        assert!(relay.is_running());
        relay.wait_line("FATAL", SOON).await;
        relay.stop().await;
        fs::remove_dir_all(&kept).unwrap();
        world
            .check_in(&cluster.kafka(), &ledger)
            .await
            .assert_clean(1);
        assert_eq!(lost.len(), 20);
    });
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// A broker that cannot write gives up, whatever the reason. Here no file of its may grow further,
/// which needs no file system of its own: the error is another (EFBIG for ENOSPC), its way is the
/// same.
#[test]
fn brokers_may_have_full_disks() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start(world, cluster, 150.0).await;
        fill(cluster.broker(1));
        ends(cluster.broker(1)).await;
        scene.even("one disk full").await;
        cluster.broker(1).start();
        cluster.wait_in_sync().await;

        for id in BROKERS {
            fill(cluster.broker(id));
        }
        ends(cluster.broker(1)).await;
        ends(cluster.broker(2)).await;
        sleep(Duration::from_secs(3)).await;
        assert_eq!(parked(world).await, 0, "no row is at fault");
        cluster.heal_room().await;
        cluster.wait_in_sync().await;
        scene.even("room again").await;
        scene.end(3 * WINDOW).await;
    });
}

/// No file of this broker may grow any more.
fn fill(broker: &Broker) {
    let pid = broker
        .process()
        .pid()
        .and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).unwrap();
    let limit = Rlimit {
        current: Some(0),
        maximum: None,
    };
    prlimit(Some(pid), Resource::Fsize, limit).unwrap();
}

async fn ends(broker: &Broker) {
    eventually(SOON, "a broker that cannot write ends", async || {
        !broker.process().is_running()
    })
    .await;
}
