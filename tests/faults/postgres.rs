//! What Postgres itself does to a relay. It stops without a word, ends connections, has none
//! to give, and refuses a statement for a reason that passes.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::sleep;

use super::postgres_scene::{LONG, ROWS_MAX, Scene, TROUBLE, WORKERS};
use crate::support::debian::Stage;
use crate::support::servers::say;
use crate::support::{self, Rng, World, eventually, short_or_long};

#[test]
fn postgres_stops_at_once_again_and_again() {
    let stops = short_or_long(3, 30);
    support::run_on(Stage::primary(&[]), async |world, stage| {
        let scene = Scene::start(world, |setup| setup).await;
        let mut rng = Rng::of_run("postgres_stops_at_once_again_and_again");
        for _ in 0..stops {
            sleep(rng.between(50, 800)).await;
            stage.clusters[0].stop_at_once().await;
            sleep(rng.between(100, 1_000)).await;
            stage.clusters[0].server.start().await;
            scene.flows().await;
        }
        scene.end(stops * WORKERS * ROWS_MAX).await;
    });
}

#[test]
fn every_connection_is_terminated_again_and_again() {
    support::run(async |world| {
        let rounds = short_or_long(12, 200);
        let scene = Scene::start(world, |setup| setup).await;
        let mut rng = Rng::of_run("every_connection_is_terminated_again_and_again");
        let mut ended = 0;
        for _ in 0..rounds {
            sleep(rng.between(100, 600)).await;
            ended += end_connections(world).await;
        }
        assert!(ended > 0, "some were there to end");
        say(&format!("{ended} connections ended"));
        scene.flows().await;
        scene.end(rounds * WORKERS * ROWS_MAX).await;
    });
}

/// Ends every connection of relays and of writers; says how many were the relays'.
async fn end_connections(world: &World) -> i64 {
    let sql = "select count(*) filter (where relay and ended)
                 from (select application_name = 'outbox-relay' as relay, pg_terminate_backend(pid) as ended
                         from pg_stat_activity
                        where datname = current_database() and pid <> pg_backend_pid() offset 0) a";
    let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
    let ended = sqlx::query_scalar(sql).fetch_one(&mut connection).await;
    ended.unwrap()
}

#[test]
fn a_relay_waits_while_the_server_has_too_many_connections() {
    let settings = ["max_connections=60", "superuser_reserved_connections=0"];
    support::run_on(Stage::primary(&settings), async |world, stage| {
        let scene = Scene::start(world, |setup| setup).await;
        // direct, so that the proxy is left to the relay and the writers
        let mut taken = Vec::new();
        let own = stage.clusters[0].url();
        let mut admin = PgConnection::connect(&own).await.unwrap();
        while let Ok(connection) = PgConnection::connect(&own).await {
            taken.push(connection);
        }
        let ended: i64 = sqlx::query_scalar(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where application_name = 'outbox-relay'",
        )
        .fetch_one(&mut admin)
        .await
        .unwrap();
        assert!(ended > 0, "the relay had connections");
        while let Ok(connection) = PgConnection::connect(&own).await {
            taken.push(connection);
        }
        scene.relay.wait_line("53300", LONG).await;
        sleep(Duration::from_secs(2)).await;
        taken.clear();
        scene.flows().await;
        scene.end(WORKERS * ROWS_MAX).await;
    });
}

/// Another transaction holds a lock on the table that lets rows be locked and not changed; the
/// relay has a batch in hand that Kafka has.
struct Jam {
    holder: PgConnection,
}

impl Jam {
    async fn begin(world: &World) -> Self {
        let mut holder = PgConnection::connect(&world.database_url).await.unwrap();
        for sql in [
            "begin",
            "set local deadlock_timeout = '10min'",
            "lock table outbox in share mode",
        ] {
            sqlx::query(sql).execute(&mut holder).await.unwrap();
        }
        Self { holder }
    }

    async fn end(mut self) {
        sqlx::query("commit")
            .execute(&mut self.holder)
            .await
            .unwrap();
    }
}

#[test]
fn a_deadlock_that_the_relay_loses_costs_one_batch() {
    support::run(async |world| {
        // it lingers with a batch that Kafka has
        let scene = Scene::start(world, |setup| {
            setup.workers(1).failpoint("settle_before", "sleep(300)")
        })
        .await;
        let mut jam = Jam::begin(world).await;
        // waits for the rows that the relay has claimed, while the relay waits to change them
        let rows = "select from outbox where published_at is null for update";
        sqlx::query(rows).execute(&mut jam.holder).await.unwrap();
        scene.relay.wait_line("40P01", LONG).await;
        jam.end().await;
        scene.flows().await;
        scene.end(ROWS_MAX).await;
    });
}

#[test]
fn a_lock_timeout_costs_a_batch_each_time_and_nothing_else() {
    support::run(async |world| {
        let database = world.database();
        let timeout = format!("alter database \"{database}\" set lock_timeout = '300ms'");
        world.execute(&timeout).await;
        refused_for_a_while(world, "55P03", |setup| setup).await;
    });
}

#[test]
fn a_statement_timeout_costs_a_batch_each_time_and_nothing_else() {
    support::run(async |world| {
        refused_for_a_while(world, "57014", |setup| {
            setup.set("database", "statement_timeout", "\"500ms\"")
        })
        .await;
    });
}

#[test]
fn a_database_whose_disk_is_full_costs_a_batch_each_time_and_nothing_else() {
    support::run_on(Stage::with_small_disk(16 << 20), async |world, stage| {
        let scene = Scene::start(world, |setup| setup).await;
        let disk = stage.clusters[0].small_disk();
        world
            .execute(&format!(
                "create tablespace small location '{}'",
                disk.display()
            ))
            .await;
        world
            .execute("alter table outbox set tablespace small")
            .await;
        scene.flows().await;
        // rows must wait when the disk is full: nobody can insert any then
        scene.relay.sigstop();
        eventually(LONG, "rows wait, on pages of their own", async || {
            scene.outbox.pending(world).await >= 300
        })
        .await;
        world.execute(FILL).await;
        scene.relay.sigcont();
        scene.relay.wait_line("53100", LONG).await;
        sleep(Duration::from_secs(2)).await;
        world.execute("drop table filling").await;
        scene.flows().await;
        scene.end(10 * WORKERS * ROWS_MAX).await;
        // the test's own database goes with its server, and the disk as well
    });
}

/// Writes, a block at a time, until there is no room for another.
const FILL: &str = "\
create table filling (n int, block char(7000)) tablespace small;
alter table filling alter column block set storage plain;
do $$ begin
  loop
    begin
      insert into filling select n, '' from generate_series(1, 20) n;
    exception when disk_full then
      exit;
    end;
  end loop;
end $$";

/// The relay cannot settle for some seconds, and Postgres says so by `code`.
async fn refused_for_a_while<'a>(
    world: &'a World,
    code: &str,
    setup: impl FnOnce(support::relay::Setup<'a>) -> support::relay::Setup<'a>,
) {
    // it lingers, so that it is behind the writers and has a batch in hand when the jam begins: the
    // jam holds up the writers too
    let lingering = |it| setup(it).failpoint("settle_before", "sleep(200)");
    let scene = Scene::start(world, lingering).await;
    let jam = Jam::begin(world).await;
    scene.relay.wait_line(code, LONG).await;
    sleep(Duration::from_secs(2)).await;
    jam.end().await;
    scene.flows().await;
    // a batch of each worker, once for each attempt in those seconds
    scene.end(10 * WORKERS * ROWS_MAX).await;
}

#[test]
fn a_database_that_is_serializable_by_default_refuses_the_relay_nothing() {
    support::run(async |world| {
        let database = world.database();
        let default = "set default_transaction_isolation = 'serializable'";
        world
            .execute(&format!("alter database \"{database}\" {default}"))
            .await;
        let scene = Scene::start(world, |setup| setup).await;
        // open connections keep the default they began with
        end_connections(world).await;
        let mut refused = 0;
        for _ in 0..10 {
            scene.flows().await;
            refused += reads_and_writes_across(world).await;
        }
        let lines = scene.relay.lines();
        assert!(
            !lines.iter().any(|line| line.contains("40001")),
            "the relay says what isolation it needs"
        );
        assert!(refused > 0, "there were conflicts to meet");
        scene.end(WORKERS * ROWS_MAX).await;
    });
}

/// Two serializable transactions each read what the other writes; how many were refused.
async fn reads_and_writes_across(world: &World) -> usize {
    let mut two = [
        PgConnection::connect(&world.database_url).await.unwrap(),
        PgConnection::connect(&world.database_url).await.unwrap(),
    ];
    let mut failed = 0;
    for connection in &mut two {
        for sql in ["begin", "select count(*) from outbox"] {
            // its read may meet the writers' conflicts already
            let done = sqlx::query(sql).execute(&mut *connection).await;
            failed += usize::from(done.is_err());
        }
    }
    for connection in &mut two {
        let write = "update outbox_orders set n = n where id = (select min(id) from outbox_orders)";
        let insert = "insert into outbox_journal select gen_random_uuid()";
        for sql in [insert, write, "commit"] {
            let done = sqlx::query(sql).execute(&mut *connection).await;
            failed += usize::from(done.is_err());
        }
    }
    failed
}

#[test]
fn a_serialization_failure_costs_a_batch_each_time_and_nothing_else() {
    support::run(async |world| {
        let scene = Scene::start(world, |setup| setup).await;
        // stands in for whatever raises it: a trigger of the service, a replica behind the table
        world
            .execute(
                "create sequence refusals;
                 create function refuse() returns trigger language plpgsql security definer as $$ begin
                   if current_setting('application_name') = 'outbox-relay' and nextval('public.refusals') <= 8 then
                     raise exception 'could not serialize access' using errcode = '40001';
                   end if;
                   return new;
                 end $$;
                 create trigger refuse before update on outbox for each row execute function refuse()",
            )
            .await;
        scene.relay.wait_line("40001", LONG).await;
        eventually(LONG, "all refusals were met", async || {
            world.number("select last_value from refusals").await > 8
        })
        .await;
        scene.flows().await;
        scene.end(8 * WORKERS * ROWS_MAX).await;
    });
}

#[test]
fn a_relay_that_starts_while_connections_are_refused_waits() {
    let settings = ["max_connections=60", "superuser_reserved_connections=0"];
    support::run_on(Stage::primary(&settings), async |world, stage| {
        world.expect_errors(TROUBLE);
        stage.proxy.refuse(true);
        let outbox = support::outbox::Outbox::classic();
        let mut relay = world.relay(&[&outbox]).run();
        relay.wait_line("cannot connect", LONG).await;
        assert!(relay.is_running(), "it waits");
        stage.proxy.refuse(false);
        relay.wait_line("does not exist yet", LONG).await;
        relay.stop().await;
    });
}
