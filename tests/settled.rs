//! P3 and P8: claims begin where their lanes are settled, so dead rows cost nothing; and nothing that may
//! still turn up lies below.
//!
//! There is one lane, so that what one aggregate does moves the place of all; and no sweep, which would
//! find what was missed.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::debian::Stage;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::{Relay, Setup};
use crate::support::writers::{Event, Ledger, one, to_be_committed};
use crate::support::{self, World, eventually, topic_of};

const SOON: Duration = Duration::from_secs(90);
const SETTLED: &str = "select coalesce(max(settled_seq), 0) from outbox_relay.lane";

/// A relay of one lane, and what was written for it.
struct Scene<'a> {
    world: &'a World,
    outbox: Outbox,
    setup: Setup<'a>,
    relay: Relay,
    aggregate_type: String,
    ledger: Ledger,
}

impl<'a> Scene<'a> {
    async fn start(world: &'a World, on_published: OnPublished, sweep: &str) -> Self {
        let mut outbox = Outbox::new("outbox", Layout::Classic, on_published);
        outbox.config = "lanes = 1\n".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let setup = setup.set("relay", "sweep_interval", sweep);
        let relay = setup.run();
        Self {
            world,
            outbox,
            setup,
            relay,
            aggregate_type,
            ledger: Ledger::default(),
        }
    }

    /// The first `events` of a new aggregate, one after the other.
    async fn write(&mut self, events: i64) -> String {
        let order = Uuid::new_v4().to_string();
        for n in 1..=events {
            self.write_one(&order, n).await;
        }
        order
    }

    async fn write_one(&mut self, order: &str, n: i64) {
        let written = one(self.world, &self.outbox, &self.aggregate_type, order, n).await;
        self.ledger.push(written);
    }

    /// Writes until the lane says that it is settled beyond `seq`.
    async fn settled_beyond(&mut self, seq: i64) -> i64 {
        let began = Instant::now();
        loop {
            self.write(80).await;
            let settled = self.world.number(SETTLED).await;
            if settled > seq {
                return settled;
            }
            assert!(began.elapsed() < SOON, "settled up to {settled} only");
        }
    }

    async fn last_drawn(&self) -> i64 {
        let last = "select last_value from outbox_seq_seq";
        self.world.number(last).await
    }

    /// All that was written has arrived, in order, once.
    async fn end(self) {
        self.outbox.wait_drained(self.world, SOON).await;
        self.relay.stop().await;
        self.world.check(&self.ledger).await.assert_clean(0);
    }

    /// An event of its own aggregate on `connection`, whose transaction the caller ends.
    async fn insert_on(&mut self, connection: &mut PgConnection) {
        let order = Uuid::new_v4().to_string();
        let event = Event {
            outbox: &self.outbox,
            aggregate_type: &self.aggregate_type,
            order: &order,
            n: 1,
            payload: Some("{}"),
            trace: None,
        };
        self.ledger.push(to_be_committed(connection, event).await);
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection);
    done.await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Opens a transaction that has drawn a number in the way of `begin`, lets many others overtake it, and
/// ends it by `commit`.
async fn overtaken(world: &World, begin: &[&str], then: &[&str], commit: &str) {
    let mut scene = Scene::start(world, OnPublished::Mark, "\"1h\"").await;
    let before = scene.settled_beyond(0).await;
    let mut late = PgConnection::connect(&world.database_url).await.unwrap();
    for sql in begin {
        run(&mut late, sql).await;
    }
    scene.insert_on(&mut late).await;
    let drawn = scene.last_drawn().await;
    // it is among those who write when the last number is read
    for _ in 0..2 {
        scene.write(60).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    for sql in then {
        run(&mut late, sql).await;
    }
    for _ in 0..4 {
        scene.write(60).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let settled = world.number(SETTLED).await;
    assert!(
        settled < drawn,
        "settled up to {settled}, and {drawn} is open"
    );
    assert!(settled >= before, "{settled} {before}");
    run(&mut late, commit).await;
    scene.settled_beyond(drawn).await;
    scene.end().await;
}

#[test]
fn a_transaction_that_commits_late_is_waited_for() {
    support::run(async |world| overtaken(world, &["begin"], &[], "commit").await);
}

#[test]
fn a_late_insert_in_a_savepoint_is_waited_for() {
    support::run(async |world| {
        // the lock of what is rolled back goes, that of what is released stays
        let begin = ["begin", "savepoint a", "savepoint b"];
        let then = ["release savepoint b", "release savepoint a"];
        overtaken(world, &begin, &then, "commit").await;
    });
}

#[test]
fn a_prepared_transaction_is_waited_for() {
    let stage = Stage::primary(&["max_prepared_transactions=5"]);
    support::run_on(stage, async |world, _| {
        let prepare = ["prepare transaction 'late'"];
        overtaken(world, &["begin"], &prepare, "commit prepared 'late'").await;
    });
}

#[test]
fn a_late_insert_by_a_trigger_or_a_copy_is_waited_for() {
    support::run(async |world| {
        let mut scene = Scene::start(world, OnPublished::Delete, "\"1h\"").await;
        scene.settled_beyond(0).await;
        let id = Uuid::new_v4();
        let aggregate_type = scene.aggregate_type.clone();
        world
            .execute(&format!(
                "create table orders (id uuid);
                 create function tell() returns trigger language plpgsql as $$ begin
                   insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                   values (new.id, '{aggregate_type}', 'OrderCreated', '{{}}'); return new; end $$;
                 create trigger tell after insert on orders for each row execute function tell()"
            ))
            .await;
        let connect = async || PgConnection::connect(&world.database_url).await.unwrap();
        let (mut by_trigger, mut by_copy) = (connect().await, connect().await);
        run(&mut by_trigger, "begin").await;
        let insert = format!("insert into orders values ('{id}')");
        run(&mut by_trigger, &insert).await;
        run(&mut by_copy, "begin").await;
        let copy = "copy outbox (aggregate_id, aggregate_type, event_type, payload) from stdin";
        let mut copying = by_copy.copy_in_raw(copy).await.unwrap();
        let row = format!("{}\t{aggregate_type}\tOrderCreated\t{{}}\n", Uuid::new_v4());
        copying.send(row.as_bytes()).await.unwrap();
        copying.finish().await.unwrap();
        let drawn = scene.last_drawn().await;
        for _ in 0..4 {
            scene.write(60).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        let settled = world.number(SETTLED).await;
        assert!(settled < drawn - 1, "{settled} {drawn}");
        run(&mut by_trigger, "commit").await;
        run(&mut by_copy, "commit").await;
        scene.settled_beyond(drawn).await;
        scene.outbox.wait_drained(world, SOON).await;
        scene.relay.stop().await;
        let report = world.check(&scene.ledger).await;
        report.assert_whole();
        assert_eq!(
            report.phantom.len(),
            2,
            "the two that no ledger has: {report}"
        );
    });
}

#[test]
fn a_long_reader_holds_nothing_up_and_its_dead_rows_are_not_read() {
    support::run(async |world| {
        let mut scene = Scene::start(world, OnPublished::Delete, "\"1h\"").await;
        let mut reader = PgConnection::connect(&world.database_url).await.unwrap();
        run(
            &mut reader,
            "begin isolation level repeatable read; select count(*) from outbox",
        )
        .await;
        let bulk = world.aggregate_type("Bulk");
        let topic = topic_of(&bulk);
        world.kafka.create_topic(&topic, 1, &[]).await;
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select gen_random_uuid(), '{bulk}', 'Made', '{{}}' from generate_series(1, 20000)"
            ))
            .await;
        scene.outbox.wait_drained(world, SOON).await;
        let drawn = scene.last_drawn().await;
        scene.settled_beyond(drawn).await;
        scene.outbox.wait_drained(world, SOON).await;
        let counted = async |what: &str| {
            let sql = format!(
                "select sum({what}(i.indexrelid))::int8 from pg_index i
                  where i.indrelid = 'outbox'::regclass and i.indexrelid::regclass::text like '%relay%'"
            );
            world.number(&sql).await
        };
        let scans_and_entries = async || {
            let scans = counted("pg_stat_get_numscans").await;
            (scans, counted("pg_stat_get_tuples_returned").await)
        };
        // a connection that ends tells what it counted: one that idles may keep it for long. And a relay
        // that starts must not read them either, once it has looked at the table
        let Scene { setup, relay, .. } = &mut scene;
        let old = std::mem::replace(relay, setup.run());
        old.stop().await;
        scene.relay.wait_line("serving the outbox", SOON).await;
        // the tests' own asked what is pending, which reads the dead rows
        let pid = sqlx::query_scalar::<_, i32>("select pg_backend_pid()");
        let reader_pid = pid.fetch_one(&mut reader).await.unwrap();
        world
            .execute(&format!(
                "select pg_terminate_backend(pid) from pg_stat_activity
                  where datname = current_database() and application_name <> 'outbox-relay'
                    and pid not in (pg_backend_pid(), {reader_pid})"
            ))
            .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = scans_and_entries().await;
        scene.write(50).await;
        // (to ask the table what is pending would read the dead rows, and count)
        let topic = topic_of(&scene.aggregate_type);
        let committed = i64::try_from(scene.ledger.committed()).unwrap();
        eventually(SOON, "all of it has arrived", async || {
            world.kafka.count(&topic).await >= committed
        })
        .await;
        scene.relay.stop().await;
        eventually(SOON, "the counters have come", async || {
            scans_and_entries().await.0 > before.0
        })
        .await;
        let after = scans_and_entries().await;
        // 20,000 lie dead there, and each claim would read them all
        let each = (after.1 - before.1) / (after.0 - before.0);
        assert!(each < 2_000, "each scan read {each} index entries");
        run(&mut reader, "rollback").await;
        world.check(&scene.ledger).await.assert_clean(0);
    });
}

#[test]
fn a_restarted_sequence_voids_what_lanes_say() {
    support::run(async |world| {
        world.expect_errors("set back");
        let mut scene = Scene::start(world, OnPublished::Delete, "\"1h\"").await;
        for again in [
            "truncate outbox restart identity",
            "alter sequence outbox_seq_seq restart",
            "select setval('outbox_seq_seq', 1)",
        ] {
            let settled = scene.settled_beyond(20).await;
            scene.outbox.wait_drained(world, SOON).await;
            world.execute(again).await;
            scene.write(3).await;
            let drawn = scene.last_drawn().await;
            assert!(drawn < settled, "{again}: {drawn} {settled}");
            scene.outbox.wait_drained(world, SOON).await;
        }
        scene.end().await;
    });
}

#[test]
fn rows_that_are_put_back_are_found_and_told() {
    support::run(async |world| {
        let mut scene = Scene::start(world, OnPublished::Mark, "\"1s\"").await;
        scene.settled_beyond(50).await;
        scene.outbox.wait_drained(world, SOON).await;
        world
            .execute("update outbox set published_at = null where seq <= 5")
            .await;
        scene.relay.wait_line("somebody put them back", SOON).await;
        scene.outbox.wait_drained(world, SOON).await;
        // the same for a run that ends by itself, which has no time for a sweep
        let setup = scene.setup;
        scene.relay.stop().await;
        world
            .execute("update outbox set published_at = null where seq = 7")
            .await;
        let ended = setup.until_empty(SOON).await;
        assert_eq!(ended.code(), Some(0));
        assert_eq!(scene.outbox.pending(world).await, 0);
        let report = world.check(&scene.ledger).await;
        report.assert_clean(6);
        assert_eq!(report.duplicates, 6);
    });
}

#[test]
fn a_crash_that_takes_numbers_back_takes_back_what_was_said_of_them() {
    support::run_on(Stage::primary(&["fsync=on"]), async |world, stage| {
        world.expect_errors("outbox");
        let mut scene = Scene::start(world, OnPublished::Delete, "\"1h\"").await;
        for _ in 0..3 {
            let drawn = scene.last_drawn().await;
            scene.settled_beyond(drawn).await;
            // numbers that nobody commits, on a connection that flushes nothing
            let mut gone = PgConnection::connect(&world.database_url).await.unwrap();
            let drawing = "begin; select nextval('outbox_seq_seq') from generate_series(1, 500);
                           rollback";
            run(&mut gone, drawing).await;
            stage.clusters[0].stop_at_once().await;
            stage.clusters[0].server.start().await;
            eventually(SOON, "the server is back", async || {
                PgConnection::connect(&world.database_url).await.is_ok()
            })
            .await;
            scene.write(5).await;
            scene.outbox.wait_drained(world, SOON).await;
        }
        scene.outbox.wait_drained(world, SOON).await;
        scene.relay.stop().await;
        let report = world.check(&scene.ledger).await;
        report.assert_whole();
    });
}
