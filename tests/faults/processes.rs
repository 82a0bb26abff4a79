//! Relays that die, join, leave and freeze, at chosen steps and at random ones.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Relay;
use crate::support::writers::Load;
use crate::support::{self, Rng, World, short_or_long, topic_of};

const SOON: Duration = Duration::from_secs(60);
const ROWS_MAX: usize = 20;
const WORKERS: usize = 2;

/// Where a relay can be told to die, in the order a batch comes by.
const STEPS: &[&str] = &[
    "claim_before",
    "claim_after",
    "sink_enqueue",
    "sink_acked",
    "settle_before",
    "settle_before_commit",
    "settle_after_commit",
];

#[test]
fn a_relay_that_marks_is_killed_at_every_step_of_a_batch() {
    support::run(async |world| killed_at_every_step(world, OnPublished::Mark).await);
}

#[test]
fn a_relay_that_deletes_is_killed_at_every_step_of_a_batch() {
    support::run(async |world| killed_at_every_step(world, OnPublished::Delete).await);
}

/// Two relays under load. One lives; the other dies at each step in turn, and what is settled by
/// then must be in Kafka.
async fn killed_at_every_step(world: &World, on_published: OnPublished) {
    let outbox = Outbox::new("outbox", Layout::Classic, on_published);
    outbox.create(world).await;
    let setup = || {
        let rows_max = ROWS_MAX.to_string();
        let setup = world.relay(&[&outbox]).workers(WORKERS);
        setup.set("relay", "claim_rows_max", &rows_max)
    };
    setup().migrate().await;
    let mut load = Load::of(&world.aggregate_type("Order"));
    load.events = usize::MAX;
    load.aggregates = 8;
    load.rate = Some(400.0);
    let topic = topic_of(&load.aggregate_type);
    world.kafka.create_topic(&topic, 4, &[]).await;
    let writing = load.start(world, &outbox).await;
    let mut rng = Rng::of_run(on_published.name());
    let other = setup().run();
    let mut kills = 0;
    for _ in 0..short_or_long(1, 50) {
        for step in STEPS {
            // not always at the first batch
            let batches = rng.below(10);
            let action = format!("{batches}*off->return");
            let mut doomed = setup().failpoint(step, &action).run();
            let status = doomed.wait_exit(SOON).await;
            assert!(!status.success(), "it dies at {step}: {status}");
            world.assert_settled_is_readable(&outbox, &topic).await;
            kills += 1;
        }
        // and while it stops
        let stopping = setup().failpoint("settle_before", "sleep(300)").run();
        sleep(rng.between(500, 1_500)).await;
        stopping.sigterm();
        sleep(rng.between(0, 300)).await;
        stopping.sigkill();
        world.assert_settled_is_readable(&outbox, &topic).await;
        kills += 1;
    }
    let ledger = writing.stop().await;
    outbox.wait_drained(world, SOON).await;
    other.stop().await;
    let report = world.check(&ledger).await;
    report.assert_clean(kills * WORKERS * ROWS_MAX);
    assert!(report.delivered > 50, "{report}");
}

/// Two to four relays on five hot aggregates; every few hundred milliseconds one of them joins,
/// leaves, dies, or freezes for a while.
#[test]
fn relays_join_leave_die_and_freeze_at_random_on_hot_aggregates() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        outbox.create(world).await;
        let rows_max = ROWS_MAX.to_string();
        let setup = world.relay(&[&outbox]).workers(WORKERS);
        let setup = setup.set("relay", "claim_rows_max", &rows_max);
        setup.migrate().await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = usize::MAX;
        load.aggregates = 5;
        load.rate = Some(600.0);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let writing = load.start(world, &outbox).await;
        let mut rng = Rng::of_run("hot");
        let mut relays: Vec<Relay> = vec![setup.run(), setup.run()];
        let mut faults = 0;
        for _ in 0..short_or_long(30, 2_000) {
            sleep(rng.between(50, 400)).await;
            let any = usize::try_from(rng.below(relays.len() as u64)).expect("an index");
            match rng.below(4) {
                0 if relays.len() < 4 => relays.push(setup.run()),
                1 if relays.len() > 2 => relays.swap_remove(any).stop().await,
                2 => {
                    // Kafka may have its batch, and it may go on with it when it wakes
                    faults += 1;
                    relays[any].sigstop();
                    sleep(rng.between(50, 300)).await;
                    relays[any].sigcont();
                }
                _ => {
                    faults += 1;
                    std::mem::replace(&mut relays[any], setup.run()).sigkill();
                    world.assert_settled_is_readable(&outbox, &topic).await;
                }
            }
        }
        let ledger = writing.stop().await;
        outbox.wait_drained(world, SOON).await;
        for relay in relays {
            relay.stop().await;
        }
        let report = world.check(&ledger).await;
        report.assert_clean(faults * WORKERS * ROWS_MAX);
        assert!(report.delivered > 100, "{report}");
    });
}
