//! P7: while Kafka or Postgres is away, the relay waits; when they are back, it goes on, without a
//! restart and without a word about any row.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::support::kafka::Kafka;
use crate::support::outbox::{Outbox, parked};
use crate::support::relay::Relay;
use crate::support::servers::Server;
use crate::support::writers::{Ledger, Load, Writing, one};
use crate::support::{self, Own, World, eventually, topic_of};

/// From the server's first answer to the first event that was waiting for it.
const RECOVERY_MAX: Duration = Duration::from_secs(15);
/// A batch may be in hand for the publish deadline of 10 s and what its end takes; the rest is room for a
/// busy machine. No transaction of a relay is older.
const TRANSACTION_MAX_S: i64 = 40;

/// An outbox under load and one relay, which must live through it all.
struct Scene<'a> {
    world: &'a World,
    outbox: Outbox,
    writing: Writing,
    relay: Relay,
}

/// What a relay says, once, of an outage.
const AWAY: &str = "trying again";

impl<'a> Scene<'a> {
    async fn start(world: &'a World, rate: f64) -> Self {
        world.expect_errors(AWAY);
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = usize::MAX;
        load.rate = Some(rate);
        load.writers = 2;
        world
            .kafka
            .create_topic(&topic_of(&load.aggregate_type), 4, &[])
            .await;
        Scene {
            world,
            writing: load.start(world, &outbox).await,
            relay: setup.run(),
            outbox,
        }
    }

    /// Waits until events flow.
    async fn flows(&self) {
        let before = self.outbox.published(self.world).await;
        eventually(Duration::from_secs(20), "events flow", async || {
            self.outbox.published(self.world).await > before + 20
        })
        .await;
    }

    /// Starts a server again and asserts that events flow soon after it answers.
    async fn recovers(&mut self, server: &Server) {
        server.start().await;
        let answered = Instant::now();
        let before = self.outbox.published(self.world).await;
        eventually(RECOVERY_MAX, "the relay has recovered", async || {
            self.outbox.published(self.world).await > before
        })
        .await;
        support::servers::say(&format!(
            "recovered {:?} after the first answer",
            answered.elapsed()
        ));
        assert!(self.relay.is_running(), "without a restart");
    }

    /// Ends the load and asserts that nothing was lost, parked or disordered.
    async fn end(self) {
        let ledger = self.writing.stop().await;
        self.outbox
            .wait_drained(self.world, Duration::from_secs(30))
            .await;
        self.relay.stop().await;
        assert_eq!(parked(self.world).await, 0, "an outage is no row's fault");
        let report = self.world.check(&ledger).await;
        report.assert_clean(report.committed);
    }
}

#[test]
fn kafka_may_be_away_when_the_relay_starts() {
    support::run_with(Own::KAFKA, async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let load = Load {
            events: 200,
            ..Load::of(&world.aggregate_type("Order"))
        };
        world
            .kafka
            .create_topic(&topic_of(&load.aggregate_type), 4, &[])
            .await;
        world.own_kafka().stop().await;
        let mut relay = setup.run();
        let ledger = load.start(world, &outbox).await.finish().await;
        sleep(Duration::from_secs(3)).await;
        assert!(relay.is_running(), "it waits");
        assert_eq!(
            usize::try_from(outbox.pending(world).await).unwrap(),
            ledger.committed()
        );
        world.own_kafka().start().await;
        outbox.wait_drained(world, RECOVERY_MAX).await;
        relay.stop().await;
        assert_eq!(parked(world).await, 0);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn kafka_may_be_away_for_a_minute_in_flight() {
    support::run_with(Own::KAFKA, async |world| {
        let mut scene = Scene::start(world, 50.0).await;
        scene.flows().await;
        world.own_kafka().stop().await;
        let gone = Instant::now();
        let used = scene.relay.processor_time();
        while gone.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_secs(1)).await;
            let sql = "select coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::bigint
                 from pg_stat_activity where datname = current_database() and application_name = 'outbox-relay'";
            let age = world.number(sql).await;
            if age > TRANSACTION_MAX_S {
                let oldest = "select concat_ws(' ', clock_timestamp() - xact_start, state,
                                 clock_timestamp() - state_change, wait_event, query)
                     from pg_stat_activity where datname = current_database() and application_name = 'outbox-relay'
                     order by xact_start limit 1";
                let oldest = sqlx::query_scalar::<_, String>(oldest).fetch_one(&world.pool);
                panic!(
                    "a transaction has been open for {age} s: {}",
                    oldest.await.unwrap()
                );
            }
        }
        if let (Some(before), Some(after)) = (used, scene.relay.processor_time()) {
            let used = after - before;
            assert!(
                used < gone.elapsed() / 20,
                "waiting took {used:?} of processor time"
            );
        }
        scene.recovers(world.own_kafka()).await;
        scene.flows().await;
        scene.end().await;
    });
}

#[test]
fn kafka_may_crash_and_freeze_in_flight() {
    support::run_with(Own::KAFKA, async |world| {
        let mut scene = Scene::start(world, 200.0).await;
        scene.flows().await;
        world.own_kafka().kill().await;
        sleep(Duration::from_secs(2)).await;
        scene.recovers(world.own_kafka()).await;
        scene.flows().await;
        world.own_kafka().pause().await;
        sleep(Duration::from_secs(15)).await;
        world.own_kafka().unpause().await;
        scene.flows().await;
        scene.end().await;
    });
}

#[test]
fn postgres_may_restart_and_crash_in_flight() {
    support::run_with(Own::POSTGRES, async |world| {
        let mut scene = Scene::start(world, 200.0).await;
        scene.flows().await;
        for crash in [false, true] {
            match crash {
                false => world.own_postgres().stop().await,
                true => world.own_postgres().kill().await,
            }
            sleep(Duration::from_secs(2)).await;
            scene.recovers(world.own_postgres()).await;
            scene.flows().await;
        }
        scene.end().await;
    });
}

#[test]
fn postgres_may_be_away_when_the_relay_starts() {
    support::run_with(Own::POSTGRES, async |world| {
        world.expect_errors(AWAY);
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let load = Load {
            events: 100,
            ..Load::of(&world.aggregate_type("Order"))
        };
        world
            .kafka
            .create_topic(&topic_of(&load.aggregate_type), 4, &[])
            .await;
        let ledger = load.start(world, &outbox).await.finish().await;
        world.own_postgres().stop().await;
        let mut relay = setup.run();
        sleep(Duration::from_secs(3)).await;
        assert!(relay.is_running(), "it waits");
        world.own_postgres().start().await;
        outbox.wait_drained(world, RECOVERY_MAX).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

/// How long an event of a healthy topic may wait while the relay finds out that others take
/// nothing: its batch meets the publish deadline, a question and first tries, more than once.
const FINDING_OUT_MAX: Duration = Duration::from_secs(40);
/// And later, beside topics that are known to: a short try of one of them may be under way.
const BESIDE_STUCK_MAX: Duration = Duration::from_secs(20);

/// One broker of two is away and its partitions keep it as their leader: the cluster answers, and
/// those topics' records are tried for ever. A single real broker has no such state, so these are
/// librdkafka's mock brokers.
#[test]
fn a_topic_that_takes_nothing_though_the_cluster_answers_delays_its_own_events_alone() {
    support::run(async |world| {
        const HEALTHY: i32 = 1;
        const LEADER: i32 = 2;
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let cluster = MockCluster::new(2).unwrap();
        let kafka = Kafka {
            brokers: cluster.bootstrap_servers(),
        };
        let setup = world
            .relay(&[&outbox])
            .set("kafka", "brokers", &format!("\"{}\"", kafka.brokers))
            .set("relay", "publish_timeout", "\"2s\"");
        setup.migrate().await;
        let [fresh, used, well] = ["Fresh", "Used", "Well"].map(|name| world.aggregate_type(name));
        for (aggregate_type, leader) in [(&fresh, LEADER), (&used, LEADER), (&well, HEALTHY)] {
            let topic = topic_of(aggregate_type);
            cluster.create_topic(&topic, 2, 1).unwrap();
            for partition in [0, 1] {
                let led = cluster.partition_leader(&topic, partition, Some(leader));
                led.unwrap();
            }
        }
        let orders: Vec<String> = (0..20).map(|_| Uuid::new_v4().to_string()).collect();
        let mut ledger = Ledger::default();
        let relay = setup.run();
        // one of the two takes records before, the other never did
        for order in &orders {
            ledger.push(one(world, &outbox, &used, order, 1).await);
        }
        outbox.wait_drained(world, Duration::from_secs(20)).await;
        cluster.broker_down(LEADER).unwrap();
        let mut sent = 0;
        for round in 0..5 {
            for order in &orders {
                for n in [1, 2].map(|n| round * 2 + n) {
                    ledger.push(one(world, &outbox, &fresh, order, n).await);
                    ledger.push(one(world, &outbox, &used, order, n + 1).await);
                    ledger.push(one(world, &outbox, &well, order, n).await);
                    sent += 1;
                }
            }
            let (topic, written) = (topic_of(&well), Instant::now());
            let limit = match round {
                0 => FINDING_OUT_MAX,
                _ => BESIDE_STUCK_MAX,
            };
            eventually(limit, "the healthy topic flows", async || {
                kafka.count(&topic).await >= sent
            })
            .await;
            support::servers::say(&format!(
                "round {round}: all there {:?} after the last was written",
                written.elapsed()
            ));
            // The lanes meet the deadline, and then try their oldest rows: those are stuck.
            sleep(Duration::from_secs(3)).await;
        }
        eventually(BESIDE_STUCK_MAX, "the rest is settled", async || {
            outbox.pending(world).await == 2 * sent
        })
        .await;
        assert_eq!(parked(world).await, 0, "no row is at fault");
        for aggregate_type in [&fresh, &used] {
            let lines = relay.lines();
            let topic = topic_of(aggregate_type);
            let told = lines.iter().filter(|line| {
                line.contains(&topic) && line.contains("in-sync") && line.contains("--describe")
            });
            assert_eq!(told.count(), 1, "{topic}: it is told once");
        }
        cluster.broker_up(LEADER).unwrap();
        outbox.wait_drained(world, Duration::from_secs(30)).await;
        relay.stop().await;
        assert_eq!(parked(world).await, 0);
        let report = world.check_in(&kafka, &ledger).await;
        report.assert_clean(report.committed);
    });
}
