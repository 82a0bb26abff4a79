//! `migrate` on tables that are in use: by a worker of the service's own, by writers that do not
//! stop, by roles that may do little.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::Postgres;
use sqlx::{AssertSqlSafe, Pool};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::writers::{Ledger, Load, one};
use crate::support::{self, World, topic_of};

const SOON: Duration = Duration::from_secs(60);
/// A run until empty first makes sure that nobody else is at the table.
const LATER: Duration = Duration::from_secs(60);

/// The index that serves 16 lanes of the table `outbox`, as `migrate` makes it.
const INDEX: &str = "create index concurrently outbox_outbox_relay_16 on outbox
    ((hashtext(coalesce(aggregate_id::text, '')) & 15), seq) where published_at is null";
/// Whether that index is there and of use.
const INDEX_VALID: &str = "select count(*) from pg_index
    where indexrelid = to_regclass('public.outbox_outbox_relay_16') and indisvalid";

/// Rows that were published long ago, by whoever did it then.
async fn published_long_ago(world: &World, table: &str, rows: usize) {
    world
        .execute(&format!(
            "insert into {table} (aggregate_id, aggregate_type, event_type, payload, created_at, published_at)
             select gen_random_uuid(), 'Past', 'Past', '{{}}', now() - interval '2 years', now() - interval '1 year'
               from generate_series(1, {rows})"
        ))
        .await;
}

/// The oldest pending rows of the service's own worker, as such workers do it.
struct OldWorker {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    published: Arc<Mutex<HashSet<Uuid>>>,
}

impl OldWorker {
    fn start(pool: &Pool<Postgres>) -> Self {
        let (pool, stop) = (pool.clone(), CancellationToken::new());
        let published = Arc::new(Mutex::new(HashSet::new()));
        let (told, all) = (stop.clone(), Arc::clone(&published));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while !told.is_cancelled() {
                let mut transaction = pool.begin().await.unwrap();
                let ids: Vec<Uuid> = sqlx::query_scalar(
                    "select id from outbox where published_at is null
                      order by created_at, id limit 10 for update skip locked",
                )
                .fetch_all(&mut *transaction)
                .await
                .unwrap();
                sqlx::query(
                    "update outbox set published_at = clock_timestamp() where id = any ($1)",
                )
                .bind(&ids)
                .execute(&mut *transaction)
                .await
                .unwrap();
                transaction.commit().await.unwrap();
                all.lock().unwrap().extend(ids);
                sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            tasks,
            stop,
            published,
        }
    }

    /// What it published, when it has ended its last transaction.
    async fn stop(mut self) -> HashSet<Uuid> {
        self.stop.cancel();
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        std::mem::take(&mut self.published.lock().unwrap())
    }
}

/// What the catalogue says of the table `outbox`, its columns, defaults, indexes and triggers.
pub(crate) async fn shape(world: &World) -> String {
    let sql = "select concat_ws('; ',
        (select string_agg(attname || ' ' || atttypid::regtype || ' ' || attidentity::text, ', ' order by attnum)
           from pg_attribute where attrelid = 'outbox'::regclass and attnum > 0),
        (select string_agg(pg_get_expr(adbin, adrelid), ', ' order by adnum)
           from pg_attrdef where adrelid = 'outbox'::regclass),
        (select string_agg(indexrelid::regclass::text, ', ' order by 1)
           from pg_index where indrelid = 'outbox'::regclass),
        (select count(*) from pg_trigger where tgrelid = 'outbox'::regclass))";
    sqlx::query_scalar(sql)
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

/// The numbers in a text, in its order.
fn numbers(text: &str) -> Vec<usize> {
    text.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[test]
fn a_live_table_of_another_worker_is_taken_over_without_loss() {
    const PAST: usize = 3_000;
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        // A transaction's own time may be older than that of the one it waited for: where rows are
        // to be numbered by created_at, that is the time of the insert.
        world
            .execute("alter table outbox alter column created_at set default clock_timestamp()")
            .await;
        published_long_ago(world, "outbox", PAST).await;
        let past = "select md5(string_agg(id::text || published_at::text, ',' order by id))
             from outbox where published_at < now() - interval '1 day'";
        let past = async || {
            let print = sqlx::query_scalar::<_, String>(past);
            print.fetch_one(&world.pool).await.unwrap()
        };
        let past_before = past().await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = usize::MAX;
        load.rate = Some(300.0);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let writing = load.start(world, &outbox).await;
        let old_worker = OldWorker::start(&world.pool);
        sleep(Duration::from_secs(2)).await;

        // Without leave: told, and nothing done.
        let shape_before = shape(world).await;
        let setup = world.relay(&[&outbox]);
        let mut asked = setup.spawn(&["migrate"]);
        let status = asked.wait_exit(SOON).await;
        let rows = world.number("select count(*) from outbox").await;
        assert_eq!(status.code(), Some(1));
        let said = asked.wait_line("rows; none is rewritten", SOON).await;
        let told = numbers(&said);
        let rows = usize::try_from(rows).unwrap();
        assert!(
            told.iter().any(|told| (PAST..=rows).contains(told)),
            "the row count, {rows} now, is in: {said}"
        );
        asked.wait_line("nothing of this was done", SOON).await;
        assert_eq!(shape(world).await, shape_before);

        // With leave, while writers and the old worker go on.
        setup.migrate().await;
        assert_ne!(shape(world).await, shape_before);
        let unnumbered = "select count(*) from outbox where published_at is null and seq is null";
        assert_eq!(world.number(unnumbered).await, 0);
        assert_eq!(world.number(INDEX_VALID).await, 1);

        // The relay waits for the old worker to go, and publishes nothing until then.
        let mut relay = setup.run();
        relay.wait_line("another worker is marking", SOON).await;
        sleep(Duration::from_secs(4)).await;
        assert!(relay.is_running(), "it waits");
        assert_eq!(
            world.kafka.count(&topic).await,
            0,
            "two would publish the same"
        );

        let by_old_worker = old_worker.stop().await;
        assert!(by_old_worker.len() > 20, "it was at it all the time");
        relay.wait_line("serving the outbox", SOON).await;
        sleep(Duration::from_secs(2)).await;
        let ledger = writing.stop().await;
        outbox.wait_drained(world, Duration::from_secs(30)).await;
        relay.stop().await;

        assert_eq!(parked(world).await, 0);
        let ours = ledger.without(&by_old_worker);
        assert!(ours.committed() > 20, "the relay had its part");
        world.check(&ours).await.assert_clean(0);
        assert_eq!(
            past().await,
            past_before,
            "what was published is left alone"
        );
        let numbered = "select count(*) from outbox
             where published_at < now() - interval '1 day' and seq is not null";
        assert_eq!(world.number(numbered).await, 0);
    });
}

/// The statements of a script: they end with a semicolon at the end of a line, but not within the
/// body of a function.
fn statements(script: &str) -> Vec<String> {
    let (mut all, mut one, mut body) = (Vec::new(), String::new(), false);
    for line in script
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
    {
        one.push_str(line);
        one.push('\n');
        if line.matches("$outbox_relay$").count() % 2 == 1 {
            body = !body;
        }
        if !body && line.ends_with(';') {
            all.push(std::mem::take(&mut one));
        }
    }
    assert_eq!(one.trim(), "", "the last statement ends");
    all
}

#[test]
fn migrate_print_is_plain_sql_that_may_run_twice() {
    support::run(async |world| {
        let (filled, mut empty) = (
            Outbox::new("filled", Layout::Classic, OnPublished::Mark),
            Outbox::new("empty", Layout::Classic, OnPublished::Delete),
        );
        empty.config = "notify = true".to_owned();
        for outbox in [&filled, &empty] {
            outbox.create(world).await;
        }
        let aggregate_type = world.aggregate_with_topic("Order", 3).await;
        published_long_ago(world, "filled", 100).await;
        let (order, other) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let mut ledger = Ledger::default();
        for n in 1..=20 {
            ledger.push(one(world, &filled, &aggregate_type, &order, n).await);
        }
        world
            .execute("update filled set payload = payload where (payload->>'n')::int < 15")
            .await;

        let setup = world.relay(&[&filled, &empty]);
        let mut printing = setup.spawn(&["migrate", "--print"]);
        assert!(printing.wait_exit(SOON).await.success());
        printing
            .wait_line("create trigger outbox_relay_notify", SOON)
            .await;
        sleep(Duration::from_millis(200)).await;
        let script = printing.lines().join("\n");
        let script = statements(&script);
        assert!(script.len() > 10, "{script:?}");
        for _ in 0..2 {
            for statement in &script {
                world.execute(statement).await;
            }
            let n = ledger.count_of(&other) + 1;
            ledger.push(one(world, &empty, &aggregate_type, &other, n).await);
        }
        setup.grant().await;
        let status = setup.until_empty(LATER).await;
        assert!(status.success(), "{status}");
        world.check(&ledger).await.assert_clean(0);
        // And the command itself finds nothing to ask leave for.
        let mut migrating = setup.spawn(&["migrate"]);
        assert!(migrating.wait_exit(SOON).await.success());
    });
}

#[test]
fn an_interrupted_index_build_is_mended() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 2, &[]).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, &order, 1).await);

        // A build that waits for a writer, and is cancelled.
        world.execute("drop index outbox_outbox_relay_16").await;
        let mut writer = world.pool.begin().await.unwrap();
        sqlx::query("update outbox set payload = payload")
            .execute(&mut *writer)
            .await
            .unwrap();
        let mut builder = world.pool.acquire().await.unwrap();
        sqlx::query("set statement_timeout = '300ms'")
            .execute(&mut *builder)
            .await
            .unwrap();
        let built = sqlx::query(AssertSqlSafe(INDEX))
            .execute(&mut *builder)
            .await;
        assert!(built.is_err(), "it was cancelled");
        builder.close().await.unwrap();
        writer.rollback().await.unwrap();
        assert_eq!(world.number(INDEX_VALID).await, 0);

        world.expect_errors("not valid");
        let mut relay = setup.run();
        assert_eq!(relay.wait_exit(SOON).await.code(), Some(78));
        relay.wait_line("outbox-relay migrate", SOON).await;
        setup.migrate().await;
        assert_eq!(world.number(INDEX_VALID).await, 1);
        assert!(setup.until_empty(LATER).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn migrate_waits_for_a_long_transaction_and_makes_nobody_else_wait_for_long() {
    // A change waits 2 s for its lock, and others behind it; a busy machine adds to that.
    const WAIT_MAX: Duration = Duration::from_secs(5);
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let aggregate_type = world.aggregate_with_topic("Order", 2).await;
        let (long, short) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, &short, 1).await);
        ledger.push(one(world, &outbox, &aggregate_type, &long, 1).await);
        let setup = world.relay(&[&outbox]);
        let mut n = 1;
        // Once the column is to be added, once only the index is to be made.
        for step in ["column", "index"] {
            if step == "index" {
                world.execute("drop index outbox_outbox_relay_16").await;
            }
            let mut writer = world.pool.begin().await.unwrap();
            sqlx::query("update outbox set payload = payload where aggregate_id = $1::uuid")
                .bind(&long)
                .execute(&mut *writer)
                .await
                .unwrap();
            let mut migrating = setup.spawn(&["migrate", "--yes"]);
            let (began, mut longest) = (Instant::now(), Duration::ZERO);
            while began.elapsed() < Duration::from_secs(6) {
                let inserting = Instant::now();
                n += 1;
                ledger.push(one(world, &outbox, &aggregate_type, &short, n).await);
                longest = longest.max(inserting.elapsed());
                sleep(Duration::from_millis(20)).await;
            }
            assert!(migrating.is_running(), "{step}: it waits for the writer");
            assert!(longest < WAIT_MAX, "{step}: a writer waited {longest:?}");
            writer.commit().await.unwrap();
            let status = migrating.wait_exit(SOON).await;
            assert!(status.success(), "{step}: {}", migrating.lines().join("\n"));
            assert_eq!(world.number(INDEX_VALID).await, 1, "{step}");
        }
        setup.grant().await;
        assert!(setup.until_empty(LATER).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn other_roles_can_still_insert_after_migrate() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 2, &[]).await;
        // Roles belong to the whole server: the name is this test's own, and so is its end.
        let role = format!("{}-writer", world.database());
        world
            .execute(&format!(
                "create role \"{role}\";
                 grant insert (aggregate_id, aggregate_type, event_type, payload) on outbox to \"{role}\""
            ))
            .await;
        let insert = async |n: i64| {
            let mut transaction = world.pool.begin().await.unwrap();
            let become_it = format!("set local role \"{role}\"");
            sqlx::query(AssertSqlSafe(become_it))
                .execute(&mut *transaction)
                .await
                .unwrap();
            let sql = "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 values ($1::uuid, $2, 'OrderChanged', jsonb_build_object('n', $3))";
            let inserted = sqlx::query(sql)
                .bind(&order)
                .bind(&aggregate_type)
                .bind(n)
                .execute(&mut *transaction)
                .await;
            transaction.commit().await.unwrap();
            inserted.map(drop)
        };
        insert(1).await.unwrap();
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let inserted = insert(2).await;
        let status = setup.until_empty(LATER).await;
        world
            .execute(&format!("drop owned by \"{role}\"; drop role \"{role}\""))
            .await;
        inserted.unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(world.kafka.count(&topic).await, 2);
    });
}

#[test]
fn a_migration_with_a_lower_number_than_the_newest_is_still_applied() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, _) = outbox.prepare(world).await;
        // as in a database that a build without it was at
        world
            .execute(
                "drop table outbox_relay.pause; delete from outbox_relay.migrations where version = 5",
            )
            .await;
        setup.migrate().await;
        let back = "select count(*) from outbox_relay.pause";
        assert_eq!(world.number(back).await, 0);
        assert!(setup.until_empty(LATER).await.success());
    });
}

#[test]
fn each_file_of_migrations_is_applied_under_its_number() {
    support::run(async |world| {
        let (setup, _) = Outbox::classic().prepare(world).await;
        setup.migrate().await;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut files = Vec::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let (number, about) = name.split_once('_').unwrap();
            let (number, about): (i64, _) = (number.parse().unwrap(), about.replace('_', " "));
            let text = std::fs::read_to_string(&path).unwrap();
            let is = sqlx::query_scalar::<_, bool>(
                "select exists (select from outbox_relay.migrations
                                 where version = $1 and description = $2
                                   and checksum = sha384(convert_to($3, 'UTF8')))",
            );
            let is = is.bind(number).bind(about).bind(text);
            assert!(is.fetch_one(&world.pool).await.unwrap(), "{name}");
            files.push(number);
        }
        let recorded = "select count(*) from outbox_relay.migrations";
        let recorded = world.number(recorded).await;
        assert_eq!(usize::try_from(recorded).unwrap(), files.len());
    });
}
