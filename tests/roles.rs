//! Two roles, and what each may do: one migrates, one relays. Every other test runs its relays as the
//! second one, with what the product prints for it and nothing else.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::operating::command;
use crate::support;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Setup;
use crate::support::writers::{Ledger, one};

const SOON: Duration = Duration::from_secs(60);

/// What `migrate --print --grants` prints for these roles.
async fn printed(setup: &Setup<'_>, owner: &str, runner: &str) -> String {
    let arguments = [
        "migrate", "--print", "--grants", "--owner", owner, "--runner", runner,
    ];
    let (code, script) = command(setup, &arguments).await;
    assert_eq!(code, Some(0), "{script}");
    script
}

/// The rights that the script gives `runner`, to follow `grant` or `revoke`.
fn rights(script: &str, runner: &str) -> Vec<String> {
    let end = format!(" to \"{runner}\";");
    let lines = script.lines().filter_map(|line| {
        let right = line.strip_prefix("grant ")?.strip_suffix(&end)?;
        Some(right.to_owned())
    });
    lines.collect()
}

#[test]
fn each_right_is_needed_and_one_that_is_missing_is_named() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Archive);
        outbox.config = "retention = \"1day\"".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let runner = world.runner();
        let rights = rights(&printed(&setup, "nobody", &runner).await, &runner);
        // of two schemas and six tables, and to execute two functions
        assert_eq!(rights.len(), 12, "{rights:?}");
        // whoever is asked must have the right by itself, not as everybody
        world
            .execute(&format!(
                "revoke usage on schema public from public; grant usage on schema public to \"{runner}\""
            ))
            .await;
        world.expect_errors("a grant is missing");
        for right in &rights {
            world
                .execute(&format!("revoke {right} from \"{runner}\""))
                .await;
            let (code, said) = command(&setup, &["run"]).await;
            let fix = format!("a grant is missing. Run: grant {right} to \"{runner}\";");
            assert_eq!(code, Some(78), "{right}: {said}");
            assert!(said.replace('\\', "").contains(&fix), "{fix} in: {said}");
            // and the statement in the line mends it
            let (_, grant) = fix.split_once("Run: ").unwrap();
            world.execute(grant).await;
        }
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        let (code, said) = command(&setup, &["run", "--until-empty"]).await;
        assert_eq!(code, Some(0), "{said}");
        world.check(&ledger).await.assert_clean(0);

        // one that it can do without
        let as_runner = world.relay(&[&outbox]);
        let url = format!("\"{}\"", world.runner_url());
        let as_runner = as_runner.set("database", "url", &url);
        let lacks = "may not read the sequence";
        let (_, said) = command(&as_runner, &["check"]).await;
        assert!(!said.contains(lacks), "{said}");
        world
            .execute(&format!(
                "revoke select on sequence outbox_seq_seq from \"{runner}\""
            ))
            .await;
        let (_, said) = command(&as_runner, &["check"]).await;
        let fix = format!("grant select on sequence public.outbox_seq_seq to \"{runner}\";");
        let line = said.lines().find(|line| line.contains(lacks));
        let line = line.unwrap_or_else(|| panic!("{lacks:?} in: {said}"));
        assert!(line.starts_with("warn") && line.contains(&fix), "{line}");
        ledger.push(one(world, &outbox, &aggregate_type, "a", 2).await);
        assert!(setup.until_empty(SOON).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn the_runner_can_neither_write_events_nor_change_them_nor_the_schema() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (_, aggregate_type) = outbox.prepare(world).await;
        let order = Uuid::new_v4().to_string();
        one(world, &outbox, &aggregate_type, &order, 1).await;
        let url = world.runner_url();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        for sql in [
            "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
             values (gen_random_uuid(), 'a', 'b', '{}')",
            "select outbox_relay.emit('a', gen_random_uuid(), 'b', '{}')",
            "select outbox_relay.emit_batch('[]')",
            "select outbox_relay.allow_emit('public.outbox', current_user::text)",
            "update outbox set payload = '{}'",
            "update outbox set aggregate_type = 'other'",
            "truncate outbox",
            "alter table outbox add column mine int",
            "drop index outbox_outbox_relay_16",
            "select setval('outbox_seq_seq', 1)",
            "select nextval('outbox_seq_seq')",
            "create schema mine",
            "create table outbox_relay.mine ()",
            "create table public.mine ()",
            "drop table outbox_relay.lane",
            "delete from outbox_relay.lane",
            "insert into outbox_relay.pause (outbox, topic) values ('public.outbox', '')",
            "delete from outbox_relay.audit",
            "select * from outbox_orders",
            "create role mine",
        ] {
            let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
                .execute(&mut connection)
                .await;
            let error = done.err().unwrap_or_else(|| panic!("it may {sql}"));
            let code = error.as_database_error().and_then(|error| error.code());
            assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error}");
        }
        connection.close().await.unwrap();
    });
}

#[test]
fn one_role_migrates_and_another_relays_as_printed() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Archive);
        outbox.create(world).await;
        let (owner, runner) = (format!("{}-Owner", world.database()), world.runner());
        let service = format!("{}-service", world.database());
        world
            .execute(&format!(
                "create role \"{service}\"; alter table outbox owner to \"{service}\""
            ))
            .await;
        let setup = world.relay(&[&outbox]);
        let script = printed(&setup, &owner, &runner).await;
        let (first, second) = script.split_once("-- 2. After it.").unwrap();
        // twice, as whoever runs it may
        for _ in 0..2 {
            world.execute(first).await;
        }
        world
            .execute(&format!("alter role \"{owner}\" password 'relays-own'"))
            .await;
        let owners = world.relay(&[&outbox]);
        let url = format!("\"{}\"", world.url_as(&owner, "relays-own"));
        let owners = owners.set("database", "url", &url);
        let migrated = command(&owners, &["migrate", "--yes"]).await;
        for _ in 0..2 {
            world.execute(&format!("-- {second}")).await;
        }
        let aggregate_type = world.aggregate_with_topic("Order", 1).await;
        let mut ledger = Ledger::default();
        for n in 1..=3 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        let relayed = command(&setup, &["run", "--until-empty"]).await;
        let moved = outbox.archived(world).await;
        world
            .execute(&format!(
                "drop owned by \"{owner}\" cascade; drop role \"{owner}\";
                 alter table outbox owner to current_user;
                 drop owned by \"{service}\"; drop role \"{service}\""
            ))
            .await;
        assert_eq!(migrated.0, Some(0), "{}", migrated.1);
        assert_eq!(relayed.0, Some(0), "{}", relayed.1);
        assert_eq!(moved, 3);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn what_somebody_else_made_is_never_called_whatever_the_search_path() {
    /// Where names are looked for first, by the role's own setting or the connection's.
    const PATH: &str = "public, pg_catalog";
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        // as anybody who may create something in a schema of the path could
        let traps = [
            ("hashtext(text)", "int"),
            ("clock_timestamp()", "timestamptz"),
            ("now()", "timestamptz"),
            ("pg_backend_pid()", "int"),
            ("current_database()", "name"),
            ("unnest(anyarray)", "setof anyelement"),
            ("generate_series(int, int)", "setof int"),
            ("array_position(int[], int)", "int"),
            ("pg_get_serial_sequence(text, text)", "text"),
            ("has_table_privilege(text, text)", "boolean"),
            ("has_schema_privilege(text, text)", "boolean"),
            ("has_sequence_privilege(oid, text)", "boolean"),
            ("pg_try_advisory_lock(int, int)", "boolean"),
            ("current_setting(text)", "text"),
            ("no(text, text)", "boolean"),
            ("no(int, int)", "int"),
        ];
        for (function, returns) in traps {
            world
                .execute(&format!(
                    "create function public.{function} returns {returns} language plpgsql as $$
                     begin raise exception 'trapped in {function}'; end $$"
                ))
                .await;
        }
        world
            .execute(&format!(
                "create operator public.= (leftarg = text, rightarg = text, function = public.no);
                 create operator public.& (leftarg = int, rightarg = int, function = public.no);
                 create table public.pg_class (); create table public.pg_namespace ();
                 create table public.pg_sequence (); create table public.pg_attribute ();
                 create table public.pg_database (); create table public.pg_locks ();
                 create table public.pg_stat_activity (); create table public.lane ();
                 alter role \"{}\" in database \"{}\" set search_path = {PATH}",
                world.runner(),
                world.database()
            ))
            .await;
        let option = format!("-c search_path={}", PATH.replace(' ', ""));
        let option = option.replace(' ', "%20").replace('=', "%3D");
        let url = |url: &str| format!("\"{url}?options={option}\"");
        let owner = world.relay(&[&outbox]);
        let owner = owner.set("database", "url", &url(&world.database_url));
        let (code, said) = command(&owner, &["migrate", "--yes"]).await;
        assert_eq!(code, Some(0), "{said}");
        owner.grant().await;
        let aggregate_type = world.aggregate_with_topic("Order", 1).await;
        let order = Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        for n in 1..=3 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        let setup = world.relay(&[&outbox]);
        for setup in [
            setup.set("database", "url", &url(&world.database_url)),
            world.relay(&[&outbox]),
        ] {
            let (code, said) = command(&setup, &["run", "--until-empty"]).await;
            assert_eq!(code, Some(0), "{said}");
            assert!(!said.contains("trapped"), "{said}");
            let next = ledger.count_of(&order) + 1;
            ledger.push(one(world, &outbox, &aggregate_type, &order, next).await);
        }
        commands_are_well(&owner).await;
        world.check(&ledger).await.assert_clean(0);
    });
}

/// The commands that look, and those that change something, get by without a trap.
async fn commands_are_well(setup: &Setup<'_>) {
    for arguments in [
        &["check"][..],
        &["status"],
        &["parked", "list"],
        &["pause", "--yes"],
        &["pause", "--list"],
        &["resume", "--yes"],
        &["adopt", "--yes"],
        &["run", "--until-empty"],
    ] {
        let (_, said) = command(setup, arguments).await;
        assert!(
            !said.contains("trapped") && !said.contains("does not exist"),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn a_schema_that_lacks_a_column_of_a_later_version_is_told_as_older() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        world
            .execute("alter table outbox_relay.lane drop column settled_seq")
            .await;
        world.expect_errors("of an older version");
        let (code, said) = command(&setup, &["run"]).await;
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("`outbox-relay migrate`"), "{said}");
        world
            .execute("delete from outbox_relay.migrations where version >= 7")
            .await;
        setup.migrate().await;
        let order = Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, &order, 1).await);
        assert!(setup.until_empty(SOON).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}
