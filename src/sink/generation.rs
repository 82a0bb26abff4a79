//! One producer, from its making to its end, and the delivery reports it owes.
//!
//! A generation takes one group of records at a time: [`Generation::open`] makes a slot for each,
//! the index of the slot travels with the record, and the next group is opened only when every slot
//! is filled. A generation that ever reported a failure, or was made to withdraw records, takes no
//! further group; it is purged and dropped. Its reports live in its own context, so one that comes
//! late, after the generation was given up on, falls into a room nobody looks at any more.
//!
//! librdkafka blocks in making, asking, purging and dropping (a look-up of a host name alone may
//! take seconds): all of that runs on tokio's blocking threads. A late drop is not waited for.

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::metadata::MetadataPartition;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, NoCustomPartitioner, Producer, ProducerContext,
    PurgeConfig,
};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::opened::Opened;
use super::outcome::{self, Fault, TopicFault};
use super::polled::PolledProducer;
use super::settings::Sizes;
use super::token::Token;
use super::topics::Read;
use crate::record::Record;

/// How long one question to the cluster may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the answer to a producer's first question may take: `socket.timeout.ms`.
const UNANSWERED_MAX: Duration = Duration::from_secs(10);

/// What became of one record of the group, as librdkafka tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// No report yet, or none will come: the record was not enqueued.
    Silent,
    /// Reported as delivered at this partition and offset.
    Acked(i32, i64),
    /// Reported as failed.
    Failed(Code),
}

impl Report {
    /// Whether the record is not in the log as far as this tells. A delivery without a real offset
    /// is such a failure: the producer's sequence skipped it, and nothing may follow it.
    fn is_failure(self) -> bool {
        match self {
            Self::Silent => false,
            Self::Acked(_, offset) => !outcome::is_real(offset),
            Self::Failed(_) => true,
        }
    }
}

/// Kafka's answer to a question about a topic.
pub(super) type Answer = Result<Read, TopicFault>;

pub(super) struct Generation {
    producer: PolledProducer<Reports>,
    made_at: Instant,
    sizes: Sizes,
    /// The partitions that know this producer.
    pub(super) opened: Opened,
    /// Where it was found to be connected to the right cluster: how often it had been cut off by then.
    identified: Option<u32>,
}

impl Generation {
    /// Makes a producer. It connects by itself, some time later. `news` is told when all reports of a group
    /// are in, and of its first failure; it may be told for others as well, and has one waiter.
    pub(super) async fn make(
        settings: ClientConfig,
        sizes: Sizes,
        token: Token,
        news: Arc<Notify>,
    ) -> Result<Self, KafkaError> {
        let reports = Reports {
            token,
            news,
            ..Reports::default()
        };
        let made = blocking(move || PolledProducer::make(&settings, reports)).await;
        let producer = made.unwrap_or(Err(KafkaError::Canceled))?;
        Ok(Self {
            producer,
            made_at: Instant::now(),
            sizes,
            opened: Opened::default(),
            identified: None,
        })
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Makes room for the reports of `records` records, none enqueued yet.
    pub(super) fn open(&self, records: usize) {
        let mut group = self.reports().group();
        debug_assert_eq!(group.outstanding, 0, "one group at a time");
        group.slots.clear();
        group.slots.resize(records, Report::Silent);
        group.outstanding = records;
        drop(group);
        self.producer.await_reports(true);
    }

    /// Hands `record` to librdkafka, which copies it. Its report will fill `slot`.
    pub(super) fn enqueue<'a>(
        &self,
        slot: usize,
        record: &'a Record<'_>,
    ) -> Result<(), Refused<'a>> {
        let mut ours = BaseRecord::with_opaque_to(&record.topic, slot).key(&*record.key);
        if let Some(value) = &record.value {
            ours = ours.payload(&**value);
        }
        let headers = OwnedHeaders::new_with_capacity(record.headers.count());
        let headers = record.headers.fold(headers, |headers, key, value| {
            headers.insert(Header { key, value })
        });
        self.send(ours.headers(headers))
    }

    /// As [`Self::enqueue`], with a record that found the queue full before.
    pub(super) fn send<'a>(&self, record: Wire<'a>) -> Result<(), Refused<'a>> {
        let sent = self.producer.inner().send(record);
        sent.map_err(|(error, record)| Refused {
            code: error.rdkafka_error_code().unwrap_or(Code::InvalidArgument),
            record: Box::new(record),
        })
    }

    /// Takes back the room of `slots`: their records were not enqueued.
    pub(super) fn withdraw(&self, slots: usize) {
        let mut group = self.reports().group();
        group.outstanding -= slots;
        let settled = group.outstanding == 0;
        drop(group);
        if settled {
            self.reports().news.notify_one();
        }
    }

    /// Whether every report is in.
    pub(super) fn is_settled(&self) -> bool {
        self.outstanding() == 0
    }

    /// How many reports are not in.
    pub(super) fn outstanding(&self) -> usize {
        self.reports().group().outstanding
    }

    /// What is told of news.
    pub(super) fn news(&self) -> &Notify {
        &self.reports().news
    }

    /// Takes everything back that is queued or in flight, on a thread of its own whether that is waited for or
    /// not. The reports of it come afterwards; none do if it panics.
    pub(super) fn purge(&self) -> JoinHandle<()> {
        let producer = Arc::clone(self.producer.inner());
        let purge = move || producer.purge(PurgeConfig::default().queue().inflight());
        tokio::task::spawn_blocking(purge)
    }

    /// Takes back what is queued although more of the group will follow: [`Mistake::PurgeOpen`].
    ///
    /// [`Mistake::PurgeOpen`]: crate::ops::Mistake::PurgeOpen
    pub(super) async fn purge_open(&self) {
        let producer = Arc::clone(self.producer.inner());
        blocking(move || producer.purge(PurgeConfig::default().queue())).await;
    }

    /// The reports of the group. Late ones will fall on deaf ears.
    pub(super) fn take(&self) -> Vec<Report> {
        let slots = std::mem::take(&mut self.reports().group().slots);
        self.producer.await_reports(false);
        slots
    }

    /// Whether this generation lost its last connection at any time.
    pub(super) fn was_cut_off(&self) -> bool {
        self.cut_offs() > 0
    }

    /// Whether any record of this generation was reported as failed, or falsely as delivered.
    pub(super) fn failed(&self) -> bool {
        self.reports().group().failed
    }

    /// Whether librdkafka holds this producer to be done for.
    pub(super) fn fatal(&self) -> bool {
        self.producer.inner().client().fatal_error().is_some()
    }

    /// The last thing librdkafka complained about.
    pub(super) fn complaint(&self) -> Option<String> {
        let complaint = self.reports().complaint.lock();
        complaint.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the cluster answers this producer. It is asked about `topic`, whatever it says of it.
    ///
    /// Without one, librdkafka's own first question is waited for: who had an answer remembers it, and who
    /// had an empty one has none. A broker that was fenced (one that was frozen, say) knows of no brokers for
    /// a moment, not even of itself. librdkafka puts that question once for each connection, and then
    /// every five minutes (`rd_kafka_handle_Metadata` of 2.12): see [`Self::is_unanswered`].
    pub(super) async fn cluster_answers(&self, topic: Option<String>) -> bool {
        let producer = Arc::clone(self.producer.inner());
        let ask = move || match topic {
            Some(topic) => {
                let answer = producer.client().fetch_metadata(Some(&topic), ASK_TIMEOUT);
                answer.is_ok()
            }
            None => producer.client().fetch_cluster_id(ASK_TIMEOUT).is_some(),
        };
        self.producer.await_reports(true);
        let answers = blocking(ask).await.unwrap_or(false);
        self.rest();
        answers
    }

    /// Whether this producer, which has no answer yet, will hardly get one: whatever was on its way is
    /// answered or given up.
    pub(super) fn is_unanswered(&self) -> bool {
        self.made_at.elapsed() >= UNANSWERED_MAX
    }

    fn cut_offs(&self) -> u32 {
        self.reports().cut_offs.load(Ordering::Relaxed)
    }

    /// It is connected to the right cluster.
    pub(super) fn identify(&mut self) {
        self.identified = Some(self.cut_offs());
    }

    /// Whether it was found to be connected to the right cluster.
    pub(super) fn is_identified(&self) -> bool {
        self.identified.is_some()
    }

    /// Whether it lost its last connection since: another cluster may be at the same addresses now.
    pub(super) fn may_have_moved(&self) -> bool {
        self.identified.is_some_and(|then| then != self.cut_offs())
    }

    /// The cluster that this producer is connected to; asked for where it is not known yet. Each call
    /// costs some bytes for good (rdkafka 0.39 does not free what librdkafka hands out), so it is for
    /// once in a producer's life.
    pub(super) async fn cluster_id(&self) -> Option<String> {
        let producer = Arc::clone(self.producer.inner());
        let ask = move || producer.client().fetch_cluster_id(ASK_TIMEOUT);
        self.producer.await_reports(true);
        let cluster_id = blocking(ask).await.flatten();
        self.rest();
        cluster_id
    }

    /// What Kafka says of `topics`. The topics asked after the first cluster fault are left out.
    pub(super) async fn ask(
        &self,
        topics: Vec<String>,
    ) -> Result<Vec<(String, Answer)>, KafkaError> {
        let producer = Arc::clone(self.producer.inner());
        let ask = move || {
            let mut answers = Vec::with_capacity(topics.len());
            for topic in topics {
                let answer = ask_topic(&producer, &topic)?;
                answers.push((topic, answer));
            }
            Ok(answers)
        };
        self.producer.await_reports(true);
        let answers = blocking(ask).await.unwrap_or(Err(KafkaError::Canceled));
        self.rest();
        answers
    }

    /// Lets the thread that hands out reports and complaints sleep, unless reports are awaited.
    fn rest(&self) {
        let awaited = self.reports().group().outstanding > 0;
        self.producer.await_reports(awaited);
    }

    /// Drops the producer on a blocking thread: it may take a while. Waiting is optional.
    pub(super) fn retire(self) -> Option<JoinHandle<()>> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        Some(runtime.spawn_blocking(move || drop(self)))
    }

    fn reports(&self) -> &Reports {
        self.producer.inner().client().context()
    }
}

type Wire<'a> = BaseRecord<'a, [u8], [u8], usize>;

/// librdkafka did not take a record, and gives it back.
pub(super) struct Refused<'a> {
    pub(super) code: Code,
    pub(super) record: Box<Wire<'a>>,
}

/// Waits until `done`, which is looked at again at each of `news`. For one waiter at a time: what is told in
/// between is kept for it, and it may be told of what is past.
pub(super) async fn until(news: &Notify, done: impl Fn() -> bool) {
    while !done() {
        news.notified().await;
    }
}

/// Runs `work` on a thread that may block. `None` if it panicked or the runtime is going down.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

fn ask_topic(producer: &BaseProducer<Reports>, topic: &str) -> Result<Answer, KafkaError> {
    let metadata = producer.client().fetch_metadata(Some(topic), ASK_TIMEOUT)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(Err(TopicFault::Unknown));
    };
    if let Some(error) = found.error() {
        return match Fault::of(error.into()) {
            Fault::Topic(fault) => Ok(Err(fault)),
            _ => Err(KafkaError::MetadataFetch(error.into())),
        };
    }
    let partitions = found.partitions();
    let leaderless = partitions.iter().filter(|it| it.leader() < 0);
    let leaderless: Vec<i32> = leaderless.map(MetadataPartition::id).collect();
    if leaderless.len() == partitions.len() {
        return Ok(Err(TopicFault::Leaderless));
    }
    Ok(Ok(Read {
        partitions: partitions.len(),
        leaderless,
    }))
}

/// What Kafka tells of size limits.
#[derive(Debug, Default)]
pub(super) struct Limits {
    known: Vec<(String, Limit)>,
    /// Whether the relay may not read those of the other topics that were asked for.
    others_denied: bool,
}

/// What it tells of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Bytes(usize),
    /// The relay may not read it.
    Denied,
    /// No answer, or none that says it.
    Untold,
}

impl Limits {
    /// The limit of `topic`, which was asked for.
    pub(super) fn of(&self, topic: &str) -> Limit {
        match self.known.iter().find(|(name, _)| name == topic) {
            Some((_, limit)) => *limit,
            None if self.others_denied => Limit::Denied,
            None => Limit::Untold,
        }
    }
}

/// The size limits of `topics`, as far as Kafka tells: where the relay may not read them, or the
/// broker does not answer, there are none. By a client of its own, made from `settings`.
pub(super) async fn ask_limits(settings: ClientConfig, topics: Vec<String>) -> Limits {
    blocking(move || read_limits(&settings, &topics))
        .await
        .unwrap_or_default()
}

fn read_limits(settings: &ClientConfig, topics: &[String]) -> Limits {
    let unreadable = |error: KafkaError| {
        debug!(
            why = outcome::in_words(&error),
            "topic limits cannot be read"
        );
    };
    let client: AdminClient<Quiet> = match settings.create_with_context(Quiet::default()) {
        Ok(client) => client,
        Err(error) => {
            unreadable(error);
            return Limits::default();
        }
    };
    let resources: Vec<_> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(topic))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
    let described = client.describe_configs(&resources, &options);
    let runtime = tokio::runtime::Handle::current();
    let described = match runtime.block_on(described) {
        Ok(described) => described,
        Err(error) => {
            unreadable(error);
            return Limits::default();
        }
    };
    // dropping it joins a thread that looks up every 100 ms: nobody needs to wait for that
    drop(runtime.spawn_blocking(move || drop(client)));
    let limit = |resource: rdkafka::admin::ConfigResource| {
        let rdkafka::admin::OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
            return None;
        };
        let entry = resource.get("max.message.bytes");
        let value = entry.and_then(|entry| entry.value.as_deref());
        let limit = match value.and_then(|value| value.parse().ok()) {
            Some(bytes) => Limit::Bytes(bytes),
            // who lacks the right gets an answer without entries
            None if resource.entries.is_empty() => Limit::Denied,
            None => Limit::Untold,
        };
        Some((name.clone(), limit))
    };
    // a refusal does not say of which topic it is
    let denied = |result: &Result<_, Code>| {
        let error = result.as_ref().err();
        error.is_some_and(|code| Fault::of(*code) == Fault::Topic(TopicFault::Denied))
    };
    Limits {
        others_denied: described.iter().any(denied),
        known: described.into_iter().flatten().filter_map(limit).collect(),
    }
}

/// The context of one producer: where its reports arrive.
#[derive(Default)]
pub(super) struct Reports {
    group: Mutex<Group>,
    news: Arc<Notify>,
    complaint: Mutex<Option<String>>,
    /// How often the last connection was lost.
    cut_offs: AtomicU32,
    /// To log in with, if by one.
    token: Token,
}

#[derive(Default)]
struct Group {
    slots: Vec<Report>,
    /// Slots whose record may still be reported on.
    outstanding: usize,
    failed: bool,
}

impl Reports {
    fn group(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `slot`, unless the group it belonged to is gone.
    fn fill(&self, slot: usize, report: Report) {
        let mut group = self.group();
        let first_failure = report.is_failure() && !group.failed;
        group.failed |= first_failure;
        let Some(place) = group.slots.get_mut(slot) else {
            return;
        };
        *place = report;
        group.outstanding = group.outstanding.saturating_sub(1);
        let wake = first_failure || group.outstanding == 0;
        drop(group);
        if wake {
            self.news.notify_one();
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: usize) {
        let report = match result {
            Ok(message) => Report::Acked(message.partition(), message.offset()),
            Err((error, _)) => Report::Failed(error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        };
        self.fill(slot, report);
    }
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.token.read()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(target: "librdkafka", "{reason}");
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) {
            self.cut_offs.fetch_add(1, Ordering::Relaxed);
        } else {
            // it says more: what brought each of them down
            let mut complaint = self
                .complaint
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *complaint = Some(reason.to_owned());
        }
    }
}

/// The context of a client that only asks.
#[derive(Default)]
pub(super) struct Quiet {
    pub(super) token: Token,
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.token.read()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, _: KafkaError, reason: &str) {
        debug!(target: "librdkafka", "{reason}");
    }
}

/// librdkafka's lines tell of connections and requests, never of what is in a record. An outage
/// makes many of them; the relay tells of it in its own words, once. A fatal error is what the
/// relay asked for with the gapless guarantee: it ends the generation and nothing else.
fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Emerg};
    if matches!(level, Emerg | Alert | Critical) && facility != "FATAL" {
        warn!(target: "librdkafka", facility, "{message}");
    } else {
        debug!(target: "librdkafka", facility, "{message}");
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::sink::{settings, testing};

    #[tokio::test]
    async fn a_false_acknowledgement_is_a_failure_of_its_generation() {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic("t", 1, 1).unwrap();
        // librdkafka takes it for a success, and has no offset
        mock.request_errors(
            RDKafkaApiKey::Produce,
            &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER],
        );
        let sizes = Sizes::of([].into_iter());
        let kafka = testing::kafka(&mock.bootstrap_servers());
        let settings = settings::producer(&kafka, &testing::relay(), sizes);
        let made = Generation::make(settings, sizes, Token::default(), Arc::default());
        let generation = made.await.unwrap();
        let record = Record {
            topic: "t".into(),
            key: b"k".to_vec().into(),
            value: None,
            headers: Vec::new().into(),
        };
        generation.open(1);
        assert!(generation.enqueue(0, &record).is_ok());
        let all = until(generation.news(), || generation.is_settled());
        let waited = tokio::time::timeout(Duration::from_secs(10), all).await;
        assert!(waited.is_ok(), "reported");
        let reports = generation.take();
        assert!(
            matches!(reports[..], [Report::Acked(0, ..0)]),
            "{reports:?}"
        );
        assert!(generation.failed());
    }
}
