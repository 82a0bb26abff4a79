//! P5 with no fault at all: stops, restarts, joins and leaves repeat nothing.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Setup;
use crate::support::writers::{Load, Writing};
use crate::support::{self, World, topic_of};

/// A migrated outbox under a steady load.
async fn under_load<'a>(world: &'a World, outbox: &Outbox) -> (Setup<'a>, Writing) {
    outbox.create(world).await;
    let setup = world.relay(&[outbox]).workers(2);
    setup.migrate().await;
    let mut load = Load::of(&world.aggregate_type("Order"));
    load.events = usize::MAX;
    load.rate = Some(600.0);
    world
        .kafka
        .create_topic(&topic_of(&load.aggregate_type), 4, &[])
        .await;
    let writing = load.start(world, outbox).await;
    (setup, writing)
}

/// Ends the load and asserts that every event arrived exactly once.
async fn exactly_once(world: &World, outbox: &Outbox, writing: Writing) {
    let ledger = writing.stop().await;
    outbox.wait_drained(world, Duration::from_secs(30)).await;
    assert!(
        ledger.committed() > 50,
        "only {} events",
        ledger.committed()
    );
    world.check(&ledger).await.assert_clean(0);
}

#[test]
fn a_relay_that_is_stopped_again_and_again_repeats_nothing() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, writing) = under_load(world, &outbox).await;
        for _ in 0..6 {
            let relay = setup.run();
            sleep(Duration::from_millis(400)).await;
            relay.stop().await;
        }
        let last = setup.run();
        exactly_once(world, &outbox, writing).await;
        last.stop().await;
    });
}

#[test]
fn a_rolling_restart_repeats_nothing() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Delete);
        let (setup, writing) = under_load(world, &outbox).await;
        let mut relays = vec![setup.run(), setup.run(), setup.run()];
        for _ in 0..2 * relays.len() {
            relays.push(setup.run());
            sleep(Duration::from_millis(300)).await;
            relays.remove(0).stop().await;
        }
        exactly_once(world, &outbox, writing).await;
        for relay in relays {
            relay.stop().await;
        }
    });
}

#[test]
fn relays_that_join_and_leave_repeat_nothing() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        let (setup, writing) = under_load(world, &outbox).await;
        let mut relays = Vec::new();
        for _ in 0..4 {
            relays.push(setup.run());
            sleep(Duration::from_millis(300)).await;
        }
        while relays.len() > 1 {
            relays.swap_remove(0).stop().await;
            sleep(Duration::from_millis(300)).await;
        }
        exactly_once(world, &outbox, writing).await;
        for relay in relays {
            relay.stop().await;
        }
    });
}
