//! Somebody lays hands on the table and its sequence.

use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use super::postgres_scene::{LONG, Scene, small_batches};
use crate::support::debian::{Stage, programs};
use crate::support::outbox::Outbox;
use crate::support::writers::{Ledger, one};
use crate::support::{self, eventually, topic_of};

#[test]
fn a_sequence_that_is_made_to_cache_while_a_relay_runs_is_told() {
    support::run(async |world| {
        world.expect_errors("caches");
        let scene = Scene::start(world, |setup| setup).await;
        world
            .execute("alter sequence outbox_seq_seq cache 20")
            .await;
        let line = scene.relay.wait_line("caches 20", LONG).await;
        assert!(
            line.contains("alter sequence"),
            "it says what to do: {line}"
        );
        world.execute("alter sequence outbox_seq_seq cache 1").await;
        // (numbers that open connections keep to themselves are the harm that the line tells of)
        let pids = "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name <> 'outbox-relay' and pid <> pg_backend_pid()";
        world.execute(pids).await;
        let (world, ledger) = scene.quiet().await;
        let report = world.check(&ledger).await;
        assert!(
            report.lost.is_empty() && report.phantom.is_empty(),
            "{report}"
        );
    });
}

#[test]
fn a_sequence_that_was_set_back_is_told_and_refused_and_the_remedy_works() {
    support::run(async |world| {
        world.expect_errors("set back");
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = small_batches(world.relay(&[&outbox]));
        setup.migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        let order = Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        // no topic yet: they wait in the table
        let mut relay = setup.run();
        relay.wait_line("serving the outbox", LONG).await;
        for n in 1..=5 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        let set_back = "alter sequence outbox_seq_seq restart with 2";
        world.execute(set_back).await;
        let told = relay.wait_line("set back", LONG).await;
        assert!(told.contains("select setval("), "{told}");
        assert!(
            relay.is_running(),
            "it goes on: what waits is in order still"
        );
        relay.stop().await;
        let mut refused = setup.run();
        let status = refused.wait_exit(LONG).await;
        assert_eq!(status.code(), Some(78), "a start is refused");
        let lines = refused.lines().join("\n");
        let remedy = lines.split("Run: ").nth(1).expect("a remedy");
        let (remedy, _) = remedy.split_once(';').expect("a statement");
        world.execute(&remedy.replace("\\\"", "\"")).await;
        for n in 6..=8 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 2, &[]).await;
        let relay = setup.run();
        outbox.wait_drained(world, LONG).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_drained_table_may_be_truncated_and_its_sequence_restarted_under_load() {
    support::run(async |world| {
        let scene = Scene::start(world, |setup| setup).await;
        world
            .execute("create sequence truncated minvalue 0 start with 0")
            .await;
        for round in 1..=3 {
            // the writers wait for the lock, and who holds it sees all there is
            let truncate = "do $$ begin
               lock table outbox in access exclusive mode;
               if not exists (select from outbox where published_at is null) then
                 truncate outbox restart identity;
                 perform nextval('truncated');
               end if;
             end $$";
            let truncated = "select last_value + is_called::int from truncated";
            eventually(LONG, "a moment without a pending row", async || {
                world.execute(truncate).await;
                world.number(truncated).await >= round
            })
            .await;
            scene.flows().await;
        }
        scene.end(0).await;
    });
}

#[test]
fn published_rows_that_are_opened_again_come_again_and_in_order() {
    support::run(async |world| {
        let scene = Scene::start(world, |setup| setup).await;
        scene.flows().await;
        // by hand, for a consumer that lost its data, say
        let reopened = world
            .number(
                "with again as (update outbox set published_at = null
                   where published_at is not null returning 1)
                 select count(*) from again",
            )
            .await;
        let reopened = usize::try_from(reopened).unwrap();
        assert!(reopened > 20);
        let report = scene.end(reopened).await;
        assert_eq!(report.duplicates, reopened, "each of them once more");
    });
}

#[test]
fn a_table_restored_from_a_dump_under_a_running_relay_is_served_again() {
    support::run_on(Stage::primary(&[]), async |world, _| {
        world.expect_errors("outbox");
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = small_batches(world.relay(&[&outbox]));
        setup.migrate().await;
        let aggregate_type = world.aggregate_with_topic("Order", 2).await;
        let order = Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        let mut relay = setup.run();
        for n in 1..=3 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        outbox.wait_drained(world, LONG).await;
        let backup = world.file("outbox.sql");
        let run = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(programs().unwrap().join(name));
            let done = command
                .args(arguments)
                .arg(&world.database_url)
                .output()
                .unwrap();
            assert!(
                done.status.success(),
                "{name}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
        };
        let file = backup.to_string_lossy().into_owned();
        run("pg_dump", &["--table", "public.outbox", "--file", &file]);
        world.execute("drop table outbox").await;
        relay.wait_line("does not exist yet", LONG).await;
        sleep(Duration::from_secs(1)).await;
        assert!(relay.is_running(), "it waits");
        run(
            "psql",
            &[
                "--quiet",
                "--set",
                "ON_ERROR_STOP=1",
                "--file",
                &file,
                "--dbname",
            ],
        );
        for n in 4..=6 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        outbox.wait_drained(world, LONG).await;
        relay.stop().await;
        // marked rows are marked in the dump, so nothing comes twice
        world.check(&ledger).await.assert_clean(0);

        // a dump that left the sequence behind: numbers that rows have would be given again
        world.execute("select setval('outbox_seq_seq', 1)").await;
        let reopen = "update outbox set published_at = null where seq > 2";
        world.execute(reopen).await;
        let mut refused = setup.run();
        let status = refused.wait_exit(LONG).await;
        assert_eq!(status.code(), Some(78), "such a table is refused");
    });
}
