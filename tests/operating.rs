//! The commands that act, beside running relays: copies and their adoption, pauses.

use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::see::{Seen, watched};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Setup;
use crate::support::writers::{Ledger, one};
use crate::support::{self, World, eventually, topic_of};

/// Long enough for a machine that is slow for a while.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Runs a command: its exit code, and what it printed.
pub(crate) async fn command(setup: &Setup<'_>, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = setup.spawn(arguments);
    let status = command.wait_exit(SOON).await;
    (status.code(), command.lines().join("\n"))
}

/// As [`command`], where it must end with `code`.
pub(crate) async fn ends(setup: &Setup<'_>, arguments: &[&str], code: i32) -> String {
    let (ended, said) = command(setup, arguments).await;
    assert_eq!(ended, Some(code), "{arguments:?}: {said}");
    said
}

/// What the audit has of a command: how often, and of how many rows.
pub(crate) async fn audited(world: &World, command: &str) -> (i64, i64) {
    let select =
        "select count(*), coalesce(sum(rows), 0)::int8 from outbox_relay.audit where command = $1";
    sqlx::query_as(select)
        .bind(command)
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

pub(crate) fn native(table: &str) -> Outbox {
    Outbox::new(table, Layout::Native, OnPublished::Mark)
}

#[test]
fn a_cloned_database_publishes_nothing_until_it_is_adopted() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        assert!(setup.until_empty(SOON).await.success());
        for n in 2..=3 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }

        let (server, database) = world.database_url.rsplit_once('/').unwrap();
        let (admin_url, copy_url) = (
            format!("{server}/postgres"),
            format!("{server}/{database}-copy"),
        );
        let mut admin = PgConnection::connect(&admin_url).await.unwrap();
        for sql in [
            format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
            ),
            format!("create database \"{database}-copy\" template \"{database}\""),
        ] {
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut admin)
                .await
                .unwrap();
        }
        let of_copy = world
            .relay(&[&outbox])
            .set("database", "url", &format!("\"{copy_url}\""));
        world.expect_errors("was first served in the database");
        let refused = ends(&of_copy, &["run"], 78).await;
        let asked = ends(&of_copy, &["adopt"], 1).await;
        let again = ends(&of_copy, &["run", "--until-empty"], 78).await;
        let before = world.kafka.count(&topic).await;
        let adopted = ends(&of_copy, &["adopt", "--yes", "--note", "moved"], 0).await;
        let status = of_copy.until_empty(SOON).await;
        let mut copy = PgConnection::connect(&copy_url).await.unwrap();
        let audit: (i64, String) = sqlx::query_as(
            "select rows, note from outbox_relay.audit where command = 'adopt' and filter->>'to' <> filter->>'from'",
        )
        .fetch_one(&mut copy)
        .await
        .unwrap();
        copy.close().await.unwrap();
        let drop = format!("drop database \"{database}-copy\" with (force)");
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut admin)
            .await
            .unwrap();
        admin.close().await.unwrap();

        for part in ["another database of the server", "adopt --yes", database] {
            assert!(refused.contains(part), "{part} in: {refused}");
        }
        assert!(again.contains("adopt --yes"), "{again}");
        assert!(asked.contains("2 rows are pending"), "{asked}");
        assert_eq!(before, 1, "a copy published by accident");
        assert!(adopted.contains("adopted"), "{adopted}");
        assert!(status.success());
        assert_eq!(audit, (2, "moved".to_owned()));
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn brokers_of_another_cluster_get_nothing_until_it_is_adopted() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        // as a snapshot of a disk has it, that was restored beside another Kafka
        world
            .execute("update outbox_relay.outbox set kafka_cluster_id = 'production'")
            .await;
        world.expect_errors("is published to the Kafka cluster production");
        let said = ends(&setup, &["run"], 78).await;
        assert!(said.contains("adopt --yes"), "{said}");
        assert_eq!(outbox.pending(world).await, 1);

        let away = world
            .relay(&[&outbox])
            .set("kafka", "brokers", "\"127.0.0.1:9\"")
            .set("relay", "publish_timeout", "\"2s\"");
        ends(&away, &["adopt", "--yes"], 69).await;
        ends(&setup, &["adopt", "--yes"], 0).await;
        assert_eq!(audited(world, "adopt").await, (1, 1));
        assert!(setup.until_empty(SOON).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_worker_whose_new_connection_leads_to_a_copy_publishes_nothing_there() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        let mut relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        world.expect_errors("a copy of the one");
        world.expect_errors("the outbox cannot be read or settled");
        // what the workers find when the address leads to a copy
        let (ours, theirs) = ("database_oid - 1", "database_oid + 1");
        let becomes = async |oid: &str| {
            let update = format!("update outbox_relay.outbox set database_oid = {oid}");
            world.execute(&update).await;
        };
        becomes(ours).await;
        let cut_off = "select pg_terminate_backend(pid) from pg_stat_activity
                        where datname = current_database() and application_name = 'outbox-relay'";
        world.execute(cut_off).await;
        ledger.push(one(world, &outbox, &aggregate_type, "a", 2).await);
        relay
            .wait_line("was first served in the database", SOON)
            .await;
        assert!(relay.is_running(), "it waits");
        assert_eq!(outbox.pending(world).await, 1);
        becomes(theirs).await;
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_role_that_may_not_ask_for_the_system_is_served_and_told_so() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (_, aggregate_type) = outbox.prepare(world).await;
        let role = format!("{}-relay", world.database());
        world
            .execute(&format!(
                "revoke execute on function pg_control_system() from public;
                 create role \"{role}\" login password 'relay';
                 grant usage on schema public, outbox_relay to \"{role}\";
                 grant select, delete, update (published_at) on outbox to \"{role}\";
                 grant select, update on outbox_relay.outbox, outbox_relay.lane to \"{role}\";
                 grant select, insert, update, delete on outbox_relay.parked to \"{role}\""
            ))
            .await;
        // an upgrade gives the new table to whoever works the lanes: as if this were one
        let migration = include_str!("../migrations/0005_operating.sql");
        world.execute(migration).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        let (server, database) = world.database_url.rsplit_once('/').unwrap();
        let address = server
            .rsplit_once('@')
            .map_or(server, |(_, address)| address);
        let url = format!("\"postgres://{role}:relay@{address}/{database}\"");
        let setup = world.relay(&[&outbox]).set("database", "url", &url);
        let (code, said) = command(&setup, &["run", "--until-empty"]).await;
        world
            .execute(&format!("drop owned by \"{role}\"; drop role \"{role}\""))
            .await;
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("may not execute pg_control_system()"),
            "{said}"
        );
        let kept = "select count(*) from outbox_relay.outbox
             where system_identifier is null and database_oid is not null and kafka_cluster_id <> ''";
        assert_eq!(world.number(kept).await, 1);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_paused_outbox_is_not_claimed_and_goes_on_where_it_was() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        ends(&setup, &["pause", "--reason", "no leave"], 1).await;
        assert_eq!(audited(world, "pause").await, (0, 0));
        let setup = watched(setup.env("USER", "pat"));
        ends(&setup, &["pause", "--reason", "for the test", "--yes"], 0).await;
        for n in 2..=4 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        let line = relay.wait_line("is paused", SOON).await;
        for part in ["pat", "for the test", "the whole outbox"] {
            assert!(line.contains(part), "{part} in: {line}");
        }
        // a relay that comes later heeds it too, and counts what it leaves
        let said = ends(&setup, &["run", "--until-empty"], 75).await;
        assert!(said.contains("3 pending left"), "{said}");
        relay.stop().await;
        let seen = Seen::start(&setup).await;
        seen.relay.wait_line("is paused", SOON).await;
        assert_eq!(outbox.pending(world).await, 3);
        let state = async || seen.status().await["outboxes"][0].clone();
        eventually(SOON, "it is shown", async || {
            state().await["state"] == "paused"
        })
        .await;
        let text = state().await["state_text"].take();
        let text = text.as_str().unwrap();
        assert!(
            text.starts_with("paused by pat") && text.ends_with(": for the test"),
            "{text}"
        );

        let again = ends(&setup, &["pause", "--yes"], 0).await;
        assert!(again.contains("was paused before"), "{again}");
        let listed = ends(&setup, &["pause", "--list", "--json"], 0).await;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed["topic"], Value::Null);
        assert_eq!(listed["reason"], "for the test");
        ends(&setup, &["resume"], 1).await;
        assert_eq!(outbox.pending(world).await, 3);
        ends(&setup, &["resume", "--yes"], 0).await;
        outbox.wait_drained(world, SOON).await;
        seen.relay.wait_line("is resumed", SOON).await;
        eventually(SOON, "that is shown too", async || {
            state().await["state"] == "serving"
        })
        .await;
        seen.relay.stop().await;
        assert_eq!(audited(world, "pause").await, (1, 1));
        assert_eq!(audited(world, "resume").await, (1, 1));
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_paused_topic_holds_back_its_own_events_alone() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, held) = outbox.prepare(world).await;
        let free = world.aggregate_type("Free");
        world.kafka.create_topic(&topic_of(&free), 2, &[]).await;
        let setup = watched(setup);
        let relays = [Seen::start(&setup).await, Seen::start(&setup).await];
        let topic = topic_of(&held);
        ends(&setup, &["pause", "--topic", &topic, "--yes"], 0).await;
        let mut ledger = Ledger::default();
        for n in 1..=20 {
            ledger.push(
                one(
                    world,
                    &outbox,
                    &held,
                    &format!("k{}", n % 3),
                    1 + (n - 1) / 3,
                )
                .await,
            );
            ledger.push(one(world, &outbox, &free, "f", n).await);
        }
        let pending = format!(
            "select count(*) from outbox where published_at is null and aggregate_type = '{free}'"
        );
        eventually(SOON, "the free topic flows", async || {
            world.number(&pending).await == 0
        })
        .await;
        assert_eq!(outbox.pending(world).await, 20);
        let said = ends(&setup, &["run", "--until-empty"], 75).await;
        assert!(said.contains("20 pending left"), "{said}");
        assert_eq!(world.kafka.count(&topic).await, 0);
        for seen in &relays {
            seen.until("the topic is shown as paused", |status| {
                let topics = status["kafka"]["topics_paused"].as_array().unwrap();
                let shown =
                    |it: &Value| it["topic"] == topic.as_str() && it["reason"] == "operator";
                topics.iter().any(shown)
            })
            .await;
        }
        ends(&setup, &["resume", "--topic", &topic, "--yes"], 0).await;
        outbox.wait_drained(world, SOON).await;
        for seen in relays {
            seen.relay.stop().await;
        }
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn commands_that_make_no_sense_say_what_would() {
    support::run(async |world| {
        let outbox = native("outbox");
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        let said = ends(&setup, &["pause", "--yes"], 78).await;
        assert!(said.contains("outbox-relay migrate"), "{said}");
        setup.migrate().await;
        let cases: [(&[&str], i32, &str); 6] = [
            (
                &["pause", "--topic", "no such/topic", "--yes"],
                64,
                "character ' '",
            ),
            (
                &["pause", "--outbox", "nobody", "--yes"],
                78,
                "there are: public.outbox",
            ),
            (
                &["pause", "--outbox", "a.b.c", "--yes"],
                64,
                "--outbox a.b.c",
            ),
            (&["pause", "--list", "--yes"], 64, "--yes"),
            (
                &["resume", "--topic", "x", "--yes"],
                0,
                "nothing of that is paused",
            ),
            (
                &["adopt", "--table", "nobody", "--yes"],
                78,
                "outbox-relay migrate",
            ),
        ];
        for (arguments, code, part) in cases {
            let said = ends(&setup, arguments, code).await;
            assert!(said.contains(part), "{part:?} in: {said}");
        }
        assert_eq!(
            world
                .number("select count(*) from outbox_relay.audit")
                .await,
            0
        );
    });
}
