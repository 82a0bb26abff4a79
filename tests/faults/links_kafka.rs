//! Bad networks between the relay and the brokers: peers that vanish, links that are slow or carry
//! one way only, and no way through for longer than every time-out.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::kafka_scene::{CLAIM_ROWS, Scene, WINDOW, WORKERS};
use crate::support::cluster::{self, BROKERS, Cluster};
use crate::support::outbox::parked;
use crate::support::proxy::{Direction, Link, Proxy};
use crate::support::servers::say;
use crate::support::{World, eventually, short_or_long};

const RATE: f64 = 100.0;
/// The publish deadline is 10 s, and the question that follows it 2 s; this is thrice that.
const NOTICED_MAX: Duration = Duration::from_secs(36);
/// A batch may be in hand this long, with a margin for a busy machine.
const TRANSACTION_MAX_S: i64 = 30;
/// What the relay may come to hold beyond what it held while all was well.
const MEMORY_MAX_KIB: u64 = 24 * 1024;

/// How long the oldest transaction of a relay has been open.
async fn transaction_age_s(world: &World) -> i64 {
    let sql = "select coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::bigint
         from pg_stat_activity
        where datname = current_database() and application_name = 'outbox-relay'";
    world.number(sql).await
}

fn proxies(cluster: &Cluster, change: impl Fn(&Proxy)) {
    for id in BROKERS {
        change(&cluster.broker(id).proxy);
    }
}

#[test]
fn brokers_that_vanish_without_a_word_are_noticed() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start(world, cluster, RATE).await;
        let relay = &scene.relay;
        cluster.broker(1).proxy.set_both(Link::HOLE);
        let began = Instant::now();
        let line = "takes no records though the cluster answers";
        relay.wait_line(line, NOTICED_MAX).await;
        say(&format!(
            "one broker's silence noticed after {:.1?}",
            began.elapsed()
        ));
        let before = scene.outbox.published(world).await;
        eventually(
            NOTICED_MAX,
            "the other brokers' partitions flow",
            async || scene.outbox.published(world).await > before + 100,
        )
        .await;
        cluster.broker(1).proxy.heal();
        scene.even("one broker heard again").await;

        proxies(cluster, |proxy| proxy.set_both(Link::HOLE));
        let began = Instant::now();
        relay
            .wait_line("Kafka does not take records", NOTICED_MAX)
            .await;
        say(&format!(
            "Kafka's silence noticed after {:.1?}",
            began.elapsed()
        ));
        eventually(NOTICED_MAX, "no transaction is open", async || {
            transaction_age_s(world).await == 0
        })
        .await;
        proxies(cluster, Proxy::heal);
        scene.even("Kafka heard again").await;
        scene.end(2 * WINDOW).await;
    });
}

#[test]
fn slow_one_way_and_half_closed_links_press_back_and_memory_stays_bounded() {
    cluster::run(async |world, cluster| {
        let scene = Scene::start_with(world, cluster, RATE, |setup| {
            setup
                .set("relay", "publish_timeout", "\"3s\"")
                .set("relay", "claim_bytes_max", "\"256KiB\"")
                .set("kafka.properties", "\"compression.type\"", "\"none\"")
        })
        .await;
        let well = scene.relay.peak_memory_kib();
        // so little that the writers are faster: what is over stays in the table
        proxies(cluster, |proxy| {
            proxy.set(Direction::ToServer, Link::slow(8_000));
        });
        let before = scene.outbox.published(world).await;
        let until =
            Instant::now() + short_or_long(Duration::from_secs(8), Duration::from_secs(300));
        while Instant::now() < until {
            sleep(Duration::from_millis(500)).await;
            let age = transaction_age_s(world).await;
            assert!(
                age <= TRANSACTION_MAX_S,
                "a transaction is open for {age} s"
            );
        }
        let pending = scene.outbox.pending(world).await;
        let since = scene.outbox.published(world).await - before;
        say(&format!("slow links: {since} published, {pending} wait"));
        proxies(cluster, Proxy::heal);
        scene.even("links quick again").await;

        // what is sent arrives, and no word of it comes back
        proxies(cluster, |proxy| {
            proxy.set(Direction::ToClient, Link::HOLE);
        });
        scene
            .relay
            .wait_line("Kafka does not take records", NOTICED_MAX)
            .await;
        sleep(Duration::from_secs(3)).await;
        proxies(cluster, Proxy::heal);
        proxies(cluster, Proxy::reset);
        scene.even("words come back again").await;

        for direction in [Direction::ToServer, Direction::ToClient] {
            proxies(cluster, |proxy| proxy.half_close(direction));
            sleep(Duration::from_secs(1)).await;
            scene.even("half-closed").await;
        }
        if let (Some(well), Some(peak)) = (well, scene.relay.peak_memory_kib()) {
            say(&format!(
                "memory: {well} KiB while all was well, {peak} KiB at most"
            ));
            assert!(peak < well + MEMORY_MAX_KIB, "{peak} KiB, {well} before");
        }
        scene.end(6 * WINDOW).await;
    });
}

#[test]
fn kafka_may_be_unreachable_for_longer_than_every_time_out() {
    cluster::run(async |world, cluster| {
        // the long form has the defaults: 10 s to publish, 10 s a request
        let scene = Scene::start_with(world, cluster, RATE, |setup| {
            let long = crate::support::soak();
            let [publish, request] = if long {
                ["10s", "10000"]
            } else {
                ["2s", "2000"]
            };
            setup
                .set("relay", "publish_timeout", &format!("\"{publish}\""))
                .set("kafka.properties", "\"socket.timeout.ms\"", request)
                .set(
                    "kafka.properties",
                    "\"socket.connection.setup.timeout.ms\"",
                    &format!("{}", if long { 5000 } else { 2000 }),
                )
        })
        .await;
        proxies(cluster, |proxy| proxy.set_both(Link::HOLE));
        scene
            .relay
            .wait_line("Kafka does not take records", NOTICED_MAX)
            .await;
        eventually(NOTICED_MAX, "no transaction is open", async || {
            transaction_age_s(world).await == 0
        })
        .await;
        let used = scene.relay.peak_memory_kib();
        let each = short_or_long(Duration::from_secs(7), Duration::from_secs(600));
        for refusing in [false, true] {
            proxies(cluster, |proxy| proxy.refuse(refusing));
            if refusing {
                proxies(cluster, Proxy::reset);
            }
            let until = Instant::now() + each;
            while Instant::now() < until {
                sleep(Duration::from_millis(500)).await;
                let age = transaction_age_s(world).await;
                assert!(
                    age <= TRANSACTION_MAX_S,
                    "a transaction is open for {age} s"
                );
            }
        }
        if let (Some(used), Some(peak)) = (used, scene.relay.peak_memory_kib()) {
            say(&format!(
                "memory: {used} KiB when the outage began, {peak} KiB at most"
            ));
            assert!(peak < used + MEMORY_MAX_KIB, "{peak} KiB, {used} before");
        }
        let parked = parked(world).await;
        assert_eq!(parked, 0, "an outage is no row's fault");
        proxies(cluster, Proxy::heal);
        scene.even("Kafka reachable again").await;
        scene.end(CLAIM_ROWS * WORKERS).await;
    });
}
