//! The primary dies and a standby takes its place.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::postgres_scene::{LONG, ROWS_MAX, Scene, WORKERS};
use crate::support::debian::Stage;
use crate::support::proxy::{Direction, Link};
use crate::support::servers::say;
use crate::support::{self, eventually};

#[test]
fn a_failover_to_a_synchronous_standby_loses_nothing() {
    support::run_on(Stage::with_standby(true), async |world, stage| {
        let scene = Scene::start(world, |setup| setup).await;
        fail_over(stage, &scene).await;
        scene.end(WORKERS * ROWS_MAX).await;
    });
}

/// The primary crashes, the standby is promoted, and the address leads to it.
async fn fail_over(stage: &Stage, scene: &Scene<'_>) {
    let began = Instant::now();
    stage.clusters[0].server.kill().await;
    stage.clusters[1].promote().await;
    stage.proxy.target(stage.clusters[1].port);
    say(&format!("promoted after {:?}", began.elapsed()));
    scene.flows().await;
}

#[test]
fn a_failover_to_an_asynchronous_standby_loses_what_the_standby_never_had() {
    support::run_on(Stage::with_standby(false), async |world, stage| {
        let scene = Scene::start(world, |setup| setup).await;
        let link = stage.replication.as_ref().expect("a standby has a link");
        // the standby falls behind, and what is written and published meanwhile it never gets
        link.set(Direction::ToClient, Link::HOLE);
        let table = &scene.outbox.table;
        let last = world.number(&format!("select max(seq) from {table}")).await;
        let published =
            format!("select count(*) from {table} where seq > {last} and published_at is not null");
        eventually(LONG, "events behind the hole are published", async || {
            world.number(&published).await >= 40
        })
        .await;
        fail_over(stage, &scene).await;
        let (world, ledger) = scene.quiet().await;
        let confirmed = ledger.committed();
        let report = world.check(&ledger.doubted()).await;
        say(&format!("confirmed {confirmed}; {report}"));
        // the stream's last bytes may be under way when the hole opens: at least half of them
        assert!(report.phantom.len() >= 20, "published and lost: {report}");
        assert!(confirmed >= report.committed + report.phantom.len() - ROWS_MAX);
        let forgotten = |line: &String| line.contains("was rolled back");
        assert!(report.phantom.iter().all(forgotten), "{report}");
        // of what the new primary has, nothing is missing, nothing out of order
        assert_eq!(report.delivered, report.committed, "{report}");
        let others = [
            &report.lost,
            &report.disordered,
            &report.misplaced,
            &report.unequal,
        ];
        assert!(others.iter().all(|fault| fault.is_empty()), "{report}");
    });
}

#[test]
fn a_server_that_is_read_only_is_waited_for() {
    support::run_on(Stage::with_standby(true), async |world, stage| {
        let mut scene = Scene::start(world, |setup| setup).await;
        fail_over(stage, &scene).await;
        // the old primary comes back as a standby, and the address leads to it for a while
        let old = &stage.clusters[0];
        old.becomes_standby_of(stage.clusters[1].port);
        old.server.start().await;
        stage.proxy.target(old.port);
        stage.proxy.reset();
        scene.relay.wait_line("read-only", LONG).await;
        // one that starts now waits as well
        let late = world.relay(&[&scene.outbox]).run();
        late.wait_line("read-only", LONG).await;
        sleep(Duration::from_secs(3)).await;
        assert!(scene.relay.is_running(), "it waits");
        let said = |relay: &support::relay::Relay| {
            let lines = relay.lines();
            lines
                .iter()
                .filter(|line| line.contains("read-only"))
                .count()
        };
        assert_eq!((said(&scene.relay), said(&late)), (1, 1), "told once each");
        stage.proxy.target(stage.clusters[1].port);
        stage.proxy.reset();
        scene.flows().await;
        eventually(LONG, "the late one serves", async || {
            late.lines()
                .iter()
                .any(|line| line.contains("serving the outbox"))
        })
        .await;
        late.stop().await;
        scene.end(2 * WORKERS * ROWS_MAX).await;
    });
}
