//! An outbox under load and the relays that serve it, while something happens to its database.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use crate::support::checker::Report;
use crate::support::outbox::{Outbox, parked};
use crate::support::relay::{Relay, Setup};
use crate::support::servers::say;
use crate::support::writers::{Ledger, Load, Writing};
use crate::support::{World, eventually, topic_of};

/// How long anything that ends well may take on a slow machine.
pub(super) const LONG: Duration = Duration::from_secs(60);
/// Of every batch here.
pub(super) const ROWS_MAX: usize = 50;
/// Of every relay here.
pub(super) const WORKERS: usize = 2;
/// What a relay says of any trouble with its database.
pub(super) const TROUBLE: &str = "trying again";

/// See the module's description.
pub(super) struct Scene<'a> {
    pub(super) world: &'a World,
    pub(super) outbox: Outbox,
    pub(super) relay: Relay,
    pub(super) aggregate_type: String,
    writing: Writing,
}

/// A relay with small batches, so that a fault has many of them to meet.
pub(super) fn small_batches(setup: Setup<'_>) -> Setup<'_> {
    setup
        .workers(WORKERS)
        .set("relay", "claim_rows_max", &ROWS_MAX.to_string())
}

impl<'a> Scene<'a> {
    /// A moderate load and a relay as `setup` makes it.
    pub(super) async fn start(
        world: &'a World,
        setup: impl FnOnce(Setup<'a>) -> Setup<'a>,
    ) -> Self {
        Self::of(world, Outbox::classic(), 300.0, setup).await
    }

    /// As [`Scene::start`], with an outbox and events a second of the test's own.
    pub(super) async fn of(
        world: &'a World,
        outbox: Outbox,
        rate: f64,
        setup: impl FnOnce(Setup<'a>) -> Setup<'a>,
    ) -> Self {
        world.expect_errors(TROUBLE);
        outbox.create(world).await;
        small_batches(world.relay(&[&outbox])).migrate().await;
        let aggregate_type = world.aggregate_type(&outbox.table.replace('_', "-"));
        let mut load = Load::of(&aggregate_type);
        load.events = usize::MAX;
        load.rate = Some(rate);
        load.writers = 2;
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let setup = setup(small_batches(world.relay(&[&outbox])));
        let scene = Scene {
            world,
            writing: load.start(world, &outbox).await,
            relay: setup.run(),
            aggregate_type,
            outbox,
        };
        scene.flows().await;
        scene
    }

    /// Waits until events flow, and says how long that took.
    pub(super) async fn flows(&self) {
        let began = tokio::time::Instant::now();
        let before = self.published().await;
        eventually(LONG, "events flow", async || {
            self.published().await > before + 20
        })
        .await;
        say(&format!("20 events more after {:?}", began.elapsed()));
    }

    /// Rows marked so far; -1 while the database cannot be asked.
    pub(super) async fn published(&self) -> i64 {
        let table = &self.outbox.table;
        let sql = format!("select count(*) from {table} where published_at is not null");
        let asked = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.world.pool);
        asked.await.unwrap_or(-1)
    }

    /// Ends the load, waits until all is quiet, and holds what arrived against what was written.
    pub(super) async fn end(self, duplicates_max: usize) -> Report {
        let (world, ledger) = self.quiet().await;
        let report = world.check(&ledger).await;
        say(&format!("{report}"));
        report.assert_clean(duplicates_max);
        report
    }

    /// Ends the load and the relay: nothing is pending then, nothing parked, and no transaction of
    /// the relay's is left open.
    pub(super) async fn quiet(mut self) -> (&'a World, Ledger) {
        let ledger = self.writing.stop().await;
        let began = tokio::time::Instant::now();
        self.outbox.wait_drained(self.world, LONG).await;
        say(&format!("drained {:?} after the load", began.elapsed()));
        assert!(self.relay.is_running(), "it lived through it");
        no_transaction_is_left_open(self.world).await;
        self.relay.stop().await;
        assert_eq!(
            parked(self.world).await,
            0,
            "a fault of the database is no row's"
        );
        (self.world, ledger)
    }
}

/// Waits until no relay has a transaction that is older than a batch takes.
pub(super) async fn no_transaction_is_left_open(world: &World) {
    let open = "select count(*) from pg_stat_activity
         where datname = current_database() and application_name = 'outbox-relay'
           and clock_timestamp() - xact_start > interval '1 second'";
    eventually(LONG, "no transaction is left open", async || {
        world.number(open).await == 0
    })
    .await;
}
