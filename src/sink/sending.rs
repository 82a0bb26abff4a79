//! One group of records, on its way into a producer and back: enqueued in order, waited for, withdrawn
//! where it must be.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::sleep;

use super::Attempt;
use super::generation::{Generation, Refused};
use crate::ops::{Mistake, failpoint, makes};

/// How long a record waits for room in the queue before it is tried again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
/// After a first failure, how long the records in flight beside it may take to be answered.
const FAILURE_GRACE: Duration = Duration::from_millis(250);

/// Enqueues the records of `group` in order, up to the first that librdkafka refuses or the
/// deadline. Says which slot was refused and why; the room of what was not enqueued is given back.
pub(super) async fn enqueue<F: Future<Output = ()>>(
    generation: &Generation,
    attempts: &[Attempt<'_>],
    group: &[usize],
    give_up: &mut GiveUp<'_, F>,
) -> Option<(usize, Code)> {
    for (slot, &i) in group.iter().enumerate() {
        if slot == group.len() / 2 {
            failpoint("sink_enqueue");
            if slot > 0 && makes(Mistake::PurgeOpen) {
                generation.purge_open().await;
            }
        }
        let mut sent = generation.enqueue(slot, attempts[i].record);
        while let Err(Refused {
            code: Code::QueueFull,
            record,
        }) = sent
        {
            if give_up.unless(sleep(QUEUE_FULL_PAUSE)).await.is_none() {
                generation.withdraw(group.len() - slot);
                return Some((slot, Code::PurgeQueue));
            }
            sent = generation.send(*record);
        }
        if let Err(refused) = sent {
            generation.withdraw(group.len() - slot);
            return Some((slot, refused.code));
        }
    }
    None
}

/// How the wait for a group's reports ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Each record was acknowledged.
    Clean,
    /// Some record failed.
    Failed,
    /// None failed, and some were not answered for in time.
    Late,
}

/// Waits for the reports of the open group; at the deadline, after `patience`, or some time after a
/// failure, what is still out is withdrawn.
pub(super) async fn collect<F: Future<Output = ()>>(
    generation: &Generation,
    patience: Option<Duration>,
    give_up: &mut GiveUp<'_, F>,
) -> Ended {
    let reported = async {
        match patience {
            Some(patience) => tokio::time::timeout(patience, generation.first_failure_or_all())
                .await
                .is_ok(),
            None => {
                generation.first_failure_or_all().await;
                true
            }
        }
    };
    if give_up.unless(reported).await != Some(true) {
        generation.purge().await;
        return Ended::Late;
    }
    if !generation.failed() {
        return Ended::Clean;
    }
    let rest = tokio::time::timeout(FAILURE_GRACE, generation.all());
    if !matches!(give_up.unless(rest).await, Some(Ok(()))) {
        generation.purge().await;
    }
    Ended::Failed
}

/// The caller's deadline, which may be looked at again after it has passed.
pub(super) struct GiveUp<'f, F> {
    future: Pin<&'f mut F>,
    over: bool,
}

impl<'f, F: Future<Output = ()>> GiveUp<'f, F> {
    pub(super) fn new(future: Pin<&'f mut F>) -> Self {
        Self {
            future,
            over: false,
        }
    }

    pub(super) fn over(&self) -> bool {
        self.over
    }

    /// Runs `work` unless the deadline comes, or came, first.
    pub(super) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if self.over {
            return None;
        }
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.future.as_mut() => {
                self.over = true;
                None
            }
        }
    }
}
