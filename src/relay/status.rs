//! What is known of one outbox in this process, and what of it the operator is told: a line for each
//! change of state, and reminders that grow seldom.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::{Freshness, Outbox};
use crate::contract;
use crate::event::Event;
use crate::ops::controls::Controls;
use crate::ops::facts::State;
use crate::ops::{Loops, Reminders, Tally, unix_us};
use crate::outcome::{Outcome, Reason};
use crate::record::Record;
use crate::route::Router;
use crate::settle::{Policy, Verdict};
use crate::source::{Pause, Polling, Sample};

/// How long a line about a parked row, or a text of a trouble, counts as said.
const REMINDER: Duration = Duration::from_secs(60);
/// How many parked rows of a minute get a line of their own.
const PARKED_LINES_MAX: u64 = 20;
/// Texts of one trouble that are said as they change; more of them say nothing new.
const TEXTS_MAX: usize = 8;
/// Workers that meet one trouble at the same moment say it once.
const SAME_MOMENT: Duration = Duration::from_secs(5);
/// Event types whose violations are told of.
const VIOLATIONS_MAX: usize = 50;

/// What is known of one outbox in this process.
#[derive(Debug)]
pub struct Status {
    outbox: String,
    pub(super) router: Option<Router>,
    pub(super) on_published: &'static str,
    pub(super) tally: Arc<Tally>,
    pub(super) loops: Loops,
    freshness: Mutex<Freshness>,
    pub(super) base: Mutex<Base>,
    pub(super) trouble: Mutex<Trouble>,
    pub(super) sampled: Mutex<Sampled>,
    pub(super) polling: Mutex<Option<Arc<Polling>>>,
    pub(super) workers: AtomicU64,
    /// What somebody outside wants of it.
    pub(super) controls: Arc<Controls>,
    /// The database's clock less this machine's.
    clock_offset_us: AtomicI64,
    /// What somebody paused, and when that was read.
    pub(super) pauses: Mutex<(Instant, Vec<Pause>)>,
    parked_lines: Mutex<(Option<Instant>, u64)>,
    violations: Mutex<Violations>,
}

/// What was said of rows that violate their contracts, by event type, and how many came since.
type Violations = HashMap<String, (Reminders, u64)>;

/// What the relay does for the outbox, trouble aside.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) text: Option<String>,
    pub(super) serving_since: Option<SystemTime>,
}

#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) since: Option<Instant>,
    pub(super) text: String,
    /// What the look at the table has said since.
    pub(super) looked: Option<String>,
    said: Vec<String>,
    said_at: Option<Instant>,
    reminders: Option<Reminders>,
}

/// What the samples of the table tell.
#[derive(Debug, Default)]
pub(super) struct Sampled {
    pub(super) last: Option<Sample>,
    /// Since when the table cannot be sampled, and why.
    pub(super) away: Option<(Instant, String)>,
    /// Numbers drawn and rows waiting, over the window.
    pub(super) history: std::collections::VecDeque<(Instant, Option<i64>, u64)>,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Rows marked, deleted or archived after Kafka had them.
    pub published: u64,
    /// Rows that were refused and parked.
    pub parked: u64,
    /// Rows that were moved behind a parked one.
    pub behind: u64,
}

/// A batch that was settled: one entry per event in each.
#[derive(Debug)]
pub(super) struct Settled<'a> {
    pub(super) events: &'a [Event],
    pub(super) records: &'a [Option<Record<'a>>],
    pub(super) verdicts: &'a [Verdict],
    /// Rows that violate their contract and are published all the same, by their `seq`, with the reason.
    pub(super) warned: &'a [(i64, Reason)],
}

impl Status {
    /// For an outbox called `outbox` of which nothing else is known.
    #[must_use]
    pub fn new(outbox: String) -> Self {
        Self {
            outbox,
            router: None,
            on_published: "",
            tally: Arc::default(),
            loops: Loops::default(),
            freshness: Mutex::default(),
            base: Mutex::new(Base {
                state: State::Starting,
                since: Instant::now(),
                text: None,
                serving_since: None,
            }),
            trouble: Mutex::default(),
            sampled: Mutex::default(),
            polling: Mutex::default(),
            workers: AtomicU64::new(0),
            controls: Arc::new(Controls::new(None)),
            clock_offset_us: AtomicI64::new(0),
            pauses: Mutex::new((Instant::now(), Vec::new())),
            parked_lines: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    /// For `outbox`, as it is configured.
    pub(super) fn of(outbox: &Outbox) -> Self {
        Self {
            router: Some(Router::of(outbox)),
            on_published: match outbox.on_published {
                crate::config::OnPublished::Mark => "mark",
                crate::config::OnPublished::Delete => "delete",
                crate::config::OnPublished::Archive => "archive",
            },
            freshness: Mutex::new(outbox.freshness.clone()),
            controls: {
                let controls = Controls::new(outbox.rows_per_second_max);
                controls.agree(outbox.contracts.clone());
                Arc::new(controls)
            },
            ..Self::new(outbox.table.to_string())
        }
    }

    /// The table.
    #[must_use]
    pub fn outbox(&self) -> &str {
        &self.outbox
    }

    /// The freshness budgets in force.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        lock(&self.freshness).clone()
    }

    /// Puts other freshness budgets in force.
    pub fn set_freshness(&self, freshness: Freshness) {
        *lock(&self.freshness) = freshness;
    }

    /// Somebody paused this, and nothing else.
    pub(super) fn set_pauses(&self, pauses: Vec<Pause>) {
        *lock(&self.pauses) = (Instant::now(), pauses);
    }

    /// What the relay does for the outbox from now on.
    pub(super) fn enter(&self, state: State, text: Option<String>) {
        // whoever looks says what is wrong and what to do; the statement that failed before did not
        let mut trouble = lock(&self.trouble);
        if state == State::Waiting && trouble.since.is_some() {
            trouble.looked.clone_from(&text);
        }
        drop(trouble);
        let mut base = lock(&self.base);
        if base.state != state {
            base.since = Instant::now();
        }
        if state == State::Serving && base.serving_since.is_none() {
            base.serving_since = Some(SystemTime::now());
        }
        (base.state, base.text) = (state, text);
    }

    /// The outbox is served by `workers` workers that share `polling`.
    pub(super) fn serving(&self, polling: &Arc<Polling>, workers: usize) {
        *lock(&self.polling) = Some(Arc::clone(polling));
        let workers = u64::try_from(workers).unwrap_or(u64::MAX);
        self.workers.store(workers, Ordering::Relaxed);
        self.enter(State::Serving, None);
    }

    /// Records were given to Kafka, and this became of them after `took`; `decided` are those that
    /// were not given.
    pub(super) fn attempted(
        &self,
        decided: &[Option<Outcome>],
        outcomes: &[Outcome],
        took: Duration,
    ) {
        self.tally.count(|counted| {
            let mut attempts = 0;
            for (decided, outcome) in decided.iter().zip(outcomes) {
                attempts += u64::from(decided.is_none());
                let class = match outcome {
                    Outcome::Rejected(reason) => reason.class,
                    Outcome::Suspect => "suspect",
                    Outcome::Unfinished => "unfinished",
                    Outcome::Paused if decided.is_none() => "topic",
                    Outcome::Delivered { .. } | Outcome::Paused | Outcome::Held => continue,
                };
                *counted.errors.entry(class).or_default() += 1;
            }
            if attempts > 0 {
                counted.attempts += attempts;
                counted.publish.observe(took.as_secs_f64());
            }
        });
    }

    /// A batch was settled: says what was parked, and counts the rest.
    pub(super) fn settled(&self, settled: &Settled<'_>) {
        let now_us = unix_us() + self.clock_offset_us.load(Ordering::Relaxed);
        let freshness = self.freshness();
        let mut parked = Vec::new();
        let rows = settled.events.iter().zip(settled.verdicts);
        self.tally.count(|counted| {
            // the rows of a topic come one after another more often than not
            let (mut runs, mut of, mut last): (Vec<Run<'_>>, HashMap<&str, usize>, _) =
                (Vec::new(), HashMap::new(), 0);
            for ((event, verdict), record) in rows.zip(settled.records) {
                match (verdict, record) {
                    (Verdict::Done, Some(record)) => {
                        let topic = &*record.topic;
                        if runs.get(last).is_none_or(|run| run.topic != topic) {
                            last = *of.entry(topic).or_insert_with(|| {
                                runs.push(Run::of(&freshness, topic));
                                runs.len() - 1
                            });
                        }
                        runs[last].published(event.created_at_us, now_us);
                    }
                    // a row given up on purpose has no record to speak of
                    (Verdict::Done, None) => counted.published += 1,
                    (Verdict::Behind, _) => counted.behind += 1,
                    (Verdict::Release, _) => {}
                    (Verdict::Park(reason, policy), _) => {
                        *counted.parked.entry(reason.class).or_default() += 1;
                        if [contract::VIOLATED, contract::MISSING].contains(&reason.class) {
                            counted.violated(&event.event_type, "parked");
                        }
                        parked.push((event, reason, *policy));
                    }
                }
            }
            runs.into_iter().for_each(|run| run.end(counted));
        });
        for (event, reason, policy) in parked {
            self.parked(event, reason, policy);
        }
        self.warned(settled);
    }

    /// Rows were published although they violate their contracts: counts them, and says so of each event
    /// type at once, then ever more seldom.
    fn warned(&self, settled: &Settled<'_>) {
        let mut warned = settled.warned.iter().peekable();
        for (event, verdict) in settled.events.iter().zip(settled.verdicts) {
            let Some((_, reason)) = warned.next_if(|(seq, _)| *seq == event.seq) else {
                continue;
            };
            // another time, then
            if *verdict != Verdict::Done {
                continue;
            }
            (self.tally).count(|counted| counted.violated(&event.event_type, "published"));
            let (now, mut said) = (Instant::now(), lock(&self.violations));
            let is_full = said.len() >= VIOLATIONS_MAX;
            let rows = match said.get_mut(&*event.event_type) {
                Some((reminders, rows)) => {
                    *rows += 1;
                    if !reminders.due(now) {
                        continue;
                    }
                    std::mem::take(rows)
                }
                None if !is_full => {
                    said.insert(event.event_type.to_string(), (Reminders::new(now), 0));
                    1
                }
                None => continue,
            };
            tracing::warn!(
                outbox = self.outbox,
                seq = event.seq,
                event_id = %event.id,
                event_type = &*event.event_type,
                class = reason.class,
                reason = reason.text,
                rows,
                "rows violate their contract and are published all the same, as the config says"
            );
        }
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.count(|counted| Counts {
            published: counted.published,
            parked: counted.parked(),
            behind: counted.behind,
        })
    }

    /// A row was parked. The first of a minute get a line each, the others are counted.
    fn parked(&self, event: &Event, reason: &Reason, policy: Policy) {
        let mut lines = lock(&self.parked_lines);
        let now = Instant::now();
        let old = |since: Instant| now.saturating_duration_since(since) > REMINDER;
        if lines.0.is_none_or(old) {
            *lines = (Some(now), 0);
        }
        lines.1 += 1;
        if lines.1 > PARKED_LINES_MAX {
            return;
        }
        let rest = match policy {
            Policy::Block => {
                "its aggregate waits until the row is retried or skipped: see `outbox-relay parked`"
            }
            Policy::DeadLetter => "its aggregate goes on",
        };
        tracing::warn!(
            outbox = self.outbox,
            seq = event.seq,
            event_id = %event.id,
            aggregate_type = &*event.aggregate_type,
            event_type = &*event.event_type,
            class = reason.class,
            reason = reason.text,
            "a row cannot be published and was parked in outbox_relay.parked; {rest}"
        );
    }

    /// Something is wrong that will be tried again: said when it begins, when it is something new, and
    /// ever more seldom while it lasts. Any number of workers may say it.
    pub fn trouble(&self, error: &dyn std::error::Error) {
        let text = chain(error);
        let now = Instant::now();
        let mut trouble = lock(&self.trouble);
        let since = *trouble.since.get_or_insert(now);
        trouble.text.clone_from(&text);
        trouble.looked = None;
        let due = match &mut trouble.reminders {
            Some(reminders) => reminders.due(now),
            None => true,
        };
        // another worker's view of the same trouble, at the same moment
        let settled = |at: Instant| now.saturating_duration_since(at) >= SAME_MOMENT;
        let news = !trouble.said.contains(&text)
            && trouble.said.len() < TEXTS_MAX
            && trouble.said_at.is_none_or(settled);
        if !due && !news {
            return;
        }
        let lasted = now.saturating_duration_since(since);
        tracing::error!(
            outbox = self.outbox,
            lasted_s = lasted.as_secs(),
            error = text,
            "the outbox cannot be read or settled; trying again, nothing is lost"
        );
        trouble.reminders.get_or_insert_with(|| Reminders::new(now));
        trouble.said_at = Some(now);
        if !trouble.said.contains(&text) && trouble.said.len() < TEXTS_MAX {
            trouble.said.push(text);
        }
    }

    /// All is well again.
    pub fn well(&self) {
        let mut trouble = lock(&self.trouble);
        let Some(since) = trouble.since.take() else {
            return;
        };
        *trouble = Trouble::default();
        tracing::info!(
            outbox = self.outbox,
            lasted_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the outbox is served again"
        );
    }

    /// The table was sampled. Where nothing waits there is nothing left to fail either.
    pub(super) fn sampled(&self, sample: Sample) {
        let now = Instant::now();
        self.clock_offset_us
            .store(sample.clock_offset_us, Ordering::Relaxed);
        if sample.exact && sample.pending == 0 {
            self.well();
        }
        let mut sampled = lock(&self.sampled);
        sampled.away = None;
        let point = (now, sample.written, sample.pending);
        sampled.history.push_back(point);
        while sampled
            .history
            .get(1)
            .is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= crate::ops::WINDOW)
        {
            sampled.history.pop_front();
        }
        sampled.last = Some(sample);
    }

    /// The table could not be sampled. The workers tell the log of it, if they meet it too.
    pub(super) fn not_sampled(&self, error: &dyn std::error::Error) {
        let (text, now) = (chain(error), Instant::now());
        let mut sampled = lock(&self.sampled);
        match &mut sampled.away {
            Some((_, why)) => *why = text,
            away => *away = Some((now, text)),
        }
    }

    /// The database's clock less this machine's, in seconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a clock's error"
    )]
    pub(super) fn clock_offset_s(&self) -> f64 {
        self.clock_offset_us.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// Rows of one topic that a batch published.
struct Run<'a> {
    topic: &'a str,
    counted: crate::ops::TopicCounted,
    budget_us: Option<i64>,
}

impl<'a> Run<'a> {
    fn of(freshness: &Freshness, topic: &'a str) -> Self {
        let budget = freshness.of(topic);
        Self {
            topic,
            counted: crate::ops::TopicCounted::default(),
            budget_us: budget.map(|b| i64::try_from(b.as_micros()).unwrap_or(i64::MAX)),
        }
    }

    fn published(&mut self, created_at_us: Option<i64>, now_us: i64) {
        self.counted.published += 1;
        let Some(created_us) = created_at_us else {
            return;
        };
        let lag_us = now_us.saturating_sub(created_us).max(0);
        let lag = Duration::from_micros(u64::try_from(lag_us).unwrap_or(0));
        self.counted.lag.observe(lag.as_secs_f64());
        self.counted.late += u64::from(self.budget_us.is_some_and(|budget| lag_us > budget));
    }

    fn end(self, counted: &mut crate::ops::Counted) {
        let (topic, run) = (self.topic, self.counted);
        counted.published += run.published;
        counted.late += run.late;
        counted.lag.add(&run.lag);
        counted.last_publish = Some(SystemTime::now());
        let topic = counted.topic(topic);
        topic.published += run.published;
        topic.late += run.late;
        topic.lag.add(&run.lag);
    }
}

/// Rows that wait, by topic: how many, and how old the oldest is.
pub(super) fn by_topic(router: &Router, sample: &Sample) -> HashMap<String, (u64, Duration)> {
    let mut topics: HashMap<String, (u64, Duration)> = HashMap::new();
    for waiting in &sample.kinds {
        // what cannot be routed is parked when its turn comes
        let Ok(topic) = router.topic_of(&waiting.kind) else {
            continue;
        };
        let known = topics.entry(topic.into_owned()).or_default();
        known.0 += waiting.rows;
        known.1 = known.1.max(waiting.oldest_age);
    }
    topics
}

/// Every change under these locks is whole before anything can panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with all its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// Lines that a subscriber sees at error.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicU64>);

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
        fn on_event(
            &self,
            event: &tracing::Event<'_>,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            if *event.metadata().level() == tracing::Level::ERROR {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_an_hour_is_a_handful_of_lines() {
        use tracing_subscriber::layer::SubscriberExt as _;
        let lines = Lines::default();
        let log = tracing_subscriber::registry().with(lines.clone());
        let _guard = tracing::subscriber::set_default(log);
        let status = Status::new("public.outbox".to_owned());
        // four workers meet it every second or two, and not in the same words
        let words = ["connection refused", "connection reset", "no answer"];
        for second in 0..3_600 {
            for worker in 0..4 {
                let error = io::Error::other(words[(second + worker) % words.len()]);
                status.trouble(&error);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let told = lines.0.load(Ordering::Relaxed);
        assert!((3..=10).contains(&told), "{told} lines");
        status.well();
        status.trouble(&io::Error::other(words[0]));
        assert_eq!(
            lines.0.load(Ordering::Relaxed),
            told + 1,
            "a new one is told at once"
        );
    }
}
