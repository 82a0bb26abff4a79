//! A Kafka of three brokers and a controller of their own, local processes all of them, each broker
//! behind a proxy: for faults that one broker cannot have.
//!
//! A start costs seconds of every core, so one cluster serves the tests of a run, one at a time; who
//! is done gives it back mended. It ends when nobody has wanted it for a while, or when a test fails.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::kafka::{Kafka, blocking};
use super::local::{self, Process};
use super::proxy::Proxy;
use super::servers::{free_port, say};
use super::{World, eventually};

/// The brokers are numbered from 1.
pub(crate) const BROKERS: [i32; 3] = [1, 2, 3];
const CONTROLLER: u16 = 100;
/// How long a cluster or a broker may take to start on a machine that is busy otherwise.
const START_MAX: Duration = Duration::from_secs(90);
/// How long a cluster is kept for the next test that wants one.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// See the module's description.
pub(crate) struct Cluster {
    controller: Process,
    brokers: Vec<Broker>,
}

/// One of the three.
pub(crate) struct Broker {
    id: i32,
    process: Process,
    /// Before the listener that clients are told of.
    pub(crate) proxy: Proxy,
    /// Where the other brokers, and the tests, find it in any network.
    direct: u16,
}

static SHARED: Mutex<Option<Cluster>> = Mutex::const_new(None);
static IDLE: std::sync::Mutex<Option<JoinSet<()>>> = std::sync::Mutex::new(None);

/// Runs a test with the cluster, which it has for itself. The Postgres is the one that all tests
/// share. Where there is no Java the test is skipped, loudly, and fails under
/// `OUTBOX_TEST_REQUIRE=1`.
pub(crate) fn run(test: impl AsyncFnOnce(&World, &Cluster)) {
    super::run(async |world| {
        let mut shared = SHARED.lock().await;
        drop(IDLE.lock().unwrap().take());
        let cluster = match shared.take() {
            Some(cluster) => cluster,
            None => match Cluster::start().await {
                Ok(cluster) => cluster,
                Err(why) => return super::skip(&why),
            },
        };
        Box::pin(test(world, &cluster)).await;
        cluster.heal().await;
        let own = format!("{}-", world.prefix);
        let topics = cluster.kafka().topics(move |it| it.starts_with(&own)).await;
        let topics: Vec<_> = topics.iter().map(String::as_str).collect();
        cluster.kafka().delete_topics(&topics).await;
        *shared = Some(cluster);
        // whoever waited to end it since the use before waits no more
        let mut idle = JoinSet::new();
        idle.spawn(async {
            sleep(IDLE_MAX).await;
            drop(SHARED.lock().await.take());
        });
        *IDLE.lock().unwrap() = Some(idle);
    });
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for broker in &self.brokers {
            broker.process.abandon();
        }
        self.controller.abandon();
    }
}

impl Cluster {
    async fn start() -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let began = Instant::now();
        let name = format!("cluster-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let voter = free_port();
        let controller = local::launch_kafka_node(
            &format!("{name}-controller"),
            CONTROLLER,
            voter,
            &controller_settings(voter),
        )
        .await?;
        let mut cluster = Self {
            controller,
            brokers: Vec::new(),
        };
        for id in BROKERS {
            let (port, direct) = (free_port(), free_port());
            let proxy = Proxy::to(port).await;
            let settings = broker_settings(id, port, proxy.port(), direct, voter);
            let node = u16::try_from(id).expect("a small number");
            let home = format!("{name}-broker-{id}");
            let process = local::launch_kafka_node(&home, node, port, &settings).await?;
            cluster.brokers.push(Broker {
                id,
                process,
                proxy,
                direct,
            });
        }
        cluster.wait_ready().await?;
        say(&format!(
            "Kafka: three brokers and a controller on this machine's Java, ready after {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        Ok(cluster)
    }

    /// What a relay is told: each broker, by way of its proxy.
    pub(crate) fn bootstrap(&self) -> String {
        let brokers = self.brokers.iter().map(|broker| broker.proxy.port());
        list(brokers)
    }

    /// The brokers themselves, whatever the network is like.
    pub(crate) fn kafka(&self) -> Kafka {
        Kafka {
            brokers: list(self.brokers.iter().map(|broker| broker.direct)),
        }
    }

    pub(crate) fn broker(&self, id: i32) -> &Broker {
        let found = self.brokers.iter().find(|broker| broker.id == id);
        found.expect("a broker's number")
    }

    pub(crate) fn kill_controller(&self) -> impl Future<Output = ()> {
        self.controller.kill()
    }

    pub(crate) fn start_controller(&self) {
        self.controller.start();
    }

    /// Makes a topic that takes records while two replicas of a partition are in sync, or its only
    /// one is there; each partition on the brokers given for it, its first leader first.
    pub(crate) async fn create_topic(&self, topic: &str, replicas: &[&[i32]]) {
        let fewest = replicas.iter().map(|on| on.len()).min().unwrap_or(0);
        let new = NewTopic {
            name: topic,
            num_partitions: i32::try_from(replicas.len()).expect("a few partitions"),
            replication: TopicReplication::Variable(replicas),
            // of its own: what the brokers' files say of it is not heard by every version
            config: vec![("min.insync.replicas", if fewest > 1 { "2" } else { "1" })],
        };
        let kafka = self.kafka();
        let admin = kafka.admin();
        let made = admin.create_topics([&new], &AdminOptions::new()).await;
        for result in made.expect("the admin client answers") {
            result.expect("a topic can be made");
        }
        self.wait_in_sync().await;
    }

    /// As [`Self::create_topic`], each of six partitions on all three brokers.
    pub(crate) async fn create_replicated(&self, topic: &str) {
        let everywhere: [&[i32]; 6] = [
            &[1, 2, 3],
            &[2, 3, 1],
            &[3, 1, 2],
            &[1, 3, 2],
            &[2, 1, 3],
            &[3, 2, 1],
        ];
        self.create_topic(topic, &everywhere).await;
    }

    /// Whatever was done to it, undoes it, and waits until every partition is on all its brokers.
    pub(crate) async fn heal(&self) {
        self.controller.unpause();
        if !self.controller.is_running() {
            self.controller.start();
        }
        for broker in &self.brokers {
            broker.proxy.heal();
            broker.process.unpause();
            if !broker.process.is_running() {
                broker.process.start();
            }
        }
        self.wait_in_sync().await;
    }

    /// Starts the brokers again, also those that still run, each with all the room there is.
    pub(crate) async fn heal_room(&self) {
        for broker in &self.brokers {
            broker.process.kill().await;
            broker.process.start();
        }
    }

    /// Waits until broker `id` takes part again.
    pub(crate) async fn wait_back(&self, id: i32) {
        eventually(START_MAX, "a broker is back", async || {
            self.state()
                .await
                .is_some_and(|state| state.brokers.contains(&id))
        })
        .await;
    }

    /// Waits until every broker is there and every partition is on all its brokers.
    pub(crate) async fn wait_in_sync(&self) {
        eventually(START_MAX, "every replica is in sync", async || {
            let state = self.state().await;
            state.is_some_and(|state| state.brokers.len() == BROKERS.len() && state.behind == 0)
        })
        .await;
    }

    /// Waits until the cluster knows that broker `id` is gone.
    pub(crate) async fn wait_gone(&self, id: i32) {
        eventually(START_MAX, "a broker is gone", async || {
            let state = self.state().await;
            state.is_some_and(|state| !state.brokers.contains(&id))
        })
        .await;
    }

    async fn wait_ready(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let all = BROKERS.len();
            if self
                .state()
                .await
                .is_some_and(|state| state.brokers.len() == all)
            {
                return Ok(());
            }
            for process in self.processes() {
                if !process.is_running() || began.elapsed() > START_MAX {
                    return Err(format!("a Kafka node does not start\n{}", process.log()));
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        let brokers = self.brokers.iter().map(|broker| &broker.process);
        std::iter::once(&self.controller).chain(brokers)
    }

    /// What a broker says of the cluster, if one answers.
    async fn state(&self) -> Option<State> {
        let kafka = self.kafka();
        blocking(move || {
            let all = kafka
                .consumer()
                .fetch_metadata(None, Duration::from_secs(3));
            let all = all.ok()?;
            let partitions = all.topics().iter().flat_map(|topic| topic.partitions());
            let behind = |it: &&rdkafka::metadata::MetadataPartition| {
                it.leader() < 0 || it.isr().len() < it.replicas().len()
            };
            Some(State {
                brokers: all.brokers().iter().map(|broker| broker.id()).collect(),
                behind: partitions.filter(behind).count(),
            })
        })
        .await
    }
}

/// What the cluster says of itself.
struct State {
    brokers: HashSet<i32>,
    /// Partitions without a leader, or with a replica that is not in sync.
    behind: usize,
}

impl Broker {
    /// Shuts it down as an operator would.
    pub(crate) async fn stop(&self) {
        self.process.stop().await;
    }

    /// Ends it without a word.
    pub(crate) async fn kill(&self) {
        self.process.kill().await;
    }

    /// Starts it again, without waiting until it takes part: see [`Cluster::wait_back`].
    pub(crate) fn start(&self) {
        self.process.start();
    }

    /// Freezes it: its connections stay open and nothing answers.
    pub(crate) fn pause(&self) {
        self.process.pause();
    }

    /// Lets it go on.
    pub(crate) fn unpause(&self) {
        self.process.unpause();
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }
}

fn list(ports: impl Iterator<Item = u16>) -> String {
    let ports: Vec<_> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
    ports.join(",")
}

fn controller_settings(port: u16) -> Vec<(&'static str, String)> {
    let set = |name, value: &str| (name, value.to_owned());
    vec![
        set("node.id", &CONTROLLER.to_string()),
        set("process.roles", "controller"),
        set(
            "controller.quorum.voters",
            &format!("{CONTROLLER}@127.0.0.1:{port}"),
        ),
        set("controller.listener.names", "CONTROLLER"),
        set("listeners", &format!("CONTROLLER://127.0.0.1:{port}")),
        set("listener.security.protocol.map", "CONTROLLER:PLAINTEXT"),
        // A broker that is silent for this long leads nothing any more.
        set("broker.session.timeout.ms", "3000"),
        set("auto.leader.rebalance.enable", "false"),
    ]
}

fn broker_settings(
    id: i32,
    port: u16,
    advertised: u16,
    direct: u16,
    controller: u16,
) -> Vec<(&'static str, String)> {
    let set = |name, value: &str| (name, value.to_owned());
    vec![
        set("node.id", &id.to_string()),
        set("process.roles", "broker"),
        set(
            "controller.quorum.voters",
            &format!("{CONTROLLER}@127.0.0.1:{controller}"),
        ),
        set("controller.listener.names", "CONTROLLER"),
        set(
            "listeners",
            &format!("CLIENT://127.0.0.1:{port},DIRECT://127.0.0.1:{direct}"),
        ),
        set(
            "advertised.listeners",
            &format!("CLIENT://127.0.0.1:{advertised},DIRECT://127.0.0.1:{direct}"),
        ),
        set("inter.broker.listener.name", "DIRECT"),
        set(
            "listener.security.protocol.map",
            "CONTROLLER:PLAINTEXT,CLIENT:PLAINTEXT,DIRECT:PLAINTEXT",
        ),
        set("broker.session.timeout.ms", "3000"),
        set("broker.heartbeat.interval.ms", "500"),
        set("default.replication.factor", "3"),
        set("offsets.topic.num.partitions", "1"),
        set("offsets.topic.replication.factor", "1"),
        set("transaction.state.log.num.partitions", "1"),
        set("transaction.state.log.replication.factor", "1"),
        set("transaction.state.log.min.isr", "1"),
        set("auto.create.topics.enable", "false"),
        set("num.network.threads", "2"),
        set("num.io.threads", "2"),
        set("background.threads", "2"),
        set("log.cleaner.enable", "false"),
    ]
}
