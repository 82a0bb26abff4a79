//! A sink that does as it is told, for tests. It can do what a real Kafka does only at bad moments:
//! write a record and lose the word of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Attempt, Sink};
use crate::outcome::{Outcome, Reason};
use crate::record::{EVENT_ID, Header, Record};

/// What happens to a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is written and the sink says so.
    Deliver,
    /// It is written, and the sink does not learn of it: unfinished.
    LoseTheWord,
    /// It is not written, and this is its outcome.
    Refuse(Outcome),
    /// It is not written, and the publish waits for its deadline.
    Hang,
    /// It is refused for what it is, as a broker does: a suspect among others, rejected alone.
    Poison(Reason),
}

type Pace = Box<dyn FnMut() -> Duration + Send>;

/// A sink and the hold a test has on it: clones share everything.
#[derive(Debug, Clone, Default)]
pub struct ScriptedSink {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    up: Notify,
}

#[derive(Default)]
struct State {
    events: HashMap<String, VecDeque<Reply>>,
    topics: HashMap<String, Reply>,
    written: Vec<Record<'static>>,
    down: bool,
    publishes: usize,
    pace: Option<Pace>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("written", &self.written.len())
            .field("down", &self.down)
            .finish_non_exhaustive()
    }
}

impl ScriptedSink {
    /// A sink that delivers everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next attempts at the event with this id are answered with `replies`, one each; then it
    /// is as if nothing had been said.
    pub fn on_event(&self, event_id: &str, replies: impl IntoIterator<Item = Reply>) {
        let mut state = self.state();
        state
            .events
            .entry(event_id.to_owned())
            .or_default()
            .extend(replies);
    }

    /// Every record of `topic` is answered with `reply` from now on. A refusal with
    /// [`Outcome::Paused`] pauses the topic.
    pub fn on_topic(&self, topic: &str, reply: Reply) {
        self.state().topics.insert(topic.to_owned(), reply);
    }

    /// How long the sink takes before each record, asked anew each time. The deadline of a publish
    /// may come in between.
    pub fn set_pace(&self, pace: impl FnMut() -> Duration + Send + 'static) {
        self.state().pace = Some(Box::new(pace));
    }

    /// Nothing that was told before counts any more: everything is delivered, at once, but for what
    /// is poison.
    pub fn heal(&self) {
        let mut state = self.state();
        let poison = |replies: &VecDeque<Reply>| matches!(replies.front(), Some(Reply::Poison(_)));
        state.events.retain(|_, replies| poison(replies));
        state.topics.clear();
        state.pace = None;
        drop(state);
        self.set_down(false);
    }

    /// While it is down, [`Sink::ready`] waits.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
        if !down {
            self.shared.up.notify_waiters();
        }
    }

    /// What was written, in the order of the log, repeats included.
    #[must_use]
    pub fn written(&self) -> Vec<Record<'static>> {
        self.state().written.clone()
    }

    /// The ids of what was written, in the order of the log.
    #[must_use]
    pub fn written_ids(&self) -> Vec<String> {
        self.state().written.iter().map(event_id).collect()
    }

    /// How often something was published.
    #[must_use]
    pub fn publishes(&self) -> usize {
        self.state().publishes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One attempt: its outcome, or `None` to hang.
    fn attempt(&self, record: &Record<'_>, alone: bool) -> Option<Outcome> {
        let mut state = self.state();
        let scripted = state
            .events
            .get_mut(&event_id(record))
            .and_then(VecDeque::pop_front);
        let reply = scripted.or_else(|| state.topics.get(&*record.topic).cloned());
        let reply = reply.unwrap_or(Reply::Deliver);
        if matches!(reply, Reply::Deliver | Reply::LoseTheWord) {
            state.written.push(owned(record));
        }
        match reply {
            Reply::Deliver => Some(Outcome::Delivered {
                partition: 0,
                offset: i64::try_from(state.written.len()).unwrap_or(i64::MAX) - 1,
            }),
            Reply::LoseTheWord => Some(Outcome::Unfinished),
            Reply::Refuse(outcome) => Some(outcome),
            Reply::Poison(_) if !alone => Some(Outcome::Suspect),
            Reply::Poison(reason) => Some(Outcome::Rejected(reason)),
            Reply::Hang => None,
        }
    }
}

impl Sink for ScriptedSink {
    async fn ready(&mut self) {
        loop {
            let up = self.shared.up.notified();
            if !self.state().down {
                return;
            }
            up.await;
        }
    }

    fn paused(&self) -> HashSet<String> {
        let state = self.state();
        let paused = state
            .topics
            .iter()
            .filter(|(_, reply)| **reply == Reply::Refuse(Outcome::Paused));
        paused.map(|(topic, _)| topic.clone()).collect()
    }

    fn keeps_waiting(&self, topic: &str, _: &str) -> bool {
        self.paused().contains(topic)
    }

    /// As Kafka's sink does, it tries no more of a key after one of it was not delivered, and no more
    /// of a topic that was paused meanwhile; that holds nothing else.
    async fn publish(
        &mut self,
        attempts: &[Attempt<'_>],
        give_up: impl Future<Output = ()> + Send,
    ) -> Vec<Outcome> {
        self.state().publishes += 1;
        let mut stopped: HashSet<&[u8]> = HashSet::new();
        let mut paused: HashSet<&str> = HashSet::new();
        let (mut hangs, mut given_up) = (false, false);
        let mut give_up = pin!(give_up);
        let mut outcomes = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            let record = attempt.record;
            let pause = self.state().pace.as_mut().map(|pace| pace());
            if let Some(pause) = pause.filter(|_| !hangs && !given_up) {
                tokio::select! {
                    biased;
                    () = &mut give_up => given_up = true,
                    () = tokio::time::sleep(pause) => {}
                }
            }
            if hangs || given_up || stopped.contains(&*record.key) {
                outcomes.push(Outcome::Unfinished);
                continue;
            }
            if paused.contains(&*record.topic) {
                outcomes.push(Outcome::Paused);
                continue;
            }
            let outcome = self.attempt(record, attempt.alone);
            hangs = outcome.is_none();
            let outcome = outcome.unwrap_or(Outcome::Unfinished);
            match outcome {
                Outcome::Delivered { .. } => {}
                Outcome::Paused => _ = paused.insert(&record.topic),
                _ => _ = stopped.insert(&record.key),
            }
            outcomes.push(outcome);
        }
        if hangs {
            give_up.await;
        }
        outcomes
    }

    async fn close(self) {}
}

fn event_id(record: &Record<'_>) -> String {
    let value = record
        .headers
        .find(EVENT_ID)
        .and_then(|header| header.value);
    String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()
}

fn owned(record: &Record<'_>) -> Record<'static> {
    let header = |header: Header<'_>| Header {
        name: header.name.into_owned().into(),
        value: header.value.map(|value| value.into_owned().into()),
    };
    Record {
        topic: record.topic.clone().into_owned().into(),
        key: record.key.to_vec().into(),
        value: record.value.as_deref().map(|value| value.to_vec().into()),
        headers: record.headers.iter().map(header).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::record::Encoding;
    use uuid::Uuid;

    fn event(n: u128, key: &str) -> Event {
        Event {
            seq: 1,
            id: Uuid::from_u128(n),
            aggregate_type: "Order".into(),
            aggregate_id: Some(key.into()),
            event_type: "Changed".into(),
            payload: None,
            headers: None,
            topic: None,
            created_at_us: None,
            parked: None,
        }
    }

    #[tokio::test]
    async fn a_lost_word_is_written_and_unfinished_and_its_key_waits() {
        let mut sink = ScriptedSink::new();
        let events = [event(1, "a"), event(2, "a"), event(3, "b")];
        let usual = Encoding::default();
        let records: Vec<_> = events
            .iter()
            .map(|e| usual.record(e, "t".into()).unwrap())
            .collect();
        let attempts: Vec<_> = records
            .iter()
            .map(|record| Attempt {
                record,
                alone: false,
            })
            .collect();
        sink.on_event(&events[0].id.to_string(), [Reply::LoseTheWord]);
        let outcomes = sink.publish(&attempts, std::future::pending()).await;
        assert_eq!(outcomes[..2], [Outcome::Unfinished, Outcome::Unfinished]);
        assert_eq!(
            outcomes[2],
            Outcome::Delivered {
                partition: 0,
                offset: 1
            }
        );
        let outcomes = sink.publish(&attempts, std::future::pending()).await;
        assert!(
            outcomes
                .iter()
                .all(|o| matches!(o, Outcome::Delivered { .. }))
        );
        let ids = [1, 3, 1, 2, 3].map(|n| Uuid::from_u128(n).to_string());
        assert_eq!(sink.written_ids(), ids);
        assert_eq!(sink.publishes(), 2);
    }
}
