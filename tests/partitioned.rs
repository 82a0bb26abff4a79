//! Outbox tables that are partitioned keep every promise: by time, by hash, by list, in two steps, with a
//! default partition. Relays run with rights on the table alone.

use std::time::Duration;

use outbox_relay::config::{Layout as Columns, OnPublished as Published, TableName};
use outbox_relay::source::{hot_statements, of_partition};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::check::check;
use crate::operating::{audited, ends};
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::relay::Setup;
use crate::support::writers::{Event, Ledger, Load, one, to_be_committed};
use crate::support::{self, Rng, World, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);

/// What a table is partitioned by.
#[derive(Debug, Clone, Copy)]
enum By {
    /// Days, of which an aggregate's events have several, and a default partition.
    Time,
    /// The id.
    Hash,
    /// Lists in the first step, with a default that is partitioned by hash.
    Steps,
    /// Whether an event is published: a mark moves it.
    Mark,
}

impl By {
    fn sql(self) -> String {
        let (created_at, by) = match self {
            Self::Time => (
                "now() - floor(random() * 5) * interval '1 day'",
                "primary key (id, created_at)) partition by range (created_at);
                 create table outbox_rest partition of outbox default;
                 do $$ begin for day in 0..3 loop
                   execute format('create table outbox_%s partition of outbox for values from (%L) to (%L)',
                     day, current_date - day, current_date - day + 1);
                 end loop; end $$"
                    .to_owned(),
            ),
            Self::Hash => (
                "now()",
                "primary key (id)) partition by hash (id);
                 do $$ begin for part in 0..3 loop
                   execute format('create table outbox_%s partition of outbox
                                   for values with (modulus 4, remainder %s)', part, part);
                 end loop; end $$"
                    .to_owned(),
            ),
            Self::Steps => (
                "now()",
                "primary key (id, event_type)) partition by list (event_type);
                 create table outbox_0 partition of outbox for values in ('OrderCreated');
                 create table outbox_1 partition of outbox default partition by hash (id);
                 create table outbox_1a partition of outbox_1 for values with (modulus 2, remainder 0);
                 create table outbox_1b partition of outbox_1 for values with (modulus 2, remainder 1)"
                    .to_owned(),
            ),
            Self::Mark => (
                "now()",
                "check (true)) partition by list ((published_at is null));
                 create table outbox_0 partition of outbox for values in (true);
                 create table outbox_1 partition of outbox for values in (false)"
                    .to_owned(),
            ),
        };
        format!(
            "create table outbox (
               id uuid not null default gen_random_uuid(), aggregate_id uuid not null, aggregate_type text not null,
               event_type text not null, payload jsonb not null,
               created_at timestamptz not null default {created_at}, published_at timestamptz, {by}"
        )
    }
}

/// The table, the relay that is to serve it, and a type of aggregates with a topic.
async fn prepare<'a>(
    world: &'a World,
    by: By,
    on_published: OnPublished,
    config: &str,
) -> (Outbox, Setup<'a>, String) {
    let mut outbox = Outbox::new("outbox", Layout::Classic, on_published);
    outbox.config = config.to_owned();
    outbox.create_as(world, &by.sql()).await;
    let setup = world.relay(&[&outbox]);
    setup.migrate().await;
    let aggregate_type = world.aggregate_with_topic("Order", 4).await;
    (outbox, setup, aggregate_type)
}

/// Two relays under load, one of them killed every few hundred milliseconds and replaced.
async fn killed_again_and_again(world: &World, by: By, on_published: OnPublished) {
    const ROWS_MAX: usize = 50;
    const WORKERS: usize = 2;
    let (outbox, setup, aggregate_type) = prepare(world, by, on_published, "notify = true").await;
    let setup = setup
        .workers(WORKERS)
        .set("relay", "claim_rows_max", &ROWS_MAX.to_string());
    let mut load = Load::of(&aggregate_type);
    load.events = usize::MAX;
    load.rate = Some(600.0);
    let writing = load.start(world, &outbox).await;
    let mut rng = Rng::of_run(&format!("{by:?}"));
    let mut relays = [setup.run(), setup.run()];
    let kills = support::short_or_long(10, 300);
    for kill in 0..kills {
        sleep(rng.between(100, 800)).await;
        std::mem::replace(&mut relays[kill % 2], setup.run()).sigkill();
    }
    let ledger = writing.stop().await;
    outbox.wait_drained(world, SOON).await;
    for relay in relays {
        relay.stop().await;
    }
    let spread = "select count(distinct tableoid) from outbox";
    match on_published {
        OnPublished::Mark => {
            let committed = i64::try_from(ledger.committed()).unwrap();
            assert_eq!(outbox.published(world).await, committed);
            let at_least = if matches!(by, By::Mark) { 1 } else { 3 };
            assert!(world.number(spread).await >= at_least, "of one partition");
        }
        OnPublished::Delete => assert_eq!(world.number("select count(*) from outbox").await, 0),
        OnPublished::Archive => {
            let distinct = format!("select count(distinct id) from {}", outbox.history());
            let distinct = world.number(&distinct).await;
            assert_eq!(outbox.archived(world).await, distinct, "none twice");
            assert_eq!(distinct, i64::try_from(ledger.committed()).unwrap());
        }
    }
    let report = world.check(&ledger).await;
    assert!(report.delivered > 100, "{report}");
    report.assert_clean(kills * WORKERS * ROWS_MAX);
}

#[test]
fn partitions_by_time_keep_order_while_relays_are_killed() {
    support::run(async |world| {
        killed_again_and_again(world, By::Time, OnPublished::Delete).await;
    });
}

#[test]
fn partitions_by_hash_keep_order_while_relays_are_killed() {
    support::run(async |world| killed_again_and_again(world, By::Hash, OnPublished::Mark).await);
}

#[test]
fn partitions_in_two_steps_keep_order_while_relays_are_killed() {
    support::run(async |world| {
        killed_again_and_again(world, By::Steps, OnPublished::Archive).await;
    });
}

#[test]
fn marks_that_move_rows_to_another_partition_keep_order_while_relays_are_killed() {
    support::run(async |world| killed_again_and_again(world, By::Mark, OnPublished::Mark).await);
}

/// What there is of a partitioned table and its partitions: columns, defaults, indexes and whether they are
/// parts of the table's, triggers.
async fn shape(world: &World) -> String {
    let sql = "select string_agg(x.line, e'\\n' order by x.line) from (
         select p.relid::regclass || ' ' || a.attname || ' ' || a.attidentity::text || coalesce(pg_get_expr(d.adbin, d.adrelid), '') as line
           from pg_partition_tree('outbox') p
           join pg_attribute a on a.attrelid = p.relid and a.attnum > 0 and not a.attisdropped
           left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
         union all
         select i.indexrelid::regclass || ' ' || i.indisvalid || ' ' || coalesce(h.inhparent::regclass::text, 'alone')
           from pg_partition_tree('outbox') p join pg_index i on i.indrelid = p.relid
           left join pg_inherits h on h.inhrelid = i.indexrelid
         union all
         select 'trigger ' || t.tgname from pg_partition_tree('outbox') p join pg_trigger t on t.tgrelid = p.relid) x";
    let shape = sqlx::query_scalar(sql).fetch_one(&world.pool).await;
    shape.unwrap()
}

#[test]
fn a_filled_partitioned_table_is_migrated_and_again_and_taken_away() {
    support::run(async |world| {
        for by in [By::Time, By::Steps] {
            let mut outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Mark);
            outbox.config = "notify = true".to_owned();
            outbox.create_as(world, &by.sql()).await;
            let before = shape(world).await;
            let aggregate_type = world.aggregate_with_topic(&format!("{by:?}"), 3).await;
            let order = Uuid::new_v4().to_string();
            let mut ledger = Ledger::default();
            for n in 1..=60 {
                let event = one(world, &outbox, &aggregate_type, &order, n).await;
                // in the order of their times, over all partitions; the first were published by somebody else
                world
                    .execute(&format!(
                        "update outbox set created_at = now() - interval '4 days' + {n} * interval '97 minutes',
                                published_at = case when {n} <= 20 then now() end
                          where id = '{}'",
                        event.id
                    ))
                    .await;
                if n > 20 {
                    ledger.push(event);
                }
            }
            let setup = world.relay(&[&outbox]);
            // one id twice, which only a whole table's key forbids
            if matches!(by, By::Time) {
                let twice = "insert into outbox (id, aggregate_id, aggregate_type, event_type, payload, created_at)
                     select id, aggregate_id, aggregate_type, event_type, payload, created_at + interval '30 days'
                       from outbox order by created_at desc limit 1";
                world.execute(twice).await;
            }
            setup.migrate().await;
            let migrated = shape(world).await;
            assert!(
                !migrated.contains("false") && migrated.contains("_outbox_relay_16 true outbox_"),
                "{migrated}"
            );
            setup.migrate().await;
            assert_eq!(shape(world).await, migrated, "again is no change");
            let numbers =
                "select count(distinct seq) - count(*) from outbox where published_at is null";
            assert_eq!(world.number(numbers).await, 0, "no number twice");

            // what was interrupted half-way is finished
            world
                .execute(
                    "drop index outbox_outbox_relay_16;
                     create index outbox_0_outbox_relay_16 on outbox_0
                       ((hashtext(coalesce(aggregate_id::text, '')) & 15), seq) where published_at is null",
                )
                .await;
            setup.migrate().await;
            assert_eq!(shape(world).await, migrated);

            let status = setup.until_empty(SOON).await;
            assert!(status.success(), "{status}");
            let report = world.check(&ledger).await;
            let twice = usize::from(matches!(by, By::Time));
            report.assert_clean(twice);
            assert_eq!(
                (report.delivered, report.duplicates),
                (40, twice),
                "{report}"
            );

            // a partition that comes later has all of it by itself
            let (made, told) = match by {
                By::Time => (
                    "for values from ('2020-01-01') to ('2020-01-02')",
                    "2020-01-01 10:00",
                ),
                _ => ("for values in ('OrderPaid')", "2020-01-01"),
            };
            world
                .execute(&format!(
                    "create table outbox_new partition of outbox {made};
                     insert into outbox (aggregate_id, aggregate_type, event_type, payload, created_at)
                     values (gen_random_uuid(), '{aggregate_type}', 'OrderPaid', '{{}}', '{told}')"
                ))
                .await;
            let new = world.number("select count(*) from only outbox_new").await;
            assert_eq!(new, 1);
            assert!(setup.until_empty(SOON).await.success());
            assert_eq!(outbox.pending(world).await, 0);
            setup.migrate().await;

            let said = ends(&setup, &["uninstall", "--yes", "--drop-seq"], 0).await;
            assert!(said.contains("outbox_outbox_relay_16"), "{said}");
            world.execute("drop table outbox_new").await;
            assert_eq!(shape(world).await, before);
            world
                .execute("drop table outbox, outbox_orders, outbox_journal")
                .await;
            ends(&setup, &["uninstall", "--all", "--yes"], 0).await;
        }
    });
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection);
    done.await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A relay of one lane at a table that is partitioned by time, and what was written for it.
struct Scene<'a> {
    world: &'a World,
    outbox: Outbox,
    aggregate_type: String,
    ledger: Ledger,
}

impl Scene<'_> {
    /// Writes `events` of a new aggregate.
    async fn write(&mut self, events: i64) {
        let order = Uuid::new_v4().to_string();
        for n in 1..=events {
            let outbox = self.outbox.clone();
            self.write_one(&outbox, &order, n).await;
        }
    }

    async fn write_one(&mut self, to: &Outbox, order: &str, n: i64) {
        let written = one(self.world, to, &self.aggregate_type, order, n).await;
        self.ledger.push(written);
    }

    async fn settled(&self) -> i64 {
        let settled = "select coalesce(max(settled_seq), 0) from outbox_relay.lane";
        self.world.number(settled).await
    }

    /// Writes until the lane is settled beyond `seq`.
    async fn settled_beyond(&mut self, seq: i64) {
        let began = Instant::now();
        while self.settled().await <= seq {
            assert!(began.elapsed() < SOON, "not settled beyond {seq}");
            self.write(80).await;
        }
    }

    /// The table's partition `name`, as a writer that knows that alone has it.
    fn leaf(&self, name: &str) -> Outbox {
        let mut leaf = self.outbox.clone();
        name.clone_into(&mut leaf.table);
        leaf
    }
}

#[test]
fn a_transaction_that_writes_to_a_partition_by_name_and_commits_late_is_waited_for() {
    support::run(async |world| {
        let (outbox, setup, aggregate_type) =
            prepare(world, By::Time, OnPublished::Delete, "lanes = 1").await;
        let relay = setup.set("relay", "sweep_interval", "\"1h\"").run();
        let mut scene = Scene {
            world,
            outbox: outbox.clone(),
            aggregate_type,
            ledger: Ledger::default(),
        };
        world
            .execute("alter table outbox_0 alter column created_at set default now()")
            .await;
        scene.settled_beyond(0).await;
        let mut late = PgConnection::connect(&world.database_url).await.unwrap();
        run(&mut late, "begin").await;
        let (order, leaf) = (Uuid::new_v4().to_string(), scene.leaf("outbox_0"));
        let event = Event {
            outbox: &leaf,
            aggregate_type: &scene.aggregate_type,
            order: &order,
            n: 1,
            payload: Some("{}"),
            trace: None,
        };
        let late_event = to_be_committed(&mut late, event).await;
        let drawn = world
            .number("select last_value from outbox_outbox_relay_seq")
            .await;
        for _ in 0..6 {
            scene.write(60).await;
            sleep(Duration::from_millis(700)).await;
        }
        let reached = scene.settled().await;
        assert!(reached < drawn, "settled up to {reached}, {drawn} is open");
        run(&mut late, "commit").await;
        scene.settled_beyond(drawn).await;
        outbox.wait_drained(world, SOON).await;
        scene.ledger.push(late_event);
        scene.write_one(&outbox, &order, 2).await;
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&scene.ledger).await.assert_clean(0);
    });
}

#[test]
fn partitions_come_and_go_while_a_relay_runs() {
    support::run(async |world| {
        let (outbox, setup, aggregate_type) =
            prepare(world, By::Time, OnPublished::Delete, "lanes = 1").await;
        let relay = setup.set("relay", "sweep_interval", "\"1s\"").run();
        let mut scene = Scene {
            world,
            outbox: outbox.clone(),
            aggregate_type,
            ledger: Ledger::default(),
        };
        let order = Uuid::new_v4().to_string();
        // written where the relay cannot see it yet, with a number of the outbox's own
        world
            .execute("create table outbox_kept (like outbox including defaults)")
            .await;
        let kept = scene.leaf("outbox_kept");
        scene.write_one(&kept, &order, 1).await;
        world
            .execute("update outbox_kept set created_at = '2020-01-01 10:00+00'")
            .await;
        scene.settled_beyond(80).await;
        let attach = "alter table outbox attach partition outbox_kept
              for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')";
        world.execute(attach).await;
        relay.wait_line("somebody put them back", SOON).await;
        outbox.wait_drained(world, SOON).await;

        // the same partition under other bounds: what was remembered of it finds no row, and is given up
        world.expect_errors("outbox");
        world
            .execute(
                "alter table outbox detach partition outbox_kept;
                 alter table outbox attach partition outbox_kept
                   for values from ('2021-01-01 00:00+00') to ('2021-01-02 00:00+00')",
            )
            .await;
        let insert = format!(
            "insert into outbox (id, aggregate_id, aggregate_type, event_type, payload, created_at)
             values (gen_random_uuid(), '{order}', '{}', 'OrderChanged', '{{}}', '2021-01-01 10:00+00')",
            scene.aggregate_type
        );
        world.execute(&insert).await;
        outbox.wait_drained(world, SOON).await;

        // gone, emptied, detached: whatever was in them is their owner's
        world
            .execute(
                "drop table outbox_kept; truncate outbox_2; alter table outbox detach partition outbox_3",
            )
            .await;
        for n in 2..=30 {
            scene.write_one(&outbox, &order, n).await;
        }
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        let report = world.check(&scene.ledger).await;
        report.assert_whole();
        // once more where the worker remembered the partition's old bounds
        let times = report.phantom.len();
        assert!((1..=2).contains(&times), "the one no ledger has: {report}");
    });
}

/// What is wrong with the plan of a statement on a table with `leaves` partitions.
fn faults(statement: &str, plan: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines: Vec<_> = plan.lines().collect();
    for (line, next) in lines.iter().zip(lines.iter().skip(1).chain([&""])) {
        // (the relay has a table of its own called outbox)
        let on_leaf = line.contains("Scan") && line.contains(" on outbox_");
        let by_lane = line.contains("Index Scan")
            && next.contains("Index Cond")
            && next.contains("hashtext(");
        let by_index_only =
            line.contains("Index Only Scan") && next.contains("hashtext(") && next.contains("Cond");
        let by_place = line.contains("Tid Scan");
        let sorts = line.contains("->  Sort") || line.trim() == "Sort";
        // the lanes that were asked for are few
        let lanes = matches!(statement, "lanes" | "last") && sorts;
        if (on_leaf && !by_lane && !by_index_only && !by_place)
            || (sorts && !lanes)
            || ["Bitmap", "Hash Join", "Materialize", "Seq Scan"]
                .iter()
                .any(|node| line.contains(node))
        {
            faults.push(line.trim().to_owned());
        }
    }
    faults
}

#[test]
fn no_plan_of_a_batch_sorts_or_reads_a_partition_whole() {
    const LANES: u16 = 16;
    const EACH: &[(&str, &str)] = &[
        ("sweep", "('{0,1,2,3,4,5,6,7}')"),
        ("lanes", "('{0,1,2,3,4,5,6,7}', 4)"),
        ("claim", "('{0,1,2}', '{300,300,300}', '{0,0,9}')"),
        ("claim_all", "('{0,1,2}', '{300,300,300}', '{0,0,9}')"),
        (
            "claim_filtered",
            "('{0,1,2}', '{300,300,300}', '{0,0,9}', '{a,b}', '{Order}', '{OrderCreated}', '{\"\"}')",
        ),
        ("count", "('{0,1,2}', '{5000,5000,200000}', '{0,0,9}')"),
        ("skipped", "(3, 5000, 7, '{1,2,3}')"),
        ("last", "(16)"),
        ("below", ""),
        ("sample_heads", "(625)"),
        ("sample_ends", ""),
    ];
    support::run(async |world| {
        let (outbox, ..) = prepare(world, By::Time, OnPublished::Delete, "").await;
        // two partitions large and bloated, three that have nothing
        for leaf in ["outbox_0", "outbox_1"] {
            let off = format!("alter table {leaf} set (autovacuum_enabled = false)");
            world.execute(&off).await;
        }
        let insert = |rows: u32, published: &str| {
            format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload, published_at, created_at)
                 select md5((i % 5000)::text)::uuid, 'Order', 'OrderChanged', '{{}}', {published},
                        now() - (i % 2) * interval '1 day'
                   from generate_series(1, {rows}) i"
            )
        };
        let name = TableName::parse("outbox").unwrap();
        let statements = hot_statements(&name, &Columns::default(), Published::Delete, LANES);
        let sql_of = |name: &str| {
            let found = statements.iter().find(|(known, _)| *known == name);
            found.unwrap_or_else(|| panic!("no {name}")).1.clone()
        };
        let mut wrong = Vec::new();
        let states = [
            ("empty", String::new()),
            ("a backlog, never analysed", insert(60_000, "null")),
            ("analysed", "analyze outbox".to_owned()),
            (
                "published since",
                "update outbox set published_at = now()".to_owned(),
            ),
            ("a backlog that came later", insert(20_000, "null")),
        ];
        for (state, change) in states {
            if !change.is_empty() {
                world.execute(&change).await;
            }
            let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
            for mode in ["force_custom_plan", "force_generic_plan"] {
                let of_leaf = "select pg_get_partition_constraintdef('outbox_1'::regclass)";
                let condition: String = sqlx::query_scalar(of_leaf)
                    .fetch_one(&world.pool)
                    .await
                    .unwrap();
                let finish = of_partition(&sql_of("finish"), &condition);
                let arguments = "('public.outbox_1'::regclass, '{\"(0,1)\",\"(0,2)\"}')";
                let all = EACH
                    .iter()
                    .map(|(name, arguments)| (*name, sql_of(name), *arguments));
                for (statement, sql, arguments) in all.chain([("finish", finish, arguments)]) {
                    let open = sql_of("open");
                    let by_place = match statement {
                        "finish" => sql_of("by_place"),
                        _ => String::new(),
                    };
                    run(
                        &mut connection,
                        &format!(
                            "{open} {by_place}; set local plan_cache_mode = {mode}; prepare hot as {sql};"
                        ),
                    )
                    .await;
                    let explain = format!("explain (costs off) execute hot {arguments}");
                    let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
                        .persistent(false)
                        .fetch_all(&mut connection)
                        .await
                        .unwrap_or_else(|error| panic!("{statement}: {error}"));
                    run(&mut connection, "rollback; deallocate hot").await;
                    let plan = plan.join("\n");
                    let mut faults = faults(statement, &plan);
                    if statement == "finish" && plan.matches("Tid Scan on").count() != 1 {
                        faults.push("more than the one partition".to_owned());
                    }
                    if !faults.is_empty() {
                        wrong.push(format!("{state}, {mode}: {statement}: {faults:?}\n{plan}"));
                    }
                }
            }
            connection.close().await.unwrap();
        }
        assert!(
            wrong.is_empty(),
            "{} plans:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        drop(outbox);
    });
}

#[test]
fn commands_and_checks_know_partitioned_tables() {
    support::run(async |world| {
        let (outbox, setup, aggregate_type) =
            prepare(world, By::Time, OnPublished::Mark, "notify = true").await;
        let topic = topic_of(&aggregate_type);
        let mut ledger = Ledger::default();
        let order = Uuid::new_v4().to_string();
        let emit = format!(
            "select outbox_relay.emit('{aggregate_type}', '{}', 'OrderCreated', '{{}}')::text",
            Uuid::new_v4()
        );
        let emitted: String = sqlx::query_scalar(AssertSqlSafe(emit))
            .fetch_one(&world.pool)
            .await
            .unwrap();
        for n in 1..=40 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        // as they wait: all is well
        let checked = check(&setup, &[]).await;
        let bad: Vec<_> = checked
            .bad()
            .filter(|(item, _)| *item != "replicas")
            .collect();
        assert!(bad.is_empty(), "{bad:?}\n{}", checked.all);
        for item in ["partitions", "claim", "late", "order", "sequence", "emit"] {
            let ok =
                (checked.lines.iter()).any(|line| line["item"] == item && line["level"] == "ok");
            assert!(ok, "{item} in {}", checked.all);
        }
        // a partition whose own default is gone
        world
            .execute("alter table outbox_1 alter column seq drop default")
            .await;
        let checked = check(&setup, &[]).await;
        let (level, fix) = checked.found("partitions", "outbox_1");
        assert_eq!(level, "warn");
        world.execute(fix).await;
        check(&setup, &[]).await.assert_clean_of("partitions", "");
        // a trigger and a publication of one partition alone
        world
            .execute(
                "create function nothing() returns trigger language plpgsql as $$ begin return null; end $$;
                 create trigger own after update on outbox_1 for each row execute function nothing();
                 create publication others for table outbox_2",
            )
            .await;
        let checked = check(&setup, &[]).await;
        for part in ["trigger own", "publication others"] {
            world.execute(checked.found("rivals", part).1).await;
        }
        check(&setup, &[]).await.assert_clean_of("rivals", "");

        // refused: parked, and gone from its partition
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 values ('{}', 'no topic/at all', 'OrderCreated', '{{}}')",
                Uuid::new_v4()
            ))
            .await;
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        assert_eq!(parked(world).await, 1);
        let said = ends(&setup, &["inspect", &emitted], 0).await;
        assert!(said.contains(&topic), "{said}");
        let said = ends(&setup, &["replay", "--key", &order, "--yes"], 0).await;
        assert!(said.contains("40 of 40 rows"), "{said}");
        assert_eq!(world.kafka.count(&topic).await, 81);

        // more than a few pages, in each partition; and nothing that is new or waits
        world
            .execute(
                "update outbox set published_at = now() - interval '2 hours';
                 insert into outbox (aggregate_id, aggregate_type, event_type, payload, published_at)
                 select gen_random_uuid(), 'Order', 'X', '{}',
                        case when i <= 5 then null when i <= 9 then now() else now() - interval '3 hours' end
                   from generate_series(1, 20000) i",
            )
            .await;
        let said = ends(&setup, &["purge", "--older-than", "1h", "--yes"], 0).await;
        assert!(said.contains("20032 rows were deleted"), "{said}");
        assert_eq!(audited(world, "purge").await, (1, 20_032));
        assert_eq!(world.number("select count(*) from outbox").await, 9);
        assert_eq!(outbox.pending(world).await, 5);

        let said = ends(&setup, &["uninstall", "--drop-parked", "--yes"], 0).await;
        assert!(said.contains("outbox_outbox_relay_16"), "{said}");
    });
}

#[test]
fn the_retention_of_marked_rows_goes_through_every_partition() {
    for by in [By::Hash, By::Time] {
        support::run(async |world| {
            let (outbox, setup, aggregate_type) =
                prepare(world, by, OnPublished::Mark, "retention = \"1s\"").await;
            let order = Uuid::new_v4().to_string();
            for n in 1..=60 {
                one(world, &outbox, &aggregate_type, &order, n).await;
            }
            let relay = setup.run();
            eventually(SOON, "all went", async || {
                world.number("select count(*) from outbox").await == 0
            })
            .await;
            relay.stop().await;
            assert_eq!(world.kafka.count(&topic_of(&aggregate_type)).await, 60);
        });
    }
}

#[test]
fn what_looks_like_a_partitioned_table_and_is_none_is_refused_by_name() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        world
            .execute("create table child () inherits (outbox)")
            .await;
        let setup = world.relay(&[&outbox]);
        let said = ends(&setup, &["migrate", "--yes"], 78).await;
        assert!(said.contains("tables that others inherit from"), "{said}");
        world.execute("drop table child").await;
        setup.migrate().await;
        world
            .execute("create table child () inherits (outbox)")
            .await;
        let checked = check(&setup, &[]).await;
        assert!(checked.has("table", "inherit from it"), "{}", checked.all);

        world
            .execute("drop table outbox, outbox_orders, outbox_journal, child")
            .await;
        outbox.create_as(world, &By::Time.sql()).await;
        let leaf = Outbox::new("outbox_1", Layout::Classic, OnPublished::Mark);
        let setup = world.relay(&[&leaf]);
        ends(&setup, &["migrate", "--yes"], 78).await;
        let checked = check(&setup, &[]).await;
        assert!(
            checked.has("table", "is a partition of public.outbox"),
            "{}",
            checked.all
        );
    });
}
