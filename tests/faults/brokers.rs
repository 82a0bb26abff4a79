//! Brokers that crash, stop, bounce and lose their controller; too few of them for a topic.

use std::time::Duration;

use tokio::time::sleep;

use super::kafka_scene::{Scene, WINDOW};
use crate::support::cluster::{self, BROKERS};
use crate::support::servers::say;
use crate::support::short_or_long;

const RATE: f64 = 150.0;
/// How long a fault is left to do its harm.
const A_WHILE: Duration = Duration::from_secs(3);

#[test]
fn a_broker_may_be_killed_and_another_one_stopped() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start(world, cluster, RATE).await;
        cluster.broker(1).kill().await;
        scene.even("broker killed").await;
        cluster.broker(1).start();
        cluster.wait_in_sync().await;
        scene.even("broker back").await;
        cluster.broker(2).stop().await;
        scene.even("broker stopped").await;
        cluster.broker(2).start();
        cluster.wait_in_sync().await;
        scene.even("broker back").await;
        scene.end(2 * WINDOW).await;
    });
}

#[test]
fn brokers_may_bounce_five_times() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start(world, cluster, RATE).await;
        let bounces = short_or_long(5, 50);
        for id in BROKERS.into_iter().cycle().take(bounces) {
            cluster.broker(id).stop().await;
            cluster.broker(id).start();
            cluster.wait_in_sync().await;
            scene.even("bounced").await;
        }
        scene.end(bounces * WINDOW).await;
    });
}

#[test]
fn the_controller_may_be_lost_and_a_broker_with_it() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start(world, cluster, RATE).await;
        // the id of a new producer comes from the controller: each has one by now
        sleep(A_WHILE).await;
        let before = scene.outbox.published(world).await;
        cluster.kill_controller().await;
        sleep(A_WHILE).await;
        let since = scene.outbox.published(world).await - before;
        say(&format!("{since} rows published without a controller"));
        // nobody is there to give its partitions another leader
        cluster.broker(3).kill().await;
        sleep(A_WHILE).await;
        cluster.start_controller();
        cluster.wait_gone(3).await;
        scene.even("controller back").await;
        cluster.broker(3).start();
        cluster.wait_in_sync().await;
        scene.even("broker back").await;
        scene.end(2 * WINDOW).await;
    });
}

#[test]
fn below_the_minimum_of_in_sync_replicas_rows_wait() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start(world, cluster, RATE).await;
        cluster.broker(1).kill().await;
        cluster.broker(2).kill().await;
        cluster.wait_gone(1).await;
        cluster.wait_gone(2).await;
        sleep(short_or_long(A_WHILE, Duration::from_secs(120))).await;
        let published = scene.outbox.published(world).await;
        sleep(A_WHILE).await;
        let since = scene.outbox.published(world).await - published;
        assert_eq!(since, 0, "one replica is too few to acknowledge");
        cluster.broker(1).start();
        cluster.wait_back(1).await;
        scene.even("two in sync").await;
        cluster.broker(2).start();
        cluster.wait_in_sync().await;
        scene.even("all in sync").await;
        scene.end(2 * WINDOW).await;
    });
}
