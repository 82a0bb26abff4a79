//! The manners of a relay beside its service, which docs/deploy.md promises: tried with the settings
//! of the manifest in `deploy/kubernetes/sidecar`.

use std::time::Duration;

use uuid::Uuid;

use crate::see::{SOON, Seen, watched};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Setup;
use crate::support::writers::{Ledger, one};
use crate::support::{self, Own, eventually, topic_of};

/// What a pod gives by default, in which the relay's drain and its settling have to fit.
const GRACE: Duration = Duration::from_secs(30);

/// More than fit into the time that Kafka is frozen, at a publish time-out and a pause each.
const ATTEMPTS_MAX: usize = 60;

/// A relay with the manifest's variables, but for addresses, which are the test's.
fn as_deployed(mut setup: Setup<'_>) -> Setup<'_> {
    let manifest = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/deploy/kubernetes/sidecar/sidecar.yaml"
    );
    let manifest = std::fs::read_to_string(manifest).unwrap();
    assert!(manifest.contains("args: [run, --migrate, "));
    let mut set = 0;
    let mut lines = manifest.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.trim().strip_prefix("- name: OUTBOX_RELAY__") else {
            continue;
        };
        let value = lines.find_map(|line| line.trim().strip_prefix("value: "));
        if !["DATABASE__URL_FILE", "HTTP__LISTEN"].contains(&name) {
            setup = setup.env(&format!("OUTBOX_RELAY__{name}"), value.unwrap());
            set += 1;
        }
    }
    assert!(set > 0, "the manifest sets the drain at least");
    setup
}

#[test]
fn a_sidecar_waits_for_the_table_stays_ready_without_kafka_and_stops_in_time() {
    support::run_with(Own::KAFKA, async |world| {
        // native: it has seq from the start
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        let setup = as_deployed(watched(world.relay(&[&outbox])));
        let setup = setup.set("relay", "publish_timeout", "\"2s\"");
        let seen = Seen::of(setup.spawn(&["run", "--migrate"])).await;

        // the service's containers start only after this, and make the table
        seen.relay.wait_line("does not exist yet", SOON).await;
        assert_eq!(
            seen.health().await,
            (true, true),
            "before the table is there"
        );
        outbox.create(world).await;
        let (aggregate_type, order) = (world.aggregate_type("Order"), Uuid::new_v4().to_string());
        let topic = topic_of(&aggregate_type);
        world.kafka.create_topic(&topic, 1, &[]).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, &order, 1).await);
        let pending = || world.number("select count(*) from outbox");
        let empty = async || pending().await == 0;
        eventually(SOON, "it serves the table", empty).await;

        // an outage of Kafka is not to take the service out of its load balancer
        world.own_kafka().pause().await;
        ledger.push(one(world, &outbox, &aggregate_type, &order, 2).await);
        let away = |status: &serde_json::Value| status["kafka"]["reachable"] == false;
        seen.until("Kafka is away", away).await;
        assert_eq!(seen.health().await, (true, true), "while Kafka is away");
        seen.relay.stop().await;

        // with a batch in hand that nobody answers for it ends before the pod does
        let setup = as_deployed(watched(world.relay(&[&outbox])));
        let setup = setup.set("relay", "publish_timeout", "\"10m\"");
        let seen = Seen::start(&setup).await;
        seen.until("a batch is in hand", |status| {
            status["outboxes"][0]["workers"]["doing"]["publishing"] == 1
        })
        .await;
        seen.relay.sigterm();
        let mut relay = seen.relay;
        assert_eq!(relay.wait_exit(GRACE).await.code(), Some(0));
        assert_eq!(pending().await, 1, "what was not acknowledged stays");

        world.own_kafka().unpause().await;
        let next = setup.run();
        eventually(SOON, "the next one publishes it", empty).await;
        next.stop().await;
        // the broker may find each attempt at the one event in its socket when it wakes
        world.check(&ledger).await.assert_clean(ATTEMPTS_MAX);
    });
}
