//! `replay`: marked rows are published again.

use std::collections::HashMap;

use crate::operating::{SOON, audited, ends, native};
use crate::support::checker::{Written, verify};
use crate::support::kafka::Record;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::{Ledger, one};
use crate::support::{self, eventually, topic_of};

const REPLAYED_AT: &str = "outbox_relay_replayed_at";

fn is_copy(record: &Record) -> bool {
    record.headers.iter().any(|(name, _)| name == REPLAYED_AT)
}

#[test]
fn marked_rows_are_published_again_in_order_with_a_header_that_says_so() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let mut ledger = Ledger::default();
        let mut of_a: Vec<Written> = Vec::new();
        for n in 1..=40 {
            let event = one(world, &outbox, &aggregate_type, "a", n).await;
            of_a.push(event.clone());
            ledger.push(event);
            ledger.push(one(world, &outbox, &aggregate_type, "b", n).await);
        }
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;

        let said = ends(&setup, &["replay", "--key", "a", "--dry-run"], 0).await;
        assert!(
            said.contains("40 marked rows") && said.contains(&topic),
            "{said}"
        );
        ends(&setup, &["replay", "--key", "a"], 1).await;
        assert_eq!(world.kafka.count(&topic).await, 80);
        let yes = ["replay", "--key", "a", "--yes", "--note", "lost it"];
        let (said, next) = tokio::join!(
            ends(&setup, &yes, 0),
            one(world, &outbox, &aggregate_type, "b", 41)
        );
        ledger.push(next);
        assert!(said.contains("40 of 40 rows"), "{said}");
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        assert_eq!(audited(world, "replay").await, (1, 40));

        let records = world.kafka.read_all(&topic).await;
        let (mut copies, firsts): (Vec<_>, Vec<_>) = records.into_iter().partition(is_copy);
        // without the header they are what was written, in order, in the same partition
        for copy in &mut copies {
            let (name, at) = copy.headers.pop().unwrap();
            assert_eq!(name, REPLAYED_AT, "it comes last");
            assert!(at.unwrap().ends_with(b"Z"));
        }
        let partitions = HashMap::from([(topic, 2)]);
        verify(&of_a, &copies, &partitions).assert_clean(0);
        let events = ledger.resolved(&world.pool).await;
        verify(&events, &firsts, &partitions).assert_clean(0);
        assert_eq!(outbox.published(world).await, 81);
    });
}

#[test]
fn a_replay_that_is_stopped_says_where_to_go_on_and_loses_nothing() {
    const ROWS: usize = 90;
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let mut written: Vec<Written> = Vec::new();
        for n in 1..=i64::try_from(ROWS / 3).unwrap() {
            for key in ["a", "b", "c"] {
                written.push(one(world, &outbox, &aggregate_type, key, n).await);
            }
        }
        assert!(setup.until_empty(SOON).await.success());

        let all = ["replay", "--since", "1day", "--yes"];
        let mut first = setup.spawn(&[&all[..], &["--rate", "1"]].concat());
        eventually(SOON, "some of it is published again", async || {
            world.kafka.count(&topic).await > i64::try_from(ROWS).unwrap() + 1
        })
        .await;
        first.sigterm();
        let ended = first.wait_exit(SOON).await;
        let said = first.lines().join("\n");
        assert_eq!(ended.code(), Some(69), "{said}");
        // they come on two streams
        let (before, _) = said
            .split_once(&format!(" of {ROWS} rows were published again"))
            .unwrap_or_else(|| panic!("{said}"));
        let done: usize = before.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(said.contains("a signal came. Nothing is lost"), "{said}");
        let (_, rest) = said.split_once("--from ").unwrap();
        let (next, _) = rest.split_once(' ').unwrap();
        assert_eq!(next, written[done].id.to_string(), "the first that is left");
        assert_eq!(
            audited(world, "replay ended early").await,
            (1, i64::try_from(done).unwrap())
        );

        let left = ROWS - done;
        let said = ends(&setup, &[&all[..], &["--from", next]].concat(), 0).await;
        assert!(said.contains(&format!("{left} of {left} rows")), "{said}");
        let records = world.kafka.read_all(&topic).await;
        let (mut copies, firsts): (Vec<_>, Vec<_>) = records.into_iter().partition(is_copy);
        assert_eq!((copies.len(), firsts.len()), (ROWS, ROWS));
        for copy in &mut copies {
            copy.headers.pop();
        }
        let partitions = HashMap::from([(topic, 2)]);
        verify(&written, &copies, &partitions).assert_clean(0);
        assert_eq!(outbox.published(world).await, i64::try_from(ROWS).unwrap());

        let unknown = uuid::Uuid::new_v4().to_string();
        let said = ends(&setup, &[&all[..], &["--from", &unknown]].concat(), 1).await;
        assert!(said.contains("no row of this choice"), "{said}");
    });
}

#[test]
fn a_replay_that_cannot_be_says_why() {
    support::run(async |world| {
        let outbox = native("outbox");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        for n in 1..=3 {
            one(world, &outbox, &aggregate_type, "a", n).await;
        }
        let said = ends(&setup, &["replay", "--since", "1h", "--yes"], 0).await;
        assert!(said.contains("no marked row matches"), "{said}");
        assert!(setup.until_empty(SOON).await.success());
        let cases: [(&[&str], i32, &str); 6] = [
            (&["replay", "--yes"], 64, "say which rows"),
            (&["replay", "--since", "soon", "--yes"], 64, "--since"),
            (&["replay", "--id", "42", "--yes"], 64, "--id"),
            (&["replay", "--since", "1h", "--rate", "0"], 64, "--rate"),
            (
                &["replay", "--since", "1h", "--limit", "2", "--yes"],
                1,
                "more than 2 rows",
            ),
            (
                &["replay", "--since", "1h", "--outbox", "nobody"],
                78,
                "no outbox public.nobody",
            ),
        ];
        for (arguments, code, part) in cases {
            let said = ends(&setup, arguments, code).await;
            assert!(said.contains(part), "{part:?} in: {said}");
        }
        ends(&setup, &["pause", "--topic", &topic, "--yes"], 0).await;
        let said = ends(&setup, &["replay", "--since", "1h", "--yes"], 1).await;
        assert!(said.contains("is paused"), "{said}");
        ends(&setup, &["resume", "--yes"], 0).await;
        let away = world
            .relay(&[&outbox])
            .set("kafka", "brokers", "\"127.0.0.1:9\"")
            .set("relay", "publish_timeout", "\"2s\"");
        ends(&away, &["replay", "--since", "1h", "--yes"], 69).await;
        let deleting = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        let deleting = world.relay(&[&deleting]);
        let said = ends(&deleting, &["replay", "--since", "1h", "--yes"], 1).await;
        assert!(said.contains("nothing to replay from"), "{said}");
        assert_eq!(audited(world, "replay").await, (0, 0));
        assert_eq!(world.kafka.count(&topic).await, 3);
    });
}
