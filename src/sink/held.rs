//! A sink that somebody can pause, a topic of it or the whole: as a topic that cannot be written, whose
//! rows wait and spend no attempts.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use super::{Attempt, Sink};
use crate::ops::controls::Controls;
use crate::outcome::Outcome;

/// `inner`, as far as it is not paused.
#[derive(Debug)]
pub struct Held<K> {
    inner: K,
    controls: Arc<Controls>,
}

impl<K> Held<K> {
    /// `inner`, paused as `controls` say.
    pub fn new(inner: K, controls: Arc<Controls>) -> Self {
        Self { inner, controls }
    }
}

impl<K: Sink> Sink for Held<K> {
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        self.inner.ready()
    }

    fn paused(&self) -> HashSet<String> {
        let mut topics = self.inner.paused();
        topics.extend(self.controls.paused().topics.iter().cloned());
        topics
    }

    fn keeps_waiting(&self, topic: &str, key: &str) -> bool {
        self.controls.paused().holds(topic) || self.inner.keeps_waiting(topic, key)
    }

    async fn publish(
        &mut self,
        attempts: &[Attempt<'_>],
        give_up: impl Future<Output = ()> + Send,
    ) -> Vec<Outcome> {
        // once for all of them: what is paused in between holds from the next batch on
        let paused = self.controls.paused();
        let holds = |attempt: &Attempt<'_>| paused.holds(&attempt.record.topic);
        if !attempts.iter().any(holds) {
            return self.inner.publish(attempts, give_up).await;
        }
        let free: Vec<Attempt<'_>> = attempts.iter().filter(|it| !holds(it)).copied().collect();
        let published = match free.is_empty() {
            true => Vec::new(),
            false => self.inner.publish(&free, give_up).await,
        };
        let mut published = published.into_iter();
        let outcome = |attempt: &Attempt<'_>| match holds(attempt) {
            true => Outcome::Paused,
            // an attempt without an outcome would be silence
            false => published.next().unwrap_or(Outcome::Unfinished),
        };
        attempts.iter().map(outcome).collect()
    }

    fn close(self) -> impl Future<Output = ()> + Send {
        self.inner.close()
    }
}
