//! Records of some topics, one after the other, and how far they are done with.

use std::sync::Arc;
use std::time::Duration;

use outbox_relay::consumer::Arrival;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::Failure;
use crate::settings::Settings;

/// Records that are read ahead.
const AHEAD_MAX: usize = 64;

/// How long one look for a record or for a topic takes.
const POLL: Duration = Duration::from_millis(200);

/// How long one look for the group's offsets takes.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(5);

/// How long topics may take to be there.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(60);

/// A record that was published by a relay.
#[derive(Debug)]
pub(crate) struct Event {
    /// Where it was read, with the prefix of this run.
    topic: String,
    partition: i32,
    offset: i64,
    /// The order.
    pub(crate) key: String,
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    seq: i64,
    /// When the transaction began that wrote it, as RFC 3339.
    pub(crate) created_at: String,
    payload: Vec<u8>,
}

impl Event {
    /// What the consumer kit wants to know of it.
    pub(crate) fn arrival(&self) -> Arrival<'_> {
        Arrival {
            event_id: self.event_id,
            topic: &self.topic,
            key: &self.key,
            seq: self.seq,
        }
    }

    /// The order it is about.
    pub(crate) fn order(&self) -> Result<Uuid, Failure> {
        Ok(self.key.parse()?)
    }

    /// What it says.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        Ok(serde_json::from_slice(&self.payload)?)
    }

    fn of(message: &BorrowedMessage<'_>) -> Result<Self, Failure> {
        let header = |name: &str| {
            let headers = message.headers()?;
            let found = headers.iter().find(|header| header.key == name)?;
            std::str::from_utf8(found.value?).ok().map(str::to_owned)
        };
        let needed = |name: &str| {
            let place = (message.topic(), message.partition(), message.offset());
            header(name).ok_or_else(|| format!("the record at {place:?} has no header {name}"))
        };
        Ok(Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: String::from_utf8(message.key().unwrap_or_default().to_vec())?,
            event_id: needed("event_id")?.parse()?,
            event_type: needed("event_type")?,
            seq: needed("seq")?.parse()?,
            created_at: needed("created_at")?,
            payload: message.payload().unwrap_or_default().to_vec(),
        })
    }
}

/// The records of some topics. Each service is one process, so it takes every partition by hand; with several
/// instances it would subscribe instead. The marks are the same.
pub(crate) struct Stream {
    consumer: Arc<BaseConsumer>,
    records: mpsc::Receiver<Result<Event, Failure>>,
}

impl Stream {
    /// Begins where the group has got to, else at the first record.
    pub(crate) fn open(group: &str, topics: &[&str], settings: &Settings) -> Result<Self, Failure> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &settings.brokers)
            .set("group.id", format!("{}{group}", settings.topic_prefix))
            .set("auto.offset.reset", "earliest")
            // what `done` has stored is committed now and then, and nothing else
            .set("enable.auto.offset.store", "false")
            .set("auto.commit.interval.ms", "500")
            .set("fetch.wait.max.ms", settings.fetch_wait_ms.to_string())
            .set("fetch.error.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .create()?;
        let topics: Vec<String> = topics.iter().map(|topic| settings.topic(topic)).collect();
        let consumer = Arc::new(consumer);
        let (sender, records) = mpsc::channel(AHEAD_MAX);
        let reader = Arc::clone(&consumer);
        // librdkafka's calls block: a thread of their own, which ends with the receiver
        std::thread::spawn(move || {
            if let Err(why) = read(&reader, &topics, &sender) {
                sender.blocking_send(Err(why)).ok();
            }
        });
        Ok(Self { consumer, records })
    }

    /// The next record.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        let next = self.records.recv().await;
        next.unwrap_or_else(|| Err("the reader has ended".into()))
    }

    /// Tells Kafka at once that the record need not come again: for the one who does it too early.
    pub(crate) fn commit(&self, event: &Event) -> Result<(), Failure> {
        let mut next = TopicPartitionList::new();
        let offset = Offset::Offset(event.offset + 1);
        next.add_partition_offset(&event.topic, event.partition, offset)?;
        self.consumer.commit(&next, CommitMode::Sync)?;
        Ok(())
    }

    /// The record need not come again.
    pub(crate) fn done(&self, event: &Event) -> Result<(), Failure> {
        let Event {
            topic,
            partition,
            offset,
            ..
        } = event;
        // the one after it is where to go on, which librdkafka adds
        self.consumer.store_offset(topic, *partition, *offset)?;
        Ok(())
    }
}

fn read(
    consumer: &BaseConsumer,
    topics: &[String],
    sender: &mpsc::Sender<Result<Event, Failure>>,
) -> Result<(), Failure> {
    let mut all = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..partitions(consumer, topic)? {
            all.add_partition(topic, partition);
        }
    }
    let Some(begins) = committed(consumer, &all, sender)? else {
        return Ok(());
    };
    consumer.assign(&begins)?;
    while !sender.is_closed() {
        match consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => {
                sender.blocking_send(Event::of(&message)).ok();
            }
            // librdkafka tries again by itself
            Some(Err(error)) => tracing::warn!("Kafka: {error}"),
        }
    }
    Ok(())
}

/// Where the group has got to in each of these partitions; `None` if nobody wants to know any more.
///
/// Not left to librdkafka (`Offset::Stored`): a partition whose offset it could not ask for, as on a broker that has
/// just started and is no group's coordinator yet, it does not read until it is assigned anew
/// (`rd_kafka_assignment_apply_offsets`).
fn committed(
    consumer: &BaseConsumer,
    partitions: &TopicPartitionList,
    sender: &mpsc::Sender<Result<Event, Failure>>,
) -> Result<Option<TopicPartitionList>, Failure> {
    let mut said = false;
    while !sender.is_closed() {
        let asked = consumer.committed_offsets(partitions.clone(), COMMITTED_TIMEOUT);
        let told = asked.and_then(|told| {
            let mut begins = TopicPartitionList::new();
            for it in told.elements() {
                it.error()?;
                let offset = match it.offset() {
                    Offset::Invalid => Offset::Beginning,
                    known => known,
                };
                begins.add_partition_offset(it.topic(), it.partition(), offset)?;
            }
            Ok(begins)
        });
        match told {
            Ok(begins) => return Ok(Some(begins)),
            Err(error) if !std::mem::replace(&mut said, true) => {
                tracing::warn!("asking until it is told where to go on: {error}");
            }
            Err(_) => {}
        }
        std::thread::sleep(POLL);
    }
    Ok(None)
}

/// How many partitions a topic has; whoever makes it may be a little later.
fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<i32, Failure> {
    let mut left = TOPICS_TIMEOUT;
    loop {
        if let Ok(known) = consumer.fetch_metadata(Some(topic), POLL)
            && let Some(topic) = known.topics().first()
            && topic.error().is_none()
            && !topic.partitions().is_empty()
        {
            return Ok(i32::try_from(topic.partitions().len())?);
        }
        if left.is_zero() {
            return Err(format!("there is no topic {topic}").into());
        }
        std::thread::sleep(POLL);
        left = left.saturating_sub(POLL);
    }
}
