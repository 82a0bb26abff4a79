//! What is told of a table without a relay: by the command, and by the views.

use serde_json::Value;

use super::{SOON, Seen, number, watched, whole};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Setup;
use crate::support::writers::one;
use crate::support::{self, World};

/// Runs `status` with these arguments: its exit code, and what it printed.
async fn status(setup: &Setup<'_>, arguments: &[&str]) -> (Option<i32>, String) {
    let all: Vec<&str> = ["status"].iter().chain(arguments).copied().collect();
    let mut command = setup.spawn(&all);
    let status = command.wait_exit(SOON).await;
    (status.code(), command.lines().join("\n"))
}

/// As [`status`] with `--json`, of the only outbox.
async fn table(setup: &Setup<'_>) -> Value {
    let (code, said) = status(setup, &["--json"]).await;
    assert_eq!(code, Some(0), "{said}");
    let mut report: Value = serde_json::from_str(&said).unwrap();
    report["database"]["outboxes"][0].take()
}

/// Inserts rows that nobody publishes, a minute old.
async fn fill(world: &World, table: &str, rows: u32) {
    world
        .execute(&format!(
            "insert into {table} (aggregate_id, aggregate_type, event_type, payload, created_at)
             select md5((i % 3000)::text)::uuid, 'Order', 'OrderChanged', '{{}}', now() - interval '1 minute'
               from generate_series(1, {rows}) i"
        ))
        .await;
}

#[test]
fn a_backlog_is_counted_while_it_is_small_and_estimated_beyond() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let empty = table(&setup).await;
        assert_eq!(empty["backlog"]["events"], 0);
        assert_eq!(empty["oldest_pending_age_s"], 0.0);

        fill(world, "outbox", 3_000).await;
        let small = table(&setup).await;
        assert_eq!(
            (&small["backlog"]["events"], &small["backlog"]["exact"]),
            (&3_000.into(), &true.into())
        );
        let age = number(&small["oldest_pending_age_s"]);
        assert!((60.0..600.0).contains(&age), "{age}");

        fill(world, "outbox", 57_000).await;
        // some were published in between, as they are while a backlog drains
        world
            .execute("update outbox set published_at = now() where seq <= 20000")
            .await;
        let large = table(&setup).await;
        assert_eq!(large["backlog"]["exact"], false);
        let told = whole(&large["backlog"]["events"]);
        assert!((36_000..=44_000).contains(&told), "{told}, not about 40000");
        // the view counts no further than its bound
        let view = "select pending from outbox_relay.backlog where not pending_is_exact";
        assert_eq!(world.number(view).await, 10_000);
    });
}

#[test]
fn status_says_what_is_paused_without_a_relay() {
    support::run(async |world| {
        let outboxes =
            ["one", "other"].map(|table| Outbox::new(table, Layout::Classic, OnPublished::Mark));
        for outbox in &outboxes {
            outbox.create(world).await;
        }
        let setup = world.relay(&outboxes.each_ref());
        setup.migrate().await;
        assert_eq!(table(&setup).await["paused"], serde_json::json!([]));
        let pause = |arguments: &'static [&'static str]| {
            let all: Vec<&str> = ["pause", "--yes"]
                .iter()
                .chain(arguments)
                .copied()
                .collect();
            let mut command = setup.spawn(&all);
            async move { assert!(command.wait_exit(SOON).await.success()) }
        };
        pause(&["--outbox", "one", "--topic", "stock-events"]).await;
        pause(&["--outbox", "other", "--reason", "bad\u{1b}[2J release"]).await;

        let (code, said) = status(&setup, &[]).await;
        assert_eq!(code, Some(0), "{said}");
        let (one, other) = said.split_once("public.other").unwrap();
        assert!(
            one.contains("PAUSED    the topic stock-events for "),
            "{said}"
        );
        assert!(
            !one.contains("whole") && !other.contains("stock-events"),
            "{said}"
        );
        assert!(other.contains("PAUSED    the whole outbox for "), "{said}");
        assert!(other.contains(r": bad\u{1b}[2J release"), "{said}");
        assert_eq!(table(&setup).await["paused"][0]["topic"], "stock-events");

        // whoever may not read the pauses is not told that there are none
        world
            .execute("alter table outbox_relay.pause rename to hidden")
            .await;
        let (code, said) = status(&setup, &[]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("pauses      not known") && !said.contains("PAUSED"),
            "{said}"
        );
        assert_eq!(table(&setup).await["paused"], Value::Null);
        world
            .execute("alter table outbox_relay.hidden rename to pause")
            .await;
    });
}

#[test]
fn status_is_one_screen_with_or_without_a_relay() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        outbox.config = "freshness_budget = \"1ms\"".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        one(world, &outbox, &aggregate_type, "o-1", 1).await;
        one(world, &outbox, &aggregate_type, "o-1", 2).await;
        let (code, said) = status(&setup, &[]).await;
        assert_eq!(code, Some(0), "{said}");
        for part in [
            "public.outbox",
            "2 rows, the oldest",
            "BROKEN",
            "http.listen is off",
        ] {
            assert!(said.contains(part), "{part:?} in\n{said}");
        }
        assert!(!said.contains("o-1"), "no keys: {said}");

        let seen = Seen::start(&watched(world.relay(&[&outbox]))).await;
        outbox.wait_drained(world, SOON).await;
        seen.until("it is told", |status| {
            let outbox = &status["outboxes"][0];
            outbox["published"] == 2 && outbox["freshness"][0]["kept"] == true
        })
        .await;
        let (code, said) = status(&setup, &["--relay", seen.address()]).await;
        assert_eq!(code, Some(0), "{said}");
        for part in [
            "no rows",
            "kept",
            "serving",
            "live, ready",
            "lag p50",
            "16 lanes",
        ] {
            assert!(said.contains(part), "{part:?} in\n{said}");
        }
        let (code, said) = status(&setup, &["--json", "--relay", seen.address()]).await;
        assert_eq!(code, Some(0), "{said}");
        let report: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(report["relay"]["outboxes"][0]["published"], 2);
        assert!(whole(&report["database"]["relay_connections"]) >= 1);
        seen.relay.stop().await;
    });
}

#[test]
fn status_says_what_it_cannot_tell() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let setup = || world.relay(&[&outbox]);
        let (code, said) = status(&setup(), &[]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("run `outbox-relay migrate`"), "{said}");

        outbox.create(world).await;
        setup().migrate().await;
        world.execute("alter table outbox rename to away").await;
        let (code, said) = status(&setup(), &[]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("does not exist"), "{said}");
        let nulls = "select count(*) from outbox_relay.status where pending is null";
        assert_eq!(world.number(nulls).await, 1, "the views go on");

        let closed = setup().set("database", "url", "\"postgres://x:canary@127.0.0.1:9/z\"");
        let (code, said) = status(&closed, &["--relay", "127.0.0.1:9"]).await;
        assert_eq!(code, Some(69), "{said}");
        assert!(said.contains("no relay answers on 127.0.0.1:9"), "{said}");
        assert!(!said.contains("canary"), "{said}");
        let (code, said) = status(&setup(), &["--color"]).await;
        assert_eq!(code, Some(64), "{said}");
        for (section, key, value) in [
            ("http", "listen", "\":9464\""),
            ("http", "listen", "\"localhost:http\""),
            ("relay", "sample_interval", "0"),
            ("log", "heartbeat", "\"often\""),
        ] {
            let (code, said) = status(&setup().set(section, key, value), &[]).await;
            assert_eq!(code, Some(78), "{key} {value}: {said}");
            assert!(said.contains(&format!("{section}.{key}")), "{said}");
        }
        let mut budget = Outbox::classic();
        budget.config = "freshness_budget_by_topic = { orders = \"soon\" }".to_owned();
        let (code, said) = status(&world.relay(&[&budget]), &[]).await;
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("look at `orders`"), "{said}");
    });
}
