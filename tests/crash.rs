//! P1, P2, P5, P6: whatever dies, whenever. Nothing is lost, nothing rolled back arrives, and what
//! arrives twice is equal.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::{Ledger, Load, one};
use crate::support::{self, Rng, World, eventually, topic_of};

const ROWS_MAX: usize = 50;
const WORKERS: usize = 2;

#[test]
fn nothing_is_lost_and_nothing_invented_while_relays_that_mark_are_killed() {
    support::run(async |world| killed_again_and_again(world, OnPublished::Mark).await);
}

#[test]
fn nothing_is_lost_and_nothing_invented_while_relays_that_delete_are_killed() {
    support::run(async |world| killed_again_and_again(world, OnPublished::Delete).await);
}

#[test]
fn nothing_is_lost_and_nothing_invented_while_relays_that_archive_are_killed() {
    support::run(async |world| killed_again_and_again(world, OnPublished::Archive).await);
}

/// Two relays under load, one of them killed every few hundred milliseconds and replaced.
async fn killed_again_and_again(world: &World, on_published: OnPublished) {
    let outbox = Outbox::new("outbox", Layout::Classic, on_published);
    outbox.create(world).await;
    let setup = world.relay(&[&outbox]).workers(WORKERS).set(
        "relay",
        "claim_rows_max",
        &ROWS_MAX.to_string(),
    );
    setup.migrate().await;
    let mut load = Load::of(&world.aggregate_type("Order"));
    load.events = usize::MAX;
    load.rollbacks = 20;
    load.rate = Some(800.0);
    let topic = topic_of(&load.aggregate_type);
    world.kafka.create_topic(&topic, 4, &[]).await;
    let writing = load.start(world, &outbox).await;
    let mut rng = Rng::of_run(on_published.name());
    let mut relays = [setup.run(), setup.run()];
    let kills = support::short_or_long(16, 1_000);
    for kill in 0..kills {
        // Some die before they have claimed anything, most in the middle of a batch.
        sleep(rng.between(50, 700)).await;
        std::mem::replace(&mut relays[kill % 2], setup.run()).sigkill();
    }
    let ledger = writing.stop().await;
    outbox.wait_drained(world, Duration::from_secs(30)).await;
    for relay in relays {
        relay.stop().await;
    }
    assert!(
        ledger.committed() > 100,
        "only {} events",
        ledger.committed()
    );
    if on_published == OnPublished::Archive {
        let distinct = format!("select count(distinct id) from {}", outbox.history());
        let distinct = world.number(&distinct).await;
        assert_eq!(
            outbox.archived(world).await,
            distinct,
            "none is there twice"
        );
        assert_eq!(distinct, i64::try_from(ledger.committed()).unwrap());
    }
    let report = world.check(&ledger).await;
    assert!(report.rolled_back > 10, "{report}");
    // In flight at each kill: a batch for each worker.
    report.assert_clean(kills * WORKERS * ROWS_MAX);
}

#[test]
fn a_relay_killed_between_acknowledgement_and_commit_repeats_itself_byte_for_byte() {
    support::run(async |world| {
        for step in ["sink_acked", "settle_before", "settle_before_commit"] {
            let table = format!("outbox_{step}");
            let outbox = Outbox::new(&table, Layout::Classic, OnPublished::Mark);
            let (setup, aggregate_type) = outbox.prepare_as(world, &step.replace('_', "-")).await;
            let setup = setup.workers(1);
            let order = uuid::Uuid::new_v4().to_string();
            let mut ledger = Ledger::default();
            for n in 1..=3 {
                ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
            }

            let armed = world.relay(&[&outbox]).workers(1).failpoint(step, "return");
            let mut doomed = armed.run();
            let status = doomed.wait_exit(Duration::from_secs(20)).await;
            assert!(!status.success(), "it aborts at {step}: {status}");
            let before = world.kafka.read_all(&topic_of(&aggregate_type)).await.len();
            assert!(before > 0, "Kafka has some at {step}");
            assert_eq!(
                outbox.pending(world).await,
                3,
                "nothing is settled at {step}"
            );

            let status = setup.until_empty(Duration::from_secs(20)).await;
            assert!(status.success(), "{status}");
            let report = world.check(&ledger).await;
            report.assert_clean(before);
            assert_eq!(report.duplicates, before, "these came twice: {report}");
        }
    });
}

#[test]
fn a_relay_killed_after_its_commit_repeats_nothing() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]).workers(1);
        setup.migrate().await;
        let aggregate_type = world.aggregate_with_topic("Order", 2).await;
        let order = uuid::Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        for n in 1..=3 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        let armed = world.relay(&[&outbox]).workers(1);
        let mut doomed = armed.failpoint("settle_after_commit", "return").run();
        doomed.wait_exit(Duration::from_secs(20)).await;
        assert_eq!(outbox.pending(world).await, 0, "it was settled");
        assert!(setup.until_empty(Duration::from_secs(20)).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_frozen_relay_loses_its_claim_and_does_no_harm_when_it_wakes() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = || {
            let setup = world.relay(&[&outbox]).workers(1);
            setup
                .set("relay", "publish_timeout", "\"2s\"")
                .set("relay", "claim_rows_max", "50")
        };
        setup().migrate().await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = usize::MAX;
        load.rate = Some(300.0);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let writing = load.start(world, &outbox).await;
        // It lingers with a batch that Kafka has and Postgres does not know of, to be caught so.
        let frozen = setup().failpoint("settle_before", "sleep(1000)").run();
        let claims = async || {
            let sql = "select pid from pg_stat_activity
                 where datname = current_database() and application_name = 'outbox-relay'
                   and state = 'idle in transaction'";
            sqlx::query_scalar::<_, i32>(sql)
                .fetch_all(&world.pool)
                .await
                .unwrap()
        };
        eventually(Duration::from_secs(20), "Kafka has a batch", async || {
            world.kafka.count(&topic).await > 0
        })
        .await;
        frozen.sigstop();
        let lost = claims().await;
        assert!(!lost.is_empty(), "it is frozen with a claim");
        let other = setup().run();
        eventually(
            Duration::from_secs(30),
            "the server ends its claim",
            async || claims().await.iter().all(|pid| !lost.contains(pid)),
        )
        .await;
        let before = outbox.published(world).await;
        eventually(
            Duration::from_secs(60),
            "its events flow again",
            async || outbox.published(world).await > before + 200,
        )
        .await;
        world.expect_errors("terminat");
        frozen.sigcont();
        let ledger = writing.stop().await;
        outbox.wait_drained(world, Duration::from_secs(30)).await;
        frozen.stop().await;
        other.stop().await;
        let report = world.check(&ledger).await;
        report.assert_clean(50);
        assert!(
            report.duplicates > 0,
            "it was frozen behind Kafka's acknowledgement: {report}"
        );
    });
}
