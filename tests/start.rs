//! How a relay starts where something is not as it should be, and how `--until-empty` ends.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use tokio::time::sleep;
use uuid::Uuid;

use crate::see::{Seen, watched};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Relay;
use crate::support::writers::{Ledger, one};
use crate::support::{self, topic_of};

const SOON: Duration = Duration::from_secs(60);

/// Waits for the end of a relay and says its exit code and what it printed.
async fn ended(mut relay: Relay) -> (Option<i32>, String) {
    let status = relay.wait_exit(SOON).await;
    // what it wrote last may still be in the pipe
    sleep(Duration::from_millis(100)).await;
    (status.code(), relay.lines().join("\n"))
}

#[test]
fn a_sequence_that_caches_is_refused_and_the_remedy_works() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        world
            .execute("alter table outbox alter column seq set cache 20")
            .await;
        world.expect_errors("alter sequence");
        let (code, said) = ended(setup.run()).await;
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("caches 20"), "{said}");
        let remedy = said
            .split_once("Run: ")
            .and_then(|(_, rest)| rest.split_once(';'));
        let (remedy, _) = remedy.unwrap_or_else(|| panic!("no statement in {said}"));
        assert!(remedy.starts_with("alter sequence"), "{remedy}");
        world.execute(remedy).await;

        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 1, &[]).await;
        let mut ledger = Ledger::default();
        for n in 1..=3 {
            // each in a session of its own would draw from a cache of its own
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        assert!(setup.until_empty(SOON).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn relays_that_route_differently_do_not_serve_one_table() {
    support::run(async |world| {
        let old = Outbox::classic();
        let mut new = Outbox::classic();
        new.config = "topic = \"${aggregate_type:lower}-news\"".to_owned();
        old.create(world).await;
        let (with_old, with_new) = (world.relay(&[&old]), world.relay(&[&new]));
        with_old.migrate().await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let (events, news) = (
            topic_of(&aggregate_type),
            format!("{}-news", aggregate_type.to_lowercase()),
        );
        for topic in [&events, &news] {
            world.kafka.create_topic(topic, 1, &[]).await;
        }
        let mut first = with_old.run();
        let before = one(world, &old, &aggregate_type, &order, 1).await;
        old.wait_drained(world, SOON).await;

        // A second one with another template names both, and serves nothing.
        let both = |said: &str| {
            said.contains("${aggregate_type:lower}-events")
                && said.contains("${aggregate_type:lower}-news")
        };
        world.expect_errors("do not agree on routing");
        let (code, said) = ended(with_new.run()).await;
        assert_eq!(code, Some(78), "{said}");
        assert!(both(&said), "{said}");
        let (code, said) = ended(with_new.spawn(&["migrate"])).await;
        assert_eq!(code, Some(1), "a change of routing wants leave: {said}");
        assert!(both(&said), "{said}");
        assert!(first.is_running(), "the first goes on");

        // Somebody decides. The new one serves, and the old one lets go when it meets a row, says
        // so, and waits.
        with_new.migrate().await;
        let second = with_new.run();
        second.wait_line("serving the outbox", SOON).await;
        let mut ledger = Ledger::default();
        let began = tokio::time::Instant::now();
        let mut n = 1;
        let lets_go = |line: &String| line.contains("do not agree on routing") && both(line);
        while !first.lines().iter().any(lets_go) {
            assert!(began.elapsed() < SOON, "the old one still serves");
            n += 1;
            let mut event = one(world, &new, &aggregate_type, &order, n).await;
            event.topic.clone_from(&news);
            ledger.push(event);
            sleep(Duration::from_millis(30)).await;
        }
        assert!(first.is_running(), "it may be put right at any time");
        first.stop().await;
        new.wait_drained(world, SOON).await;
        second.stop().await;
        world.check(&ledger).await.assert_clean(0);
        let mut ledger = Ledger::default();
        ledger.push(before);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn run_migrate_waits_for_a_persons_leave_and_then_serves() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 1, &[]).await;
        let mut ledger = Ledger::default();
        for n in 1..=5 {
            ledger.push(one(world, &outbox, &aggregate_type, &order, n).await);
        }
        let setup = watched(world.relay(&[&outbox]));
        let seen = Seen::of(setup.spawn(&["run", "--migrate"])).await;
        let said = seen.relay.wait_line("migrate --yes", SOON).await;
        assert!(
            said.contains("about 5 rows"),
            "it says what it would do: {said}"
        );
        // the service goes on writing: another number is no other news
        ledger.push(one(world, &outbox, &aggregate_type, &order, 6).await);
        seen.until("it has looked again", |status| {
            let text = status["outboxes"][0]["state_text"].as_str();
            text.is_some_and(|text| text.contains("about 6 rows"))
        })
        .await;
        let mut relay = seen.relay;
        assert!(relay.is_running(), "it waits");
        let lines = relay.lines();
        let lines = lines.iter().filter(|line| line.contains("migrate --yes"));
        assert_eq!(lines.count(), 1, "once a minute is enough");
        let seq = "select count(*) from pg_attribute
             where attrelid = 'outbox'::regclass and attname = 'seq'";
        assert_eq!(
            world.number(seq).await,
            0,
            "it does nothing of it by itself"
        );

        setup.migrate().await;
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn until_empty_ends_well_when_nothing_is_left() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 1, &[]).await;
        let mut ledger = Ledger::default();
        for round in 0..2 {
            let (code, said) = ended(setup.spawn(&["run", "--until-empty"])).await;
            assert_eq!(code, Some(0), "{round}: {said}");
            assert_eq!(outbox.pending(world).await, 0);
            for n in 1..=2_i64 {
                let event = one(world, &outbox, &aggregate_type, &order, 2 * round + n).await;
                ledger.push(event);
            }
        }
        assert!(setup.until_empty(SOON).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn until_empty_says_what_it_leaves_behind() {
    support::run(async |world| {
        let native = |table: &str, config: &str| {
            let mut outbox = Outbox::new(table, Layout::Native, OnPublished::Mark);
            outbox.config = config.to_owned();
            outbox
        };
        let aggregate_type = world.aggregate_with_topic("Order", 1).await;
        // What is wrong with the first of three rows of an aggregate, and what is left by it. A row
        // of another aggregate always gets out.
        let parked = "topic = 'no such/topic'";
        let cases = [
            ("blocked", "", parked, "2 behind, 1 blocked left"),
            (
                "parked",
                "on_rejected = \"dead_letter\"",
                parked,
                "1 dead left",
            ),
            ("paused", "", "topic = 'no-such-topic'", "1 pending left"),
            ("locked", "", "", "3 pending left"),
        ];
        for (table, config, change, left) in cases {
            let outbox = native(table, config);
            outbox.create(world).await;
            let setup = world.relay(&[&outbox]);
            setup.migrate().await;
            for n in 1..=3 {
                one(world, &outbox, &aggregate_type, "a", n).await;
            }
            one(world, &outbox, &aggregate_type, "b", 1).await;
            let first = format!("from {table} where aggregate_id = 'a' order by seq limit 1");
            if !change.is_empty() {
                world
                    .execute(&format!(
                        "update {table} set {change} where id = (select id {first})"
                    ))
                    .await;
            }
            let mut foreign = world.pool.begin().await.unwrap();
            if table == "locked" {
                let lock = format!("select id {first} for update");
                sqlx::query(AssertSqlSafe(lock))
                    .execute(&mut *foreign)
                    .await
                    .unwrap();
            }
            let (code, said) = ended(setup.spawn(&["run", "--until-empty"])).await;
            foreign.rollback().await.unwrap();
            assert_eq!(code, Some(75), "{table}: {said}");
            let expected = format!("public.{table}: {left}");
            assert!(said.contains(&expected), "{expected:?} in {said}");
            let out = "published_at is not null and aggregate_id = 'b'";
            let out = format!("select count(*) from {table} where {out}");
            assert_eq!(world.number(&out).await, 1, "{table}: the rest flows");
        }
    });
}

#[test]
fn until_empty_does_not_wait_for_a_server_that_is_not_there() {
    /// Nobody listens on it, and nobody may.
    const CLOSED: &str = "127.0.0.1:9";
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = || {
            world
                .relay(&[&outbox])
                .set("relay", "publish_timeout", "\"2s\"")
        };
        setup().migrate().await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        one(world, &outbox, &aggregate_type, &order, 1).await;
        world.expect_errors("Postgres");
        world.expect_errors("Kafka");
        for (section, key, value, name) in [
            (
                "database",
                "url",
                format!("\"postgres://x:y@{CLOSED}/z\""),
                "Postgres",
            ),
            ("kafka", "brokers", format!("\"{CLOSED}\""), "Kafka"),
        ] {
            let setup = setup().set(section, key, &value);
            let (code, said) = ended(setup.spawn(&["run", "--until-empty"])).await;
            assert_eq!(code, Some(69), "{name}: {said}");
            assert!(said.contains(name), "{said}");
        }
        assert_eq!(outbox.pending(world).await, 1, "the row is as it was");
    });
}
