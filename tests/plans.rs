//! P8: what a batch costs does not depend on the backlog, whatever the planner believes of the table.
//!
//! Every hot statement is explained as the relay runs it, under the pins of its transactions, on
//! tables of every kind, with statistics that are missing, true or long out of date.

use outbox_relay::config::{Layout, OnPublished, TableName};
use outbox_relay::source::hot_statements;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use crate::support::outbox::{self, Outbox};
use crate::support::{self, World};

const ROWS: u32 = 200_000;
const LANES: u16 = 16;

/// Arguments of each statement, as `execute` takes them.
const ARGUMENTS: &[(&str, &[&str])] = &[
    (
        "sweep",
        &["'{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}'", "'{3}'"],
    ),
    (
        "lanes",
        &["'{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}', 4", "'{3}', 1"],
    ),
    (
        "claim",
        &[
            "'{0,1,2}', '{300,300,300}', '{0,0,9}'",
            "'{7}', '{1000}', '{-9223372036854775808}'",
        ],
    ),
    (
        "claim_all",
        &[
            "'{0,1,2}', '{300,300,300}', '{0,0,9}'",
            "'{7}', '{1000}', '{9}'",
        ],
    ),
    ("below", &[""]),
    (
        "claim_filtered",
        &["'{0,1,2}', '{300,300,300}', '{0,0,9}', '{a,b}', '{Order}', '{OrderCreated}', '{\"\"}'"],
    ),
    (
        "claim_all_filtered",
        &["'{0,1,2}', '{300,300,300}', '{0,0,9}', '{a,b}', '{Order}', '{OrderCreated}', '{\"\"}'"],
    ),
    ("count", &["'{0,1,2}', '{5000,5000,200000}', '{0,0,9}'"]),
    (
        "count_filtered",
        &[
            "'{0,1,2}', '{5000,5000,200000}', '{0,0,9}', '{a,b}', '{Order}', '{OrderCreated}', '{\"\"}'",
        ],
    ),
    ("last", &["16"]),
    ("sample_heads", &["625"]),
    ("sample_ends", &[""]),
    ("aggregates", &["625, false, 100", "625, true, 100"]),
    (
        "passed_filtered",
        &["'{0,1,2}', '{0,0,9}', '{5000,5000,200000}', '{Order}', '{OrderCreated}', '{\"\"}', 100"],
    ),
    ("skipped", &["3, 5000, 7, '{1,2,3}'"]),
    (
        "finish_mark",
        &["'pg_class'::regclass, '{\"(0,1)\",\"(0,2)\"}'"],
    ),
    (
        "finish_delete",
        &["'pg_class'::regclass, '{\"(0,1)\",\"(0,2)\"}'"],
    ),
    (
        "finish_archive",
        &["'pg_class'::regclass, '{\"(0,1)\",\"(0,2)\"}'"],
    ),
];

/// What is wrong with the plan of a statement for `table`: it may read that by the lane index, from
/// a lane's start, or by the rows' places.
fn faults(statement: &str, table: &str, plan: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let on_table = format!(" on {table}");
    let by_index = format!("using {table}_outbox_relay_{LANES} on {table}");
    let lines: Vec<_> = plan.lines().collect();
    for (line, next) in lines.iter().zip(lines.iter().skip(1).chain([&""])) {
        let by_lane =
            line.contains(&by_index) && next.contains("Index Cond") && next.contains("hashtext(");
        let by_place = ["Tid Scan on", "Update on", "Delete on"];
        let right = by_lane || by_place.iter().any(|node| line.contains(node));
        // The lanes that were asked for are sorted; they are few.
        let lanes = (statement == "lanes"
            && (line.contains("->  Sort") || line.contains("array_pos")))
            || (statement == "last" && line.contains("Sort"));
        // The aggregates of the rows that were looked at are sorted; those rows are few.
        let of_few = statement == "aggregates"
            && (line.contains("Sort Key: ") || line.contains("->  Sort"))
            && [line, next].iter().any(|it| it.contains("(count(*)) DESC"));
        // Kinds of rows that wait are hashed, as they come in the arguments.
        let waits = statement.ends_with("_filtered");
        if (line.contains(&on_table) && !right)
            || (line.contains("Sort") && !lanes && !of_few)
            || (line.contains("hashed SubPlan") && !waits)
            || ["Bitmap", "Hash Join", "Materialize"]
                .iter()
                .any(|node| line.contains(node))
        {
            faults.push(line.trim().to_owned());
        }
    }
    faults
}

/// Explains every statement for `table`, as it is now, and gathers the faults.
async fn explain(world: &World, table: &str, state: &str, all: &mut Vec<String>) {
    let name = TableName::parse(table).unwrap();
    let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
    let statements = |on_published| hot_statements(&name, &Layout::default(), on_published, LANES);
    let (mark, delete, archive) = (
        statements(OnPublished::Mark),
        statements(OnPublished::Delete),
        statements(OnPublished::Archive),
    );
    let sql_of = |statement: &str| {
        let (from, name) = match statement {
            "finish_delete" => (&delete, "finish"),
            "finish_archive" => (&archive, "finish"),
            "finish_mark" => (&mark, "finish"),
            name => (&mark, name),
        };
        let found = from.iter().find(|(known, _)| *known == name);
        found
            .unwrap_or_else(|| panic!("no statement {name}"))
            .1
            .clone()
    };
    // A driver prepares what it repeats; after some runs Postgres may plan for any arguments.
    for mode in ["force_custom_plan", "force_generic_plan"] {
        for (statement, arguments) in ARGUMENTS {
            for arguments in *arguments {
                let open = sql_of("open");
                let script = format!(
                    "{open} set local plan_cache_mode = {mode}; prepare hot as {};",
                    sql_of(statement)
                );
                execute(&mut connection, &script).await;
                let arguments = match *arguments {
                    "" => String::new(),
                    some => format!("({some})"),
                };
                let explain = format!("explain (costs off) execute hot {arguments}");
                let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
                    .persistent(false)
                    .fetch_all(&mut connection)
                    .await
                    .unwrap_or_else(|error| panic!("{statement}: {error}"));
                execute(&mut connection, "rollback; deallocate hot").await;
                let plan = plan.join("\n");
                let faults = faults(statement, table, &plan);
                if !faults.is_empty() {
                    all.push(format!("{state}, {mode}: {statement}: {faults:?}\n{plan}"));
                }
            }
        }
    }
    connection.close().await.unwrap();
}

async fn execute(connection: &mut PgConnection, script: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(script.to_owned())).execute(connection);
    done.await
        .unwrap_or_else(|error| panic!("{error} in {script}"));
}

/// Inserts pending rows, or published ones.
async fn fill(world: &World, table: &str, rows: u32, published_at: &str) {
    world
        .execute(&format!(
            "insert into {table} (aggregate_id, aggregate_type, event_type, payload, published_at)
             select md5((i % 5000)::text)::uuid, 'Order', 'OrderChanged', '{{}}', {published_at}
               from generate_series(1, {rows}) i"
        ))
        .await;
}

#[test]
fn no_statement_of_a_batch_reads_or_sorts_the_backlog() {
    support::run(async |world| {
        let tables = ["fresh", "stale", "marked"]
            .map(|table| Outbox::new(table, outbox::Layout::Classic, outbox::OnPublished::Archive));
        for outbox in &tables {
            outbox.create(world).await;
            // Statistics are what the test makes them.
            let table = &outbox.table;
            world
                .execute(&format!(
                    "alter table {table} set (autovacuum_enabled = false)"
                ))
                .await;
        }
        world.relay(&tables.each_ref()).migrate().await;
        let analyze = async |table: &str| world.execute(&format!("analyze {table}")).await;
        let bloat = async |table: &str| {
            let delete = format!("delete from {table} where seq > 100");
            world.execute(&delete).await;
        };
        let mut all = Vec::new();

        // Never analysed: empty, full, bloated; then with true statistics of the bloated table.
        explain(world, "fresh", "empty, no statistics", &mut all).await;
        fill(world, "fresh", ROWS, "null").await;
        explain(world, "fresh", "full, no statistics", &mut all).await;
        bloat("fresh").await;
        explain(world, "fresh", "bloated, no statistics", &mut all).await;
        analyze("fresh").await;
        explain(world, "fresh", "bloated, analysed", &mut all).await;

        // Analysed when it was otherwise.
        analyze("stale").await;
        explain(world, "stale", "empty, analysed", &mut all).await;
        fill(world, "stale", ROWS, "null").await;
        explain(world, "stale", "full, analysed when empty", &mut all).await;
        analyze("stale").await;
        explain(world, "stale", "full, analysed", &mut all).await;
        bloat("stale").await;
        explain(world, "stale", "bloated, analysed when full", &mut all).await;

        // A long past, and a backlog that the statistics call impossible.
        fill(world, "marked", ROWS, "now()").await;
        analyze("marked").await;
        explain(world, "marked", "all published, analysed", &mut all).await;
        fill(world, "marked", ROWS / 4, "null").await;
        explain(world, "marked", "a backlog that came later", &mut all).await;
        assert!(all.is_empty(), "{} plans:\n{}", all.len(), all.join("\n"));
    });
}

/// What is planned anew at each run costs more than the run: a claim of a few rows was.
#[test]
fn what_a_batch_repeats_is_planned_once() {
    support::run(async |world| {
        let outbox = Outbox::new(
            "outbox",
            outbox::Layout::Classic,
            outbox::OnPublished::Delete,
        );
        outbox.create(world).await;
        world.relay(&[&outbox]).migrate().await;
        let name = TableName::parse("outbox").unwrap();
        let statements = hot_statements(&name, &Layout::default(), OnPublished::Delete, LANES);
        let sql_of = |wanted: &str| {
            let found = statements.iter().find(|(name, _)| *name == wanted);
            found.unwrap().1.as_str()
        };
        let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
        for (statement, arguments) in [
            ("sweep", "('{0,1,2,3}')"),
            ("lanes", "('{0,1,2,3}', 1)"),
            ("claim_all", "('{7}', '{1000}', '{9}')"),
            ("finish", "('pg_class'::regclass, '{\"(0,1)\"}')"),
        ] {
            let prepare = format!("prepare hot as {}", sql_of(statement));
            execute(&mut connection, &prepare).await;
            for _ in 0..10 {
                let batch = format!("{} execute hot {arguments}; commit", sql_of("open"));
                execute(&mut connection, &batch).await;
            }
            let (generic, custom): (i64, i64) = sqlx::query_as(
                "select generic_plans, custom_plans from pg_prepared_statements where name = 'hot'",
            )
            .persistent(false)
            .fetch_one(&mut connection)
            .await
            .unwrap();
            assert_eq!((generic, custom), (10, 0), "{statement}");
            execute(&mut connection, "deallocate hot").await;
        }
        connection.close().await.unwrap();
    });
}
