//! Where each loop stands, so that one that makes no progress can be told from one that waits.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// What a loop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// Looks whether the outbox can be served.
    Looking,
    /// Waits until Kafka can probably be written to. As long as it takes.
    WaitingForKafka,
    /// Waits for rows; it polls again and again.
    WaitingForRows,
    Claiming,
    Publishing,
    Settling,
    /// Waits before the next attempt. As long as it was told to.
    BackingOff,
    /// Waits for its next turn. As long as it was told to.
    Resting,
    /// Samples or tends the table.
    Tending,
}

const STEPS: [Step; 9] = [
    Step::Looking,
    Step::WaitingForKafka,
    Step::WaitingForRows,
    Step::Claiming,
    Step::Publishing,
    Step::Settling,
    Step::BackingOff,
    Step::Resting,
    Step::Tending,
];

impl Step {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Looking => "looking",
            Self::WaitingForKafka => "waiting_for_kafka",
            Self::WaitingForRows => "waiting_for_rows",
            Self::Claiming => "claiming",
            Self::Publishing => "publishing",
            Self::Settling => "settling",
            Self::BackingOff => "backing_off",
            Self::Resting => "resting",
            Self::Tending => "tending",
        }
    }

    /// Whether a loop may be at it for any time.
    fn may_last(self) -> bool {
        matches!(
            self,
            Self::WaitingForKafka | Self::BackingOff | Self::Resting
        )
    }
}

/// Where one loop stands.
#[derive(Debug)]
pub(crate) struct Progress {
    /// `worker`, `upkeep` and so on.
    pub(crate) of: &'static str,
    epoch: Instant,
    step: AtomicU8,
    since_ms: AtomicU64,
}

impl Progress {
    fn new(of: &'static str) -> Self {
        Self {
            of,
            epoch: Instant::now(),
            step: AtomicU8::new(Step::Resting as u8),
            since_ms: AtomicU64::new(0),
        }
    }

    /// The loop begins, or begins again, to do this.
    pub(crate) fn at(&self, step: Step) {
        let since = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since_ms.store(since, Ordering::Relaxed);
        self.step.store(step as u8, Ordering::Relaxed);
    }

    /// What it does, and for how long.
    pub(crate) fn now(&self) -> (Step, Duration) {
        let step = usize::from(self.step.load(Ordering::Relaxed));
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        let lasted = self.epoch.elapsed().saturating_sub(since);
        (STEPS.get(step).copied().unwrap_or(Step::Resting), lasted)
    }
}

/// The loops of one outbox; those that have ended are forgotten.
#[derive(Debug, Default)]
pub(crate) struct Loops(Mutex<Vec<Weak<Progress>>>);

/// What the loops of one outbox do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    pub(crate) of: &'static str,
    pub(crate) step: Step,
    pub(crate) lasted: Duration,
    pub(crate) stuck: bool,
}

impl Loops {
    /// A loop begins; it counts until this is dropped.
    pub(crate) fn begin(&self, of: &'static str) -> Arc<Progress> {
        let progress = Arc::new(Progress::new(of));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&progress));
        progress
    }

    /// Each loop, and whether it has been at one step for longer than `stuck_after`.
    pub(crate) fn standing(&self, stuck_after: Duration) -> Vec<Standing> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = |progress: Arc<Progress>| {
            let (step, lasted) = progress.now();
            Standing {
                of: progress.of,
                step,
                lasted,
                stuck: !step.may_last() && lasted > stuck_after,
            }
        };
        all.iter().filter_map(Weak::upgrade).map(standing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_nothing_new_is_stuck_unless_it_may_wait() {
        const LIMIT: Duration = Duration::from_secs(300);
        let loops = Loops::default();
        let progress = loops.begin("worker");
        for step in STEPS {
            progress.at(step);
            let stuck = || loops.standing(LIMIT)[0].stuck;
            assert!(!stuck(), "{step:?}");
            tokio::time::advance(LIMIT + Duration::from_secs(1)).await;
            let may_wait = ["waiting_for_kafka", "backing_off", "resting"].contains(&step.name());
            assert_eq!(stuck(), !may_wait, "{step:?}");
            progress.at(step);
            assert!(!stuck(), "{step:?}: it has begun again");
            assert_eq!(loops.standing(LIMIT)[0].step, step);
        }
        drop(progress);
        assert!(loops.standing(LIMIT).is_empty(), "a loop that has ended");
    }
}
