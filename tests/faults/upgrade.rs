//! What changes while relays run: their program, and the number of lanes.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::servers::{given, say};
use crate::support::writers::Load;
use crate::support::{self, World, eventually, short_or_long, topic_of};

const SOON: Duration = Duration::from_secs(60);

/// The program to upgrade from, and back to: `OUTBOX_TEST_OTHER_RELAY`. CI gives the program as users build it,
/// which has no failpoints; give an older one before a release.
fn other_program() -> PathBuf {
    let this = PathBuf::from(env!("CARGO_BIN_EXE_outbox-relay"));
    let Some(other) = given("OUTBOX_TEST_OTHER_RELAY").map(PathBuf::from) else {
        say("no OUTBOX_TEST_OTHER_RELAY: the rolling upgrade is one to the same build");
        return this;
    };
    assert!(other.is_file(), "{}: no such program", other.display());
    other
}

fn load(world: &World) -> Load {
    let mut load = Load::of(&world.aggregate_type("Order"));
    load.events = usize::MAX;
    load.aggregates = 8;
    load.rate = Some(500.0);
    load
}

#[test]
fn a_rolling_upgrade_between_two_builds_repeats_nothing() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        outbox.create(world).await;
        let new = || world.relay(&[&outbox]).workers(2);
        let old = || new().program(other_program());
        old().migrate().await;
        let load = load(world);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let writing = load.start(world, &outbox).await;
        let mut relays = vec![old().run(), old().run()];
        sleep(Duration::from_millis(500)).await;
        // the new build's migrations, while the old one serves
        new().migrate().await;
        for round in 0..short_or_long(6, 200) {
            // two forward, one back: a roll-out, and a roll-back of half of it
            relays.push(if round % 3 == 2 {
                old().run()
            } else {
                new().run()
            });
            sleep(Duration::from_millis(400)).await;
            relays.remove(0).stop().await;
        }
        let ledger = writing.stop().await;
        outbox.wait_drained(world, SOON).await;
        for relay in relays {
            relay.stop().await;
        }
        let report = world.check(&ledger).await;
        report.assert_clean(0);
        assert!(report.delivered > 50, "{report}");
    });
}

#[test]
fn the_number_of_lanes_changes_under_running_relays_and_only_as_migrate_says() {
    support::run(async |world| {
        world.expect_errors("lanes now");
        let with = |lanes: &str| {
            let mut outbox = Outbox::classic();
            outbox.config = format!("lanes = {lanes}");
            outbox
        };
        let (few, many) = (with("2"), with("16"));
        few.create(world).await;
        world.relay(&[&few]).migrate().await;
        let load = load(world);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let writing = load.start(world, &few).await;
        let relay = |outbox| {
            let setup = world.relay(&[outbox]).workers(2);
            let setup = setup.set("relay", "claim_rows_max", "10");
            // so that a batch claimed by the old number is still in hand under the new one
            setup.failpoint("claim_after", "50%sleep(20)").run()
        };
        let flows = async || {
            let before = few.published(world).await;
            eventually(SOON, "events flow", async || {
                few.published(world).await > before + 50
            })
            .await;
        };
        let old = [relay(&few), relay(&few)];
        flows().await;

        // another number in a config changes nothing
        let lanes = "select count(*) from outbox_relay.lane";
        world.relay(&[&many]).migrate().await;
        assert_eq!(world.number(lanes).await, 2);
        flows().await;

        world
            .execute("delete from outbox_relay.lane where outbox = 'public.outbox'")
            .await;
        world.relay(&[&many]).migrate().await;
        assert_eq!(world.number(lanes).await, 16);
        let new = [relay(&many), relay(&few)];
        // they count anew before they claim anything by the old number
        for relay in &old {
            relay.wait_line("16 lanes now", SOON).await;
        }
        for _ in 0..short_or_long(3, 50) {
            flows().await;
        }
        let ledger = writing.stop().await;
        few.wait_drained(world, SOON).await;
        for relay in old.into_iter().chain(new) {
            relay.stop().await;
        }
        world.check(&ledger).await.assert_clean(0);
    });
}
