//! Bad input: each fault is told in a way that helps, delays what it must, and nothing else.

use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::writers::{Ledger, first, one};
use crate::support::{self, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);
/// The exit code of a config that cannot be used.
const BAD_CONFIG: Option<i32> = Some(78);

#[test]
fn an_unknown_key_is_named_with_its_place_and_its_likely_meaning() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let setup = world.relay(&[&outbox]).set("relay", "claim_row_max", "5");
        let mut relay = setup.run();
        let status = relay.wait_exit(SOON).await;
        assert_eq!(status.code(), BAD_CONFIG);
        let said = relay.lines().join("\n");
        for part in ["claim_row_max", "claim_rows_max", ".toml:"] {
            assert!(said.contains(part), "{part} in: {said}");
        }
    });
}

#[test]
fn a_variable_of_the_environment_beats_the_file_and_is_checked_as_well() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let setup = world.relay(&[&outbox]).workers(2);
        let mut relay = setup.env("OUTBOX_RELAY__RELAY__WORKERS", "many").run();
        assert_eq!(relay.wait_exit(SOON).await.code(), BAD_CONFIG);
        let said = relay.lines().join("\n");
        assert!(said.contains("OUTBOX_RELAY__RELAY__WORKERS"), "{said}");
    });
}

#[test]
fn an_outbox_that_does_not_exist_yet_is_waited_for() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let setup = world.relay(&[&outbox]);
        // It migrates the table when it is there; without that it would be asked to.
        let mut relay = setup.spawn(&["run", "--migrate"]);
        relay.wait_line("public.outbox", SOON).await;
        sleep(Duration::from_secs(2)).await;
        assert!(relay.is_running());
        let said = relay.lines();
        let said = said
            .iter()
            .filter(|line| line.contains("\"level\":\"WARN\""));
        assert_eq!(said.count(), 1, "once a minute is enough");

        outbox.create(world).await;
        // A row before that would make it ask for leave to number it.
        relay.wait_line("serving the outbox", SOON).await;
        let aggregate_type = world.aggregate_with_topic("Order", 1).await;
        let mut ledger = Ledger::default();
        ledger.push(first(world, &outbox, &aggregate_type).await);
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_column_that_is_missing_or_of_another_type_is_named() {
    support::run(async |world| {
        for (table, change, part) in [
            ("no_type", "drop column event_type", "event_type"),
            (
                "odd_payload",
                "alter column payload type int using 1",
                "payload",
            ),
        ] {
            let outbox = Outbox::new(table, Layout::Classic, OnPublished::Mark);
            outbox.create(world).await;
            world.relay(&[&outbox]).migrate().await;
            world
                .execute(&format!("alter table {table} {change}"))
                .await;
            world.expect_errors(part);
            let mut relay = world.relay(&[&outbox]).run();
            assert_eq!(relay.wait_exit(SOON).await.code(), BAD_CONFIG, "{table}");
            let said = relay.lines().join("\n");
            assert!(said.contains(part), "{part} in: {said}");
        }
    });
}

#[test]
fn a_missing_grant_is_told_as_the_statement_to_run() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        world.relay(&[&outbox]).migrate().await;
        // Roles belong to the whole server: the name is this test's own, and so is its end.
        let role = format!("{}-reader", world.database());
        world
            .execute(&format!("create role \"{role}\" login password 'reader'"))
            .await;
        world
            .execute(&format!(
                "grant usage on schema outbox_relay to \"{role}\"; grant select on outbox to \"{role}\""
            ))
            .await;
        let (server, database) = world.database_url.rsplit_once('/').unwrap();
        let address = server
            .rsplit_once('@')
            .map_or(server, |(_, address)| address);
        let url = format!("\"postgres://{role}:reader@{address}/{database}\"");
        world.expect_errors("grant");
        let relay = world.relay(&[&outbox]).set("database", "url", &url).run();
        let said = relay.wait_line("grant ", SOON).await;
        relay.sigkill();
        world
            .execute(&format!("drop owned by \"{role}\"; drop role \"{role}\""))
            .await;
        assert!(said.contains("update") && said.contains(&role), "{said}");
    });
}

#[test]
fn an_unknown_topic_pauses_alone_and_resumes_when_it_is_made() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (unknown, known) = (
            world.aggregate_type("Unknown"),
            world.aggregate_type("Known"),
        );
        world.kafka.create_topic(&topic_of(&known), 2, &[]).await;
        let mut ledger = Ledger::default();
        let order = Uuid::new_v4().to_string();
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &unknown, &order, n).await);
        }
        let other = Uuid::new_v4().to_string();
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &known, &other, n).await);
        }
        world.expect_errors(&topic_of(&unknown));
        let relay = setup.run();
        relay.wait_line(&topic_of(&unknown), SOON).await;
        eventually(SOON, "the known topic flows", async || {
            outbox.pending(world).await == 20
        })
        .await;
        // Nothing else comes that would wake the relay.
        sleep(Duration::from_secs(3)).await;
        world.kafka.create_topic(&topic_of(&unknown), 2, &[]).await;
        outbox.wait_drained(world, Duration::from_secs(40)).await;
        relay.stop().await;
        assert_eq!(parked(world).await, 0, "no row is at fault");
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn rows_that_cannot_be_published_are_parked_and_the_rest_flows() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        outbox.config = "on_rejected = \"dead_letter\"".to_owned();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        let topic = topic_of(&aggregate_type);
        world
            .kafka
            .create_topic(&topic, 2, &[("max.message.bytes", "5000")])
            .await;
        let mut ledger = Ledger::default();
        for n in 1..=5 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
            ledger.push(one(world, &outbox, &aggregate_type, "b", n).await);
            if n == 2 {
                let bad = |columns: &str, values: &str| {
                    format!(
                        "insert into outbox (aggregate_id, aggregate_type, event_type, payload{columns})
                         values ('a', '{aggregate_type}', 'Bad', {values})"
                    )
                };
                let noise = "(select to_jsonb(string_agg(md5(i::text), '')) from generate_series(1, 400) i)";
                world.execute(&bad("", noise)).await;
                world
                    .execute(&bad(", topic", "'{}', 'no such/topic'"))
                    .await;
                world.execute(&bad(", headers", "'{}', '[1]'")).await;
            }
        }
        world.expect_errors("park");
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
        assert_eq!(parked(world).await, 3);
        let reasons = "select count(distinct reason_class) from outbox_relay.parked
             where state = 'dead' and reason <> ''";
        assert_eq!(
            world.number(reasons).await,
            3,
            "each for a reason of its own"
        );
    });
}

#[test]
fn under_block_an_aggregate_waits_behind_its_parked_row_until_somebody_decides() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        let topic = topic_of(&aggregate_type);
        world
            .kafka
            .create_topic(&topic, 2, &[("max.message.bytes", "5000")])
            .await;
        let mut ledger = Ledger::default();
        for n in 1..=6 {
            if n == 3 {
                world
                    .execute(&format!(
                        "insert into outbox (aggregate_id, aggregate_type, event_type, payload, topic)
                         values ('a', '{aggregate_type}', 'Bad', '{{}}', 'no such/topic')"
                    ))
                    .await;
            }
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
            ledger.push(one(world, &outbox, &aggregate_type, "b", n).await);
        }
        world.expect_errors("park");
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        let states = async |state: &str| {
            let sql = format!("select count(*) from outbox_relay.parked where state = '{state}'");
            world.number(&sql).await
        };
        assert_eq!((states("blocked").await, states("behind").await), (1, 4));
        let records = world.kafka.read_all(&topic).await;
        assert_eq!(records.len(), 2 + 6, "the other aggregate is whole");

        world
            .execute("update outbox_relay.parked set state = 'skip' where state = 'blocked'")
            .await;
        eventually(SOON, "the aggregate goes on", async || {
            states("dead").await == 1 && parked(world).await == 1
        })
        .await;
        ledger.push(one(world, &outbox, &aggregate_type, "a", 7).await);
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
        let gap = "select count(*) from outbox_relay.parked where skipped_at is not null";
        assert_eq!(world.number(gap).await, 1, "a gap by choice stays visible");
    });
}
