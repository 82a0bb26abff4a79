//! The demo's Kafka: the user's own, with a topic of the demo's, or librdkafka's mock cluster
//! inside this process.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Enough that the aggregates spread.
pub(super) const PARTITIONS: i32 = 8;

/// How long the user's brokers may take to make or drop the topic.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// A place to publish to, and the topic the relay will choose there.
pub(super) struct Kafka {
    /// `host:port`, several with commas between.
    pub(super) brokers: String,
    /// What the service writes as aggregate type; the topic follows from it.
    pub(super) aggregate_type: String,
    /// `${aggregate_type:lower}-events`.
    pub(super) topic: String,
    /// How long a fetch may wait for records, in milliseconds.
    pub(super) fetch_wait_ms: u32,
    kind: Kind,
}

enum Kind {
    Mock(Mock),
    /// Somebody else's; only the topic is ours.
    Theirs,
}

/// librdkafka's mock cluster. It lives on a thread of its own (its handle cannot move) until the sender drops.
pub(super) struct Mock {
    /// `host:port`.
    pub(super) brokers: String,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Mock {
    /// Starts one with these topics, of `partitions` each.
    pub(super) async fn start(topics: &[String], partitions: i32) -> KafkaResult<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (ready, started) = oneshot::channel();
        let topics = topics.to_vec();
        let thread = std::thread::spawn(move || {
            let cluster = MockCluster::new(1).and_then(|cluster| {
                for topic in &topics {
                    cluster.create_topic(topic, partitions, 1)?;
                }
                Ok(cluster)
            });
            match cluster {
                Ok(cluster) => {
                    ready.send(Ok(cluster.bootstrap_servers())).ok();
                    // An error says that the sender is gone, which is what it waits for.
                    stopped.recv().ok();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        let brokers = started.await.map_err(|_gone| KafkaError::Canceled)??;
        Ok(Self {
            brokers,
            stop,
            thread,
        })
    }

    /// Ends it.
    pub(super) async fn stop(self) {
        drop(self.stop);
        // A panic there has been printed; nothing is left to do about it.
        let thread = self.thread;
        tokio::task::spawn_blocking(|| thread.join().ok())
            .await
            .ok();
    }
}

impl Kafka {
    /// Starts the stand-in.
    pub(super) async fn mock() -> KafkaResult<Self> {
        let topic = "order-events".to_owned();
        let cluster = Mock::start(std::slice::from_ref(&topic), PARTITIONS).await?;
        Ok(Self {
            brokers: cluster.brokers.clone(),
            aggregate_type: "Order".to_owned(),
            topic,
            // The mock cluster answers an empty fetch when the wait is over, not when something
            // arrives: a longer wait would show as lag.
            fetch_wait_ms: 2,
            kind: Kind::Mock(cluster),
        })
    }

    /// Names a topic of the demo's own on these brokers; `create_topic` makes it.
    pub(super) fn at(brokers: &str) -> Self {
        let mut name = Uuid::new_v4().simple().to_string();
        name.truncate(8);
        Self {
            brokers: brokers.to_owned(),
            aggregate_type: format!("OutboxRelayDemo_{name}"),
            topic: format!("outboxrelaydemo_{name}-events"),
            fetch_wait_ms: 100,
            kind: Kind::Theirs,
        }
    }

    /// Makes the topic, unless the stand-in has it already.
    pub(super) async fn create_topic(&self) -> KafkaResult<()> {
        if matches!(self.kind, Kind::Mock(_)) {
            return Ok(());
        }
        let topic = NewTopic::new(&self.topic, PARTITIONS, TopicReplication::Fixed(-1));
        // The client has to outlive the answer.
        let admin = admin(&self.brokers)?;
        first_error(admin.create_topics([&topic], &Self::patience()).await?)
    }

    /// Ends the stand-in, or drops the topic from the user's brokers.
    pub(super) async fn stop(self) -> KafkaResult<()> {
        let Self {
            brokers,
            topic,
            kind,
            ..
        } = self;
        match kind {
            Kind::Mock(cluster) => {
                cluster.stop().await;
                Ok(())
            }
            Kind::Theirs => {
                let admin = admin(&brokers)?;
                let gone = admin.delete_topics(&[&topic], &Self::patience());
                match first_error(gone.await?) {
                    Err(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition)) => Ok(()),
                    dropped => dropped,
                }
            }
        }
    }

    fn patience() -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(ADMIN_TIMEOUT))
            .operation_timeout(Some(ADMIN_TIMEOUT))
    }
}

fn admin(brokers: &str) -> KafkaResult<AdminClient<DefaultClientContext>> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
}

fn first_error(results: Vec<Result<String, (String, RDKafkaErrorCode)>>) -> KafkaResult<()> {
    results
        .into_iter()
        .find_map(Result::err)
        .map_or(Ok(()), |(_topic, code)| Err(KafkaError::AdminOp(code)))
}
