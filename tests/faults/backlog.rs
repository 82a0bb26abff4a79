//! A backlog that cannot go yet stands before rows that can.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::postgres_scene::LONG;
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::servers::say;
use crate::support::writers::{Ledger, Load, one};
use crate::support::{self, World, eventually, short_or_long, topic_of};

/// Puts `rows` events of `aggregates` orders into the outbox at one go.
async fn pile_up(world: &World, aggregate_type: &str, rows: i64, aggregates: i64) {
    world
        .execute(&format!(
            "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
             select md5((n % {aggregates})::text)::uuid, '{aggregate_type}', 'Piled', '{{}}'
               from generate_series(1, {rows}) n"
        ))
        .await;
    world.execute("vacuum analyze outbox").await;
}

/// Entries of the lane index read so far.
async fn entries_read(world: &World) -> i64 {
    // reports come with the end of a transaction, at most once a second
    sleep(Duration::from_millis(1_500)).await;
    world
        .number(
            "select coalesce(sum(idx_tup_read), 0)::bigint from pg_stat_user_indexes
              where relname = 'outbox' and indexrelname like 'outbox_outbox_relay%'",
        )
        .await
}

#[test]
fn a_paused_topics_backlog_at_the_head_of_every_lane_is_not_read_again_and_again() {
    support::run(async |world| {
        let rows = short_or_long(100_000, 1_000_000);
        let outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Delete);
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (stuck, well) = (world.aggregate_type("Stuck"), world.aggregate_type("Well"));
        // its topic does not exist
        pile_up(world, &stuck, rows, 1_000).await;
        world.kafka.create_topic(&topic_of(&well), 4, &[]).await;
        let relay = setup.run();
        relay.wait_line("its rows wait", LONG).await;
        let mut load = Load::of(&well);
        load.events = usize::MAX;
        load.rate = Some(200.0);
        let writing = load.start(world, &outbox).await;
        let topic = topic_of(&well);
        eventually(LONG, "the other topic flows", async || {
            world.kafka.count(&topic).await > 50
        })
        .await;
        // the backlog has been passed when a while costs less than reading it once
        let began = Instant::now();
        let mut read = i64::MAX;
        while began.elapsed() < LONG * 2 && read > rows / 2 {
            let before = entries_read(world).await;
            sleep(Duration::from_secs(2)).await;
            read = entries_read(world).await - before;
            say(&format!(
                "{read} entries read in a while, {:?} on",
                began.elapsed()
            ));
        }
        assert!(read <= rows / 2, "{read} entries read for a trickle");
        let sent = world.kafka.count(&topic).await;
        eventually(LONG, "and it flows on", async || {
            world.kafka.count(&topic).await > sent + 100
        })
        .await;
        // all of the backlog goes when it can
        let ledger = writing.stop().await;
        let late = topic_of(&stuck);
        world.kafka.create_topic(&late, 4, &[]).await;
        outbox.wait_drained(world, LONG * 3).await;
        relay.stop().await;
        assert_eq!(parked(world).await, 0);
        assert!(
            world.kafka.count(&late).await >= rows,
            "none is left behind"
        );
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_row_that_turns_up_late_below_a_paused_backlog_keeps_its_place() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (stuck, well) = (world.aggregate_type("Stuck"), world.aggregate_type("Well"));
        world.kafka.create_topic(&topic_of(&well), 4, &[]).await;
        // drawn before the backlog, committed long after it
        let orders: Vec<String> = (0..8).map(|_| Uuid::new_v4().to_string()).collect();
        let mut late = PgConnection::connect(&world.database_url).await.unwrap();
        sqlx::query("begin").execute(&mut late).await.unwrap();
        let mut ledger = Ledger::default();
        for order in &orders {
            let event = support::writers::Event {
                outbox: &outbox,
                aggregate_type: &well,
                order,
                n: 1,
                payload: Some("{}"),
                trace: None,
            };
            let mut written = support::writers::insert(&mut late, event).await.unwrap();
            written.fate = support::checker::Fate::Committed;
            ledger.push(written);
        }
        pile_up(world, &stuck, 20_000, 1_000).await;
        let relay = setup.run();
        relay.wait_line("its rows wait", LONG).await;
        sleep(Duration::from_secs(4)).await;
        sqlx::query("commit").execute(&mut late).await.unwrap();
        for n in 2..=3 {
            for order in &orders {
                ledger.push(one(world, &outbox, &well, order, n).await);
            }
        }
        eventually(LONG, "they all are there", async || {
            outbox.published(world).await >= 24
        })
        .await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_foreign_lock_on_the_first_of_a_hundred_thousand_rows_delays_that_aggregate_alone() {
    support::run(async |world| {
        let rows = short_or_long(30_000, 300_000);
        let outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Delete);
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (large, well) = (world.aggregate_type("Large"), world.aggregate_type("Well"));
        for aggregate_type in [&large, &well] {
            world
                .kafka
                .create_topic(&topic_of(aggregate_type), 1, &[])
                .await;
        }
        pile_up(world, &large, rows, 1).await;
        let mut foreign = PgConnection::connect(&world.database_url).await.unwrap();
        let lock = "select from outbox order by seq limit 1 for update";
        for sql in ["begin", lock] {
            sqlx::query(sql).execute(&mut foreign).await.unwrap();
        }
        let relay = setup.run();
        let mut load = Load::of(&well);
        load.events = 500;
        load.aggregates = 200;
        let ledger = load.start(world, &outbox).await.finish().await;
        let topic = topic_of(&well);
        let committed = i64::try_from(ledger.committed()).unwrap();
        let began = Instant::now();
        eventually(LONG, "all others flow", async || {
            world.kafka.count(&topic).await >= committed
        })
        .await;
        say(&format!(
            "all others are there {:?} after the last",
            began.elapsed()
        ));
        assert_eq!(
            world.kafka.count(&topic_of(&large)).await,
            0,
            "not past its first"
        );
        sqlx::query("commit").execute(&mut foreign).await.unwrap();
        outbox.wait_drained(world, LONG * 2).await;
        relay.stop().await;
        assert_eq!(world.kafka.count(&topic_of(&large)).await, rows);
        world.check(&ledger).await.assert_clean(0);
    });
}
