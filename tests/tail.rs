//! `tail` shows what is in Kafka, and nobody else notices.

use std::time::Duration;

use rdkafka::consumer::Consumer;
use serde_json::Value;
use uuid::Uuid;

use crate::support::kafka::blocking;
use crate::support::outbox::Outbox;
use crate::support::relay::{Relay, Setup};
use crate::support::writers::{first, one};
use crate::support::{self, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);

/// The events that a `tail` has shown so far.
fn shown(relay: &Relay) -> Vec<Value> {
    let lines = relay.lines();
    let objects = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    objects.filter(|line| line["offset"].is_number()).collect()
}

async fn tail(setup: &Setup<'_>, arguments: &[&str]) -> Vec<Value> {
    let mut relay = setup.spawn(&[&["tail", "--json"], arguments].concat());
    let status = relay.wait_exit(SOON).await;
    assert!(status.success(), "{arguments:?}: {:?}", relay.lines());
    shown(&relay)
}

#[test]
fn tail_shows_the_last_events_by_key_type_and_topic_and_how_long_each_took() {
    support::run(async |world| {
        let mut outbox = Outbox::classic();
        // no topic of another test fits it
        let prefix = world.topic("tail");
        outbox.config = format!("topic = \"{prefix}-${{aggregate_type:lower}}\"");
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (aggregate_type, topic) = ("Order", format!("{prefix}-order"));
        world.kafka.create_topic(&topic, 2, &[]).await;
        let (first, second) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let mut ids = Vec::new();
        for n in 1..=6 {
            for order in [&first, &second] {
                ids.push(one(world, &outbox, aggregate_type, order, n).await.id);
            }
        }
        assert!(setup.until_empty(SOON).await.success());
        let named = |arguments: &[&str]| -> Vec<String> {
            let named = ["--topic", &topic];
            named
                .iter()
                .chain(arguments)
                .map(ToString::to_string)
                .collect()
        };
        let ask = async |arguments: &[&str]| {
            let arguments = named(arguments);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            tail(&setup, &arguments).await
        };

        let all = ask(&[]).await;
        assert_eq!(all.len(), 12, "{all:?}");
        for event in &all {
            assert_eq!(event["topic"], *topic);
            let id: Uuid = event["event_id"].as_str().unwrap().parse().unwrap();
            assert!(ids.contains(&id));
            let latency = event["latency_ms"]
                .as_f64()
                .expect("its row is still there");
            assert!((-3_600_000.0..3_600_000.0).contains(&latency), "{latency}");
            assert!(
                event.get("value").is_none(),
                "payloads are only shown on demand"
            );
            assert!(event["value_bytes"].as_u64().unwrap() > 0);
        }
        let of_first: Vec<_> = all.iter().filter(|event| event["key"] == *first).collect();
        assert_eq!(
            ask(&["--key", &first]).await.iter().collect::<Vec<_>>(),
            of_first
        );
        let last = ask(&[
            "--key",
            &first,
            "--limit",
            "2",
            "--since",
            "1h",
            "--payload",
        ])
        .await;
        let offsets = |events: &[&Value]| -> Vec<i64> {
            events
                .iter()
                .map(|event| event["offset"].as_i64().unwrap())
                .collect()
        };
        assert_eq!(
            offsets(&last.iter().collect::<Vec<_>>()),
            offsets(&of_first[4..])
        );
        let value: Value = serde_json::from_str(last[1]["value"].as_str().unwrap()).unwrap();
        assert_eq!(value["n"], 6, "{value}");
        assert_eq!(ask(&["--type", "no-such-type"]).await, Vec::<Value>::new());
        assert_eq!(
            ask(&["--since", "1ms"]).await.len(),
            0,
            "all of it is older"
        );

        // without a topic, those that the config can route to
        let routed = tail(&setup, &["--key", &first]).await;
        assert_eq!(routed.iter().collect::<Vec<_>>(), of_first);

        // rows that are gone tell nothing any more
        world.execute("delete from outbox").await;
        let plain = ask(&["--limit", "1"]).await;
        assert_eq!(plain[0]["latency_ms"], Value::Null);

        // nobody was joined, nothing committed
        let kafka = world.kafka.clone();
        let groups = blocking(move || {
            let consumer = kafka.consumer();
            let groups = consumer.fetch_group_list(None, SOON).unwrap();
            groups
                .groups()
                .iter()
                .map(|it| it.name().to_owned())
                .collect::<Vec<_>>()
        });
        let groups = groups.await;
        assert!(
            !groups.iter().any(|name| name.contains("tail")),
            "{groups:?}"
        );
    });
}

#[test]
fn tail_follows_what_is_published_and_ends_well_at_a_signal() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let order = Uuid::new_v4().to_string();
        one(world, &outbox, &aggregate_type, &order, 1).await;
        assert!(setup.until_empty(SOON).await.success());
        let mut following = setup.spawn(&["tail", "--json", "--follow", "--topic", &topic]);
        let seen = async |events: usize| {
            let what = format!("{events} events are shown");
            eventually(SOON, &what, async || shown(&following).len() >= events).await;
        };
        seen(1).await;
        for n in 2..=4 {
            one(world, &outbox, &aggregate_type, &order, n).await;
        }
        assert!(setup.until_empty(SOON).await.success());
        seen(4).await;
        let offsets: Vec<i64> = (shown(&following).iter())
            .map(|event| event["offset"].as_i64().unwrap())
            .collect();
        assert_eq!(offsets, [0, 1, 2, 3], "each once, in order");
        following.sigterm();
        assert_eq!(following.wait_exit(SOON).await.code(), Some(0));
    });
}

#[test]
fn tail_says_what_it_cannot_show() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let ends = async |setup: &Setup<'_>, arguments: &[&str]| {
            let mut relay = setup.spawn(&[&["tail"], arguments].concat());
            let status = relay.wait_exit(SOON).await;
            (status.code().unwrap(), relay.lines().join("\n"))
        };
        let (code, said) = ends(&setup, &["--topic", "no-such-topic"]).await;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no-such-topic"), "{said}");
        for bad in [
            ["--topic", "no such"],
            ["--since", "soon"],
            ["--limit", "-1"],
        ] {
            assert_eq!(ends(&setup, &bad).await.0, 64, "{bad:?}");
        }
        let closed = world
            .relay(&[&outbox])
            .set("kafka", "brokers", "\"127.0.0.1:9\"");
        let (code, said) = ends(&closed, &["--topic", &topic]).await;
        assert_eq!(code, 69, "{said}");
        assert!(said.contains("127.0.0.1:9"), "{said}");

        // without Postgres there are the events, without their latencies
        first(world, &outbox, &aggregate_type).await;
        assert!(setup.until_empty(SOON).await.success());
        let alone = world.relay(&[&outbox]).set(
            "database",
            "url",
            "\"postgres://relay:canary@127.0.0.1:9/x\"",
        );
        let (code, said) = ends(&alone, &["--topic", &topic]).await;
        assert_eq!(code, 0, "{said}");
        assert!(said.contains(&format!("{topic}[")), "{said}");
        assert!(
            said.contains("latencies are not shown") && !said.contains("canary"),
            "{said}"
        );
    });
}
