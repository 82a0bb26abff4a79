//! One group of records, on its way into a producer and back: enqueued, each partition in order, waited for, withdrawn
//! where it must be.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::sleep;
use tracing::warn;

use super::Attempt;
use super::generation::{Generation, Refused, Report, until};
use crate::ops::{Mistake, failpoint, makes};

/// How long a record waits for room in the queue before it is tried again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
/// After a first failure, how long the records in flight beside it may take to be answered.
const FAILURE_GRACE: Duration = Duration::from_millis(250);
/// How long a producer may take to answer for what was withdrawn.
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of a group that one producer has.
pub(super) struct Part<'a> {
    pub(super) share: usize,
    pub(super) generation: Generation,
    /// Indices of attempts, those of a partition in order.
    pub(super) group: Vec<usize>,
    /// The partitions that it opens.
    pub(super) opening: HashSet<(&'a str, i32)>,
    /// What librdkafka did not take: the rest of the group was not given to it.
    refused: Option<(usize, Code)>,
    /// It was told to give back what was not answered.
    withdrawn: bool,
}

impl<'a> Part<'a> {
    /// Nothing was sent yet.
    pub(super) fn new(
        share: usize,
        generation: Generation,
        group: Vec<usize>,
        opening: HashSet<(&'a str, i32)>,
    ) -> Self {
        Self {
            share,
            generation,
            group,
            opening,
            refused: None,
            withdrawn: false,
        }
    }

    /// Enqueues the records as they stand in the group, up to the first that librdkafka refuses or the deadline. The room of
    /// what was not enqueued is given back.
    pub(super) async fn enqueue<F: Future<Output = ()>>(
        &mut self,
        attempts: &[Attempt<'_>],
        give_up: &mut GiveUp<'_, F>,
    ) {
        let generation = &self.generation;
        generation.open(self.group.len());
        let withdraw = |slot: usize| generation.withdraw(self.group.len() - slot);
        for (slot, &i) in self.group.iter().enumerate() {
            if slot == self.group.len() / 2 {
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
                    withdraw(slot);
                    self.refused = Some((slot, Code::PurgeQueue));
                    return;
                }
                sent = generation.send(*record);
            }
            if let Err(refused) = sent {
                withdraw(slot);
                self.refused = Some((slot, refused.code));
                return;
            }
        }
    }

    /// What became of each record, and whether all of them were acknowledged: if not, the producer is over.
    pub(super) fn reports(&self) -> (Vec<Report>, bool) {
        let failed = self.generation.failed() || self.generation.fatal();
        let mut reports = self.generation.take();
        if let Some((slot, code)) = self.refused {
            reports[slot] = Report::Failed(code);
        }
        let is_clean = !failed && !self.withdrawn && self.refused.is_none();
        (reports, is_clean)
    }
}

/// How the wait for a group's reports ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Each record that was enqueued was answered.
    Answered,
    /// Some were not answered for in time, and none had failed by then.
    Late,
}

/// Waits for the reports of the group of `parts`; at the deadline, after `patience`, or some time after a
/// failure, what is still out is withdrawn.
pub(super) async fn collect<F: Future<Output = ()>>(
    parts: &mut [Part<'_>],
    patience: Option<Duration>,
    give_up: &mut GiveUp<'_, F>,
) -> Ended {
    let Some(first) = parts.first() else {
        return Ended::Answered;
    };
    let news = first.generation.news();
    let failed = || parts.iter().any(|part| part.generation.failed());
    let reported = until(news, || are_settled(parts) || failed());
    let reported = async {
        match patience {
            Some(patience) => tokio::time::timeout(patience, reported).await.is_ok(),
            None => {
                reported.await;
                true
            }
        }
    };
    if give_up.unless(reported).await != Some(true) {
        withdraw(parts).await;
        return Ended::Late;
    }
    if failed() {
        let rest = tokio::time::timeout(FAILURE_GRACE, until(news, || are_settled(parts)));
        if !matches!(give_up.unless(rest).await, Some(Ok(()))) {
            withdraw(parts).await;
        }
    }
    Ended::Answered
}

fn are_settled(parts: &[Part<'_>]) -> bool {
    parts.iter().all(|part| part.generation.is_settled())
}

/// Has everything given back that was not answered, and waits for the reports of that, for a while. What
/// stays silent is as good as unfinished.
async fn withdraw(parts: &mut [Part<'_>]) {
    let mut purges = Vec::new();
    for part in parts.iter_mut() {
        if !part.generation.is_settled() {
            part.withdrawn = true;
            purges.push(part.generation.purge());
        }
    }
    let purged = async {
        for purge in purges {
            if purge.await.is_err() {
                // a panic there leaves reports out, which is waited for and told below
                std::future::pending::<()>().await;
            }
        }
        if let Some(first) = parts.first() {
            until(first.generation.news(), || are_settled(parts)).await;
        }
    };
    if tokio::time::timeout(PURGE_TIMEOUT, purged).await.is_err() {
        let silent: usize = parts.iter().map(|part| part.generation.outstanding()).sum();
        warn!(
            silent,
            "a producer does not answer for the records it was told to give back: it is abandoned"
        );
    }
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
