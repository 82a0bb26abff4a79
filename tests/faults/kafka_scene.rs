//! An outbox under load, and a relay that publishes it to three brokers.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::checker::Report;
use crate::support::cluster::Cluster;
use crate::support::outbox::{Outbox, parked};
use crate::support::relay::{Relay, Setup};
use crate::support::servers::say;
use crate::support::writers::{Ledger, Load, Writing};
use crate::support::{World, eventually, topic_of};

/// How long the relay may take to be even with the writers, on a machine that is busy otherwise.
pub(super) const SOON: Duration = Duration::from_secs(90);
/// Rows in a claim. Workers times this is the most that one fault may repeat.
pub(super) const CLAIM_ROWS: usize = 100;
pub(super) const WORKERS: usize = 2;
/// What one fault may have caught in flight.
pub(super) const WINDOW: usize = CLAIM_ROWS * WORKERS;

/// One outbox, one topic, one relay, which must live through it all.
pub(super) struct Scene<'a> {
    pub(super) world: &'a World,
    pub(super) cluster: &'a Cluster,
    pub(super) outbox: Outbox,
    writing: Option<Writing>,
    pub(super) relay: Relay,
}

impl<'a> Scene<'a> {
    /// Under a load of `rate` events a second in a topic of three replicas.
    pub(super) async fn start(world: &'a World, cluster: &'a Cluster, rate: f64) -> Self {
        Self::start_with(world, cluster, rate, |setup| setup).await
    }

    /// As [`Self::start`], with further settings of the relay.
    pub(super) async fn start_with(
        world: &'a World,
        cluster: &'a Cluster,
        rate: f64,
        settings: impl FnOnce(Setup<'a>) -> Setup<'a>,
    ) -> Self {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = settings(setup(world, cluster, &outbox));
        setup.migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        cluster.create_replicated(&topic_of(&aggregate_type)).await;
        let mut load = Load::of(&aggregate_type);
        load.events = usize::MAX;
        load.rate = Some(rate);
        load.aggregates = 60;
        let writing = Some(load.start(world, &outbox).await);
        let scene = Scene {
            world,
            cluster,
            writing,
            relay: setup.run(),
            outbox,
        };
        scene.even("at first").await;
        scene
    }

    /// Waits until all that is there now is published, and says how long that took after `what`.
    pub(super) async fn even(&self, what: &str) -> Duration {
        let began = Instant::now();
        let table = &self.outbox.table;
        let last = format!("select coalesce(max(seq), 0) from {table}");
        let last = self.world.number(&last).await;
        let sql =
            format!("select count(*) from {table} where published_at is null and seq <= {last}");
        eventually(SOON, &format!("rows are published {what}"), async || {
            self.world.number(&sql).await == 0
        })
        .await;
        let took = began.elapsed();
        say(&format!("{what}: even with the writers after {took:.1?}"));
        took
    }

    /// Ends the load and waits until all is published; nothing may be parked.
    pub(super) async fn quiet(&mut self) -> Ledger {
        let writing = self.writing.take().expect("the load goes on until the end");
        let ledger = writing.stop().await;
        self.outbox.wait_drained(self.world, SOON).await;
        assert_eq!(parked(self.world).await, 0, "no row is at fault");
        assert!(self.relay.is_running(), "without a restart");
        ledger
    }

    /// Ends it all, and asserts that nothing was lost, parked or disordered and at most
    /// `duplicates_max` records came twice.
    pub(super) async fn end(mut self, duplicates_max: usize) -> Report {
        let ledger = self.quiet().await;
        self.relay.stop().await;
        let report = self.world.check_in(&self.cluster.kafka(), &ledger).await;
        report.assert_clean(duplicates_max);
        say(&format!(
            "{} events, {} duplicates",
            report.committed, report.duplicates
        ));
        report
    }
}

/// A relay of `outbox` and the cluster whose window is known.
pub(super) fn setup<'a>(world: &'a World, cluster: &Cluster, outbox: &Outbox) -> Setup<'a> {
    world
        .relay(&[outbox])
        .workers(WORKERS)
        .set("kafka", "brokers", &format!("\"{}\"", cluster.bootstrap()))
        .set("relay", "claim_rows_max", &CLAIM_ROWS.to_string())
}
