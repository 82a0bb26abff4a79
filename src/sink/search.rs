//! Where in a topic an event is: a bounded look by a consumer that belongs to no group and commits
//! nothing.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::generation::{Quiet, blocking};
use super::token::Token;
use super::{outcome, settings};
use crate::config;
use crate::partition;
use crate::record::REPLAYED_AT;

/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// What to look for, and how far.
#[derive(Debug, Clone)]
pub struct Search {
    /// Where the event goes by its routing.
    pub topic: String,
    /// The record's key, which picks the partition.
    pub key: Vec<u8>,
    /// The header that has the event's id.
    pub id_header: String,
    /// The event's id, as its header has it.
    pub event_id: String,
    /// Records of this time and later, in milliseconds since 1970, as their producers say.
    pub from_ms: i64,
    /// Most records to read.
    pub records_max: u64,
    /// The longest it may take.
    pub timeout: Duration,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The first record of the event, in the part that was read.
    At {
        /// The partition.
        partition: i32,
        /// Its place there.
        offset: i64,
        /// Whether it is a copy that `replay` made.
        replayed: bool,
    },
    /// Not there.
    Nowhere {
        /// The partition that was read.
        partition: i32,
        /// How many records of it.
        records: u64,
        /// Whether that was all there is from the time on.
        to_the_end: bool,
    },
}

/// Looks for an event.
///
/// # Errors
/// Kafka could not be asked, or has no such topic: one sentence.
pub async fn search(kafka: &config::Kafka, search: Search) -> Result<Found, String> {
    let mut settings = settings::connection(kafka);
    // a group is needed to read at all; nobody joins it
    settings
        .set("group.id", "outbox-relay-inspect")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error");
    let token = Token::of(kafka);
    let look = move || look(&settings, token, &search);
    blocking(look)
        .await
        .unwrap_or_else(|| Err("the search broke off".to_owned()))
}

impl ConsumerContext for Quiet {}

fn look(settings: &rdkafka::ClientConfig, token: Token, search: &Search) -> Result<Found, String> {
    let words = |error: rdkafka::error::KafkaError| outcome::in_words(&error);
    let began = Instant::now();
    let Search {
        topic,
        key,
        id_header,
        event_id,
        from_ms,
        records_max,
        timeout,
    } = search;
    let consumer: BaseConsumer<Quiet> = settings
        .create_with_context(Quiet { token })
        .map_err(words)?;
    (consumer.context().token).ask_first(|limit| drop(consumer.poll(limit)));
    let known = consumer
        .fetch_metadata(Some(topic), ASK_TIMEOUT)
        .map_err(words)?;
    let found = known.topics().iter().find(|found| found.name() == topic);
    let partitions = found.map_or(0, |found| found.partitions().len());
    let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
    if partitions == 0 {
        return Err(format!("there is no topic {topic}"));
    }
    let partition = partition::of_key(key, partitions);
    let (low, high) = consumer
        .fetch_watermarks(topic, partition, ASK_TIMEOUT)
        .map_err(words)?;
    let mut at = TopicPartitionList::new();
    at.add_partition_offset(topic, partition, Offset::Offset(*from_ms))
        .map_err(words)?;
    let at = consumer.offsets_for_times(at, ASK_TIMEOUT).map_err(words)?;
    let at = at.find_partition(topic, partition);
    let start = match at.map(|at| at.offset()) {
        Some(Offset::Offset(offset)) => offset.max(low),
        // nothing so late: clocks differ, so the last records may be it all the same
        _ => low.max(high - i64::try_from(*records_max).unwrap_or(i64::MAX)),
    };
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(topic, partition, Offset::Offset(start))
        .map_err(words)?;
    let (mut next, mut records) = (start, 0);
    if next < high {
        consumer.assign(&assignment).map_err(words)?;
    }
    while next < high && records < *records_max && began.elapsed() < *timeout {
        let Some(polled) = consumer.poll(POLL_TIMEOUT) else {
            continue;
        };
        let message = polled.map_err(words)?;
        next = message.offset() + 1;
        records += 1;
        let header = |name: &str| {
            let headers = message.headers()?;
            headers.iter().find(|header| header.key == name)
        };
        let id = header(id_header).and_then(|header| header.value);
        if id == Some(event_id.as_bytes()) {
            return Ok(Found::At {
                partition,
                offset: message.offset(),
                replayed: header(REPLAYED_AT).is_some(),
            });
        }
    }
    Ok(Found::Nowhere {
        partition,
        records,
        to_the_end: next >= high,
    })
}
