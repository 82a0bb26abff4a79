//! Topics, and a reader that sees every record there is.

use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

/// A header as it arrived.
pub(crate) type Header = (String, Option<Vec<u8>>);

/// A record as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<Header>,
}

/// The brokers of one test.
#[derive(Debug, Clone)]
pub(crate) struct Kafka {
    pub(crate) brokers: String,
}

const TIMEOUT: Duration = Duration::from_secs(30);

impl Kafka {
    /// Makes a topic and waits until each of its partitions can be written.
    pub(crate) async fn create_topic(&self, topic: &str, partitions: i32, config: &[(&str, &str)]) {
        let new = NewTopic {
            name: topic,
            num_partitions: partitions,
            replication: TopicReplication::Fixed(1),
            config: config.to_vec(),
        };
        let made = self
            .admin()
            .create_topics([&new], &AdminOptions::new())
            .await;
        for result in made.expect("the admin client answers") {
            result.expect("a topic can be made");
        }
        let (kafka, topic) = (self.clone(), topic.to_owned());
        blocking(move || {
            let consumer = kafka.consumer();
            let ready = || {
                let known = consumer.fetch_metadata(Some(&topic), TIMEOUT).ok()?;
                let leaders = known.topics().first()?.partitions().iter();
                let leaders = leaders.filter(|partition| partition.leader() >= 0).count();
                (i32::try_from(leaders).ok()? == partitions).then_some(())
            };
            while ready().is_none() {
                std::thread::sleep(Duration::from_millis(20));
            }
        })
        .await;
    }

    /// Gives a topic these settings of its own, and no others.
    pub(crate) async fn configure_topic(&self, topic: &str, config: &[(&str, &str)]) {
        let entries = config.iter().copied().collect();
        let alter = AlterConfig {
            specifier: ResourceSpecifier::Topic(topic),
            entries,
        };
        // Nothing answers once the client is dropped.
        let admin = self.admin();
        let altered = admin.alter_configs([&alter], &AdminOptions::new());
        for result in altered.await.expect("the admin client answers") {
            result.expect("a topic can be configured");
        }
    }

    /// Deletes topics, those that do not exist included.
    pub(crate) async fn delete_topics(&self, topics: &[&str]) {
        if topics.is_empty() {
            return;
        }
        let gone = self
            .admin()
            .delete_topics(topics, &AdminOptions::new())
            .await;
        for result in gone.expect("the admin client answers") {
            let fine = |code: &RDKafkaErrorCode| *code == RDKafkaErrorCode::UnknownTopicOrPartition;
            assert!(
                result
                    .as_ref()
                    .map_or_else(|(_, code)| fine(code), |_| true),
                "{result:?}"
            );
        }
    }

    /// The topics whose name passes.
    pub(crate) async fn topics(
        &self,
        passes: impl Fn(&str) -> bool + Send + 'static,
    ) -> Vec<String> {
        let kafka = self.clone();
        blocking(move || {
            let consumer = kafka.consumer();
            let all = patiently("the broker lists its topics", || {
                consumer.fetch_metadata(None, TIMEOUT)
            });
            let names = all.topics().iter().map(|topic| topic.name().to_owned());
            names.filter(|name| passes(name)).collect()
        })
        .await
    }

    /// How many partitions a topic has.
    pub(crate) async fn partitions(&self, topic: &str) -> i32 {
        let (kafka, topic) = (self.clone(), topic.to_owned());
        blocking(move || partitions(&kafka.consumer(), &topic)).await
    }

    /// How many records a topic has.
    pub(crate) async fn count(&self, topic: &str) -> i64 {
        let (kafka, topic) = (self.clone(), topic.to_owned());
        blocking(move || {
            let consumer = kafka.consumer();
            let end = |partition| watermarks(&consumer, &topic, partition).1;
            (0..partitions(&consumer, &topic)).map(end).sum()
        })
        .await
    }

    /// Every record in a topic: each partition by `assign`, from offset 0 to where it ended when
    /// this was called.
    pub(crate) async fn read_all(&self, topic: &str) -> Vec<Record> {
        let (kafka, topic) = (self.clone(), topic.to_owned());
        blocking(move || {
            let consumer = kafka.consumer();
            let mut assignment = TopicPartitionList::new();
            let mut ends = Vec::new();
            for partition in 0..partitions(&consumer, &topic) {
                let (start, end) = watermarks(&consumer, &topic, partition);
                assert_eq!(
                    start, 0,
                    "{topic}: records were removed, nothing can be said"
                );
                assignment
                    .add_partition_offset(&topic, partition, Offset::Offset(0))
                    .expect("offset 0 is an offset");
                ends.push(end);
            }
            consumer
                .assign(&assignment)
                .expect("partitions can be assigned");
            let mut records = Vec::new();
            let mut left: i64 = ends.iter().sum();
            while left > 0 {
                let record = patiently("records go on arriving", || {
                    let message = consumer.poll(TIMEOUT);
                    let message = message.unwrap_or(Err(KafkaError::Canceled))?;
                    Ok(record(&message))
                });
                let end = usize::try_from(record.partition)
                    .ok()
                    .and_then(|at| ends.get(at));
                if end.is_some_and(|end| record.offset < *end) {
                    left -= 1;
                    records.push(record);
                }
            }
            records
        })
        .await
    }

    pub(crate) fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().expect("an admin client can be made")
    }

    pub(crate) fn consumer(&self) -> BaseConsumer {
        let mut config = self.config();
        // No group: nothing is committed. The rest keeps small reads quick.
        config
            .set("group.id", "outbox-relay-test")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "20");
        config.create().expect("a consumer can be made")
    }

    /// A consumer of `group` that begins where the group has committed to, and commits when it is told to.
    pub(crate) fn member(&self, group: &str) -> BaseConsumer {
        let mut config = self.config();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "20");
        config.create().expect("a consumer can be made")
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "200");
        config
    }
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> i32 {
    let known = patiently("the broker knows its topics", || {
        consumer.fetch_metadata(Some(topic), TIMEOUT)
    });
    let topic = known.topics().first().expect("the broker knows the topic");
    i32::try_from(topic.partitions().len()).expect("a few partitions")
}

/// The first offset of a partition, and the one after its last.
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    patiently("a partition has watermarks", || {
        consumer.fetch_watermarks(topic, partition, TIMEOUT)
    })
}

/// Asks until there is an answer: a broker that has just come back, or was frozen for longer than
/// its session with the controller, leads nothing for a moment.
fn patiently<T>(what: &str, ask: impl Fn() -> KafkaResult<T>) -> T {
    let began = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) if began.elapsed() > 2 * TIMEOUT => panic!("{what}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect(),
    }
}

/// rdkafka's consumers block: away from the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
