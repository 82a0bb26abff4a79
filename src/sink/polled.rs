//! A producer and the thread that hands out its delivery reports.
//!
//! rust-rdkafka's own `ThreadedProducer` polls for 100 ms at a time for as long as it lives, and its
//! poll spins through the last part of a millisecond that librdkafka's time-outs cannot express:
//! 0.7 ms of every 100, measured, for each producer, idle or not. Here the thread sleeps while no
//! report is awaited, which is nearly always.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, ProducerContext};

/// How long one poll lasts, and so how long the thread goes on after the last report.
const POLL: Duration = Duration::from_millis(100);

/// See the module's description. Dropping it waits for the thread, `POLL` at most, and then for the
/// producer's own end: not for an async thread.
pub(super) struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Awaited,
    Over,
}

impl Work {
    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.changed.notify_all();
    }

    /// Sleeps while there is nothing to do. False when it is over.
    fn wait(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| *state == State::Idle;
        let woken = self.changed.wait_while(state, idle);
        *woken.unwrap_or_else(PoisonError::into_inner) == State::Awaited
    }
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// Makes a producer from `settings`. It connects by itself, some time later.
    ///
    /// # Errors
    /// librdkafka refuses a setting, or no thread is to be had.
    pub(super) fn make(settings: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer: BaseProducer<C> = settings.create_with_context(context)?;
        let (producer, work) = (Arc::new(producer), Arc::new(Work::default()));
        let polled = Arc::clone(&producer);
        let told = Arc::clone(&work);
        let poll = move || {
            while told.wait() {
                polled.poll(POLL);
            }
        };
        let thread = std::thread::Builder::new().name("kafka-reports".to_owned());
        let thread = thread.spawn(poll).map_err(|error| {
            KafkaError::ClientCreation(format!("no thread for its reports: {error}"))
        })?;
        Ok(Self {
            producer,
            work,
            thread: Some(thread),
        })
    }

    /// The producer, to enqueue, to ask and to purge.
    pub(super) fn inner(&self) -> &Arc<BaseProducer<C>> {
        &self.producer
    }

    /// Reports are awaited from now on, or not any more.
    pub(super) fn await_reports(&self, awaited: bool) {
        self.work
            .set(if awaited { State::Awaited } else { State::Idle });
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.work.set(State::Over);
        if let Some(thread) = self.thread.take() {
            // its panic would be one of a context's callbacks, which has told its story
            drop(thread.join());
        }
    }
}
