//! Reads records without being seen: partitions are assigned, no offset is committed, no group is
//! joined. For `tail`; it blocks, so it is for a thread of its own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::OAuthToken;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::time::Instant;

use super::outcome;
use super::settings;
use super::token::Token;
use crate::config;

/// librdkafka wants a name, though nothing is ever done with it.
const NO_GROUP: &str = "outbox-relay-tail";
/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a cluster that does not answer is asked again.
const REACH_MAX: Duration = Duration::from_secs(5);
/// How long the past may take to go on after a complaint of librdkafka's.
const STALLED_MAX: Duration = Duration::from_secs(30);
/// Most partitions that are read at once: each costs memory.
const PARTITIONS_MAX: usize = 1_000;

/// Where to begin in each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// So many records before its end.
    Last(u32),
    /// At the first record that is not older, in milliseconds since 1970.
    Time(i64),
}

/// A record as it is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// When it was published, in milliseconds since 1970.
    pub time_ms: Option<i64>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Bytes of its value; `None` for a tombstone.
    pub value_bytes: Option<usize>,
    /// Its value, if it was asked for.
    pub value: Option<Vec<u8>>,
}

impl Seen {
    /// The value of a header, as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(known, _)| known == name);
        str::from_utf8(header?.1.as_deref()?).ok()
    }
}

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka cannot be reached.
    #[error("Kafka cannot be read at {brokers}: {why}")]
    Unreachable {
        /// Where.
        brokers: String,
        /// librdkafka's words.
        why: String,
    },
    /// A topic that was asked for is not there.
    #[error("there is no topic {0}, or the relay may not read it")]
    NoTopic(String),
    /// More than can be read at once.
    #[error(
        "these topics have {0} partitions, more than {PARTITIONS_MAX}: name fewer with --topic"
    )]
    TooMany(usize),
}

/// See the module's description.
pub struct Reader {
    consumer: BaseConsumer<Heard>,
    brokers: String,
    /// The partitions whose past is not read yet, each with where it ended when reading began.
    past: HashMap<(String, i32), i64>,
    /// How many topics have yet to come to the end of their partition of this number.
    unended: HashMap<i32, usize>,
    wants_values: bool,
    troubled_since: Option<Instant>,
}

impl Reader {
    /// Begins to read the topics that `wanted` picks from all there are, or exactly those that it names.
    ///
    /// # Errors
    /// Kafka does not answer, or a topic is not there.
    pub fn open(
        kafka: &config::Kafka,
        named: &[String],
        wanted: impl Fn(&str) -> bool,
        start: Start,
        wants_values: bool,
    ) -> Result<Self, Error> {
        let unreachable = |error: KafkaError| Error::Unreachable {
            brokers: kafka.brokers.clone(),
            why: outcome::in_words(&error),
        };
        let mut settings = settings::connection(kafka);
        settings
            .set("group.id", NO_GROUP)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "100")
            // what lies in memory, unread
            .set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer<Heard> = settings
            .create_with_context(Heard {
                token: Token::of(kafka),
                ..Heard::default()
            })
            .map_err(unreachable)?;
        (consumer.context().token).ask_first(|limit| drop(consumer.poll(limit)));
        let mut partitions = Vec::new();
        if named.is_empty() {
            for (topic, count) in ask(&consumer, None).map_err(unreachable)? {
                let count = count.unwrap_or(0);
                if wanted(&topic) {
                    partitions.extend((0..count).map(|partition| (topic.clone(), partition)));
                }
            }
        }
        for topic in named {
            let known = ask(&consumer, Some(topic)).map_err(unreachable)?;
            let found = known.into_iter().find(|(name, _)| name == topic);
            match found.and_then(|(_, count)| count) {
                Some(count) if count > 0 => {
                    partitions.extend((0..count).map(|partition| (topic.clone(), partition)));
                }
                _ => return Err(Error::NoTopic(topic.clone())),
            }
        }
        if partitions.len() > PARTITIONS_MAX {
            return Err(Error::TooMany(partitions.len()));
        }
        let strict = !named.is_empty();
        let past = begin(&consumer, &partitions, start, strict).map_err(unreachable)?;
        let mut unended = HashMap::new();
        for (_, partition) in &partitions {
            *unended.entry(*partition).or_insert(0) += 1;
        }
        Ok(Self {
            consumer,
            brokers: kafka.brokers.clone(),
            past,
            unended,
            wants_values,
            troubled_since: None,
        })
    }

    /// How many partitions are read.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.consumer.assignment().map_or(0, |all| all.count())
    }

    /// Whether everything was read that was there when reading began.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        self.past.is_empty()
    }

    /// The next record, if one comes within `wait`.
    ///
    /// # Errors
    /// The past cannot be read to its end.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Seen>, Error> {
        let seen = match self.consumer.poll(wait) {
            None => None,
            Some(Ok(message)) => Some(seen(&message, self.wants_values)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                self.ended(partition);
                None
            }
            Some(Err(_)) => {
                self.troubled_since.get_or_insert_with(Instant::now);
                None
            }
        };
        if let Some(seen) = &seen {
            self.troubled_since = None;
            let place = (seen.topic.clone(), seen.partition);
            if self
                .past
                .get(&place)
                .is_some_and(|end| seen.offset + 1 >= *end)
            {
                self.past.remove(&place);
            }
        }
        let stalled = (self.troubled_since).is_some_and(|since| since.elapsed() > STALLED_MAX);
        if stalled && !self.caught_up() {
            return Err(Error::Unreachable {
                brokers: self.brokers.clone(),
                why: self.consumer.context().words(),
            });
        }
        Ok(seen)
    }

    /// The end of this partition of some topic was reached; which topic's is not said. When all of them
    /// have come, whatever lies before their ends without being a record, such as the mark of a
    /// transaction, is passed too.
    fn ended(&mut self, partition: i32) {
        if let Some(left) = self.unended.get_mut(&partition) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.past.retain(|(_, known), _| *known != partition);
            }
        }
    }
}

/// Topics and how many partitions each has, as soon as the cluster answers.
fn ask(
    consumer: &BaseConsumer<Heard>,
    topic: Option<&str>,
) -> Result<Vec<(String, Option<i32>)>, KafkaError> {
    let began = Instant::now();
    loop {
        match consumer.fetch_metadata(topic, ASK_TIMEOUT) {
            Ok(metadata) => {
                let count = |topic: &rdkafka::metadata::MetadataTopic| {
                    let known = topic.error().is_none();
                    known.then(|| i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX))
                };
                let topics = metadata.topics().iter();
                return Ok(topics.map(|it| (it.name().to_owned(), count(it))).collect());
            }
            Err(error) if began.elapsed() > REACH_MAX => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Assigns the partitions from where reading begins. Those that have a past, and its end. Unless `strict`,
/// one that cannot be asked, of a topic that goes away or has no leader, is left out.
fn begin(
    consumer: &BaseConsumer<Heard>,
    partitions: &[(String, i32)],
    start: Start,
    strict: bool,
) -> Result<HashMap<(String, i32), i64>, KafkaError> {
    let mut since = HashMap::new();
    if let Start::Time(time_ms) = start
        && !partitions.is_empty()
    {
        let mut times = TopicPartitionList::new();
        for (topic, partition) in partitions {
            times.add_partition_offset(topic, *partition, Offset::Offset(time_ms))?;
        }
        for element in consumer.offsets_for_times(times, ASK_TIMEOUT)?.elements() {
            if let Offset::Offset(at) = element.offset() {
                since.insert((element.topic().to_owned(), element.partition()), at);
            }
        }
    }
    let (mut assignment, mut past) = (TopicPartitionList::new(), HashMap::new());
    for place in partitions {
        let (topic, partition) = place;
        let (first, end) = match consumer.fetch_watermarks(topic, *partition, ASK_TIMEOUT) {
            Ok(marks) => marks,
            Err(error) if strict => return Err(error),
            Err(error) => {
                let why = outcome::in_words(&error);
                tracing::warn!(topic, partition, why, "this partition cannot be read");
                continue;
            }
        };
        let from = match start {
            Start::Last(records) => first.max(end - i64::from(records)),
            Start::Time(_) => since.get(place).copied().unwrap_or(end),
        };
        assignment.add_partition_offset(topic, *partition, Offset::Offset(from))?;
        if from < end {
            past.insert(place.clone(), end);
        }
    }
    consumer.assign(&assignment)?;
    Ok(past)
}

fn seen(message: &BorrowedMessage<'_>, wants_values: bool) -> Seen {
    let headers = message.headers().into_iter().flat_map(|all| all.iter());
    let headers = headers.map(|it| (it.key.to_owned(), it.value.map(<[u8]>::to_vec)));
    Seen {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        time_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        headers: headers.collect(),
        value_bytes: message.payload().map(<[u8]>::len),
        value: match wants_values {
            true => message.payload().map(<[u8]>::to_vec),
            false => None,
        },
    }
}

/// What librdkafka says on its own: the last of it.
#[derive(Default)]
struct Heard {
    words: Mutex<String>,
    token: Token,
}

impl Heard {
    fn words(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.clone()
    }
}

impl ClientContext for Heard {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.token.read()
    }

    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(Code::AllBrokersDown) {
            let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
            reason.clone_into(&mut words);
        }
    }
}

impl ConsumerContext for Heard {}
