//! The manners of a relay beside its service, which docs/deploy.md promises and the manifest of
//! `deploy/kubernetes/sidecar` relies on.

use std::time::Duration;

use uuid::Uuid;

use crate::see::{SOON, Seen, watched};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::{Ledger, one};
use crate::support::{self, Own, eventually, topic_of};

/// What a pod gives by default, in which the relay's drain and its settling have to fit.
const GRACE: Duration = Duration::from_secs(30);

/// More than fit into the time that Kafka is frozen, at a publish time-out and a pause each.
const ATTEMPTS_MAX: usize = 20;

#[test]
fn a_sidecar_waits_for_the_table_stays_ready_without_kafka_and_stops_in_time() {
    support::run_with(Own::KAFKA, async |world| {
        let manifest = include_str!("../deploy/kubernetes/sidecar/sidecar.yaml");
        let drain = "- name: OUTBOX_RELAY__RELAY__DRAIN_TIMEOUT\n              value: ";
        let drain = manifest
            .split(drain)
            .nth(1)
            .and_then(|it| it.lines().next());
        assert!(manifest.contains("args: [run, --migrate, "));
        // native: it has seq from the start
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        let setup = watched(world.relay(&[&outbox]));
        let setup = setup.env("OUTBOX_RELAY__RELAY__DRAIN_TIMEOUT", drain.unwrap());
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
        eventually(SOON, "it serves the table", async || pending().await == 0).await;

        // an outage of Kafka is not to take the service out of its load balancer
        world.own_kafka().pause().await;
        ledger.push(one(world, &outbox, &aggregate_type, &order, 2).await);
        seen.until("Kafka is away", |status| {
            status["kafka"]["reachable"] == false
        })
        .await;
        assert_eq!(seen.health().await, (true, true), "while Kafka is away");

        // nor is it to be killed at the end of the pod
        seen.relay.sigterm();
        let mut relay = seen.relay;
        let status = relay.wait_exit(GRACE).await;
        assert_eq!(status.code(), Some(0));
        assert_eq!(pending().await, 1, "what was not acknowledged stays");

        world.own_kafka().unpause().await;
        let next = setup.run();
        eventually(SOON, "the next one publishes it", async || {
            pending().await == 0
        })
        .await;
        next.stop().await;
        // the broker may find each attempt at the one event in its socket when it wakes
        world.check(&ledger).await.assert_clean(ATTEMPTS_MAX);
    });
}
