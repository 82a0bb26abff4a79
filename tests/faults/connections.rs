//! The network between a relay and its database.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::postgres_scene::{LONG, ROWS_MAX, Scene, TROUBLE, WORKERS, no_transaction_is_left_open};
use crate::support::outbox::Outbox;
use crate::support::proxy::{Direction, Link, Proxy};
use crate::support::servers::say;
use crate::support::{self, Rng, World, eventually, short_or_long};

/// `commit` as a simple query: the words `read committed` are none.
const COMMIT: &[u8] = b"\x0bcommit\0";

/// A bad network before the database of this world.
async fn proxy(world: &World) -> (Proxy, String) {
    let (_, address) = world.database_url.rsplit_once('@').expect("a user");
    let (address, _) = address.split_once('/').expect("a database");
    let (_, port) = address.rsplit_once(':').expect("a port");
    let proxy = Proxy::to(port.parse().expect("a port")).await;
    let url = format!("\"{}\"", proxy.url(&world.database_url));
    (proxy, url)
}

#[test]
fn a_commit_whose_reply_is_lost_was_a_commit_and_nothing_comes_twice() {
    support::run(async |world| {
        let (proxy, url) = proxy(world).await;
        let scene = Scene::start(world, |setup| setup.set("database", "url", &url)).await;
        let losses = short_or_long(8, 100);
        for n in 1..=losses {
            proxy.lose_reply_to(COMMIT);
            eventually(LONG, "a reply is lost", async || proxy.lost_replies() == n).await;
            scene.flows().await;
        }
        scene.end(0).await;
    });
}

#[test]
fn a_connection_cut_anywhere_in_a_batch_loses_nothing() {
    support::run(async |world| {
        let (proxy, url) = proxy(world).await;
        let scene = Scene::start(world, |setup| setup.set("database", "url", &url)).await;
        let mut rng = Rng::of_run("a_connection_cut_anywhere_in_a_batch_loses_nothing");
        let cuts = short_or_long(16, 300);
        for cut in 0..cuts {
            // about what one batch says either way: its rows, its statements
            let (direction, most) = match cut % 2 {
                0 => (Direction::ToClient, 20_000),
                _ => (Direction::ToServer, 5_000),
            };
            proxy.set(direction, Link::cut_after(1 + rng.below(most)));
            sleep(rng.between(50, 250)).await;
            proxy.heal();
        }
        proxy.reset();
        scene.flows().await;
        // each connection of the relay is cut once at most in each window, and made anew after 100 ms
        // at the least: three batches a worker and window
        let lines = scene.relay.lines();
        assert!(
            lines.iter().any(|line| line.contains(TROUBLE)),
            "it met the cuts"
        );
        scene.end(3 * cuts * WORKERS * ROWS_MAX).await;
    });
}

/// The backlog stays where it is, in Postgres: what does not fit the link is not in the relay's memory.
#[test]
fn a_slow_link_to_the_database_presses_back_and_memory_stays_bounded() {
    const BYTES_PER_SECOND: u64 = 20_000;
    const GROWTH_MAX_KIB: u64 = 64 * 1024;
    support::run(async |world| {
        let (proxy, url) = proxy(world).await;
        let scene = Scene::start(world, |setup| setup.set("database", "url", &url)).await;
        let well = scene.relay.peak_memory_kib();
        let (before, began) = (proxy.bytes(Direction::ToClient), Instant::now());
        let mut slow = Link::slow(BYTES_PER_SECOND);
        slow.delay = Duration::from_millis(50);
        proxy.set_both(slow);
        sleep(short_or_long(
            Duration::from_secs(4),
            Duration::from_secs(120),
        ))
        .await;
        scene.flows().await;
        let through = proxy.bytes(Direction::ToClient) - before;
        let most = BYTES_PER_SECOND as f64 * began.elapsed().as_secs_f64();
        // each connection has a link of its own
        let connections = proxy.connections().max(WORKERS) as f64;
        assert!(through as f64 <= most * connections, "the link was slow");
        proxy.heal();
        scene.flows().await;
        if let (Some(well), Some(peak)) = (well, scene.relay.peak_memory_kib()) {
            let growth = peak.saturating_sub(well);
            say(&format!(
                "slow link: {through} bytes through, memory +{growth} KiB"
            ));
            assert!(growth < GROWTH_MAX_KIB, "memory grew by {growth} KiB");
        }
        scene.end(WORKERS * ROWS_MAX).await;
    });
}

/// What the relay of these tests allows a statement; it gives the server 5 s more, and then gives the
/// connection up.
const STATEMENT: Duration = Duration::from_secs(2);
/// By when a silence is noticed, whatever the relay was doing: [`STATEMENT`] and those 5 s.
const NOTICED: Duration = Duration::from_secs(7);

#[test]
fn a_database_that_vanishes_without_a_word_is_noticed_and_left() {
    support::run(async |world| {
        for direction in [None, Some(Direction::ToServer), Some(Direction::ToClient)] {
            vanishes(world, direction).await;
        }
    });
}

/// Everything, or one direction, falls into a hole, and comes back after the relay has noticed.
async fn vanishes(world: &World, direction: Option<Direction>) {
    let (proxy, url) = proxy(world).await;
    let name = direction.map_or_else(|| "both".to_owned(), |it| format!("{it:?}").to_lowercase());
    let mut outbox = Outbox::classic();
    outbox.table = format!("outbox_{name}");
    let scene = Scene::of(world, outbox, 100.0, |setup| {
        let setup = setup.set("database", "url", &url);
        let statement = format!("\"{}s\"", STATEMENT.as_secs());
        let setup = setup.set("database", "statement_timeout", &statement);
        setup.set("database", "connect_timeout", "\"2s\"")
    })
    .await;
    match direction {
        Some(direction) => proxy.set(direction, Link::HOLE),
        None => proxy.set_both(Link::HOLE),
    }
    let began = Instant::now();
    scene
        .relay
        .wait_line("did not answer within", NOTICED * 3)
        .await;
    say(&format!("{name}: noticed after {:?}", began.elapsed()));
    // every worker has met it by then, and waits to connect
    sleep(NOTICED.saturating_sub(began.elapsed())).await;
    proxy.heal();
    let healed = Instant::now();
    scene.flows().await;
    say(&format!(
        "{name}: flows {:?} after it was healed",
        healed.elapsed()
    ));
    // what the relay had in hand, and a batch whose late commit went nowhere
    scene.end(2 * WORKERS * ROWS_MAX).await;
}

#[test]
fn a_relay_whose_network_vanishes_is_left_by_the_database_and_another_takes_over() {
    support::run(async |world| {
        let (proxy, url) = proxy(world).await;
        let scene = Scene::start(world, |setup| setup).await;
        let outbox = scene.outbox.clone();
        // it lingers with a batch that Kafka has
        let cut_off = super::postgres_scene::small_batches(world.relay(&[&outbox]))
            .set("database", "url", &url)
            .set("relay", "publish_timeout", "\"1s\"")
            .failpoint("settle_before", "sleep(3000)")
            .run();
        let lingers = "select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'outbox-relay'
               and state = 'idle in transaction' and clock_timestamp() - state_change > interval '1 second'";
        eventually(LONG, "it lingers with a claim", async || {
            world.number(lingers).await > 0
        })
        .await;
        proxy.set_both(Link::HOLE);
        let began = Instant::now();
        // publish_timeout and the 15 s beyond it
        no_transaction_is_left_open(world).await;
        say(&format!(
            "its transactions were ended after {:?}",
            began.elapsed()
        ));
        scene.flows().await;
        drop(cut_off);
        world.expect_errors("did not answer");
        scene.end(2 * WORKERS * ROWS_MAX).await;
    });
}
