//! What the sinks of a process know about Kafka, as `/status` tells it.

use std::time::Duration;

use tokio::time::Instant;

use super::outcome::TopicFault;
use super::topics::{Facts, Topics};
use crate::ops::facts::{Kafka, TopicPaused};
use crate::ops::text_ago;

/// A pause that has been over for so long, and that nobody tries: no row waits for the topic.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

impl Topics {
    /// What is known now.
    #[must_use]
    pub fn known(&self) -> Kafka {
        let now = Instant::now();
        let mut known = Kafka {
            brokers: self.brokers.clone(),
            reachable: true,
            ..Kafka::default()
        };
        if let Some(outage) = self.outage().as_ref().filter(|outage| !outage.answers) {
            let away = now.saturating_duration_since(outage.since);
            known.reachable = false;
            known.away_since = Some(text_ago(away));
            known.away_s = Some(away.as_secs_f64());
            known.why = Some(outage.why.clone());
        }
        let all = self.facts();
        for (topic, facts) in all.iter() {
            if let Some((fault, since, partitions)) = waits(facts, now) {
                let lasted = now.saturating_duration_since(since);
                known.topics_paused.push(TopicPaused {
                    topic: topic.clone(),
                    reason: fault.name().to_owned(),
                    text: fault.to_string(),
                    next_step: self.next_step(topic, fault),
                    since: text_ago(lasted),
                    lasted_s: lasted.as_secs_f64(),
                    partitions,
                    outbox: None,
                });
            }
        }
        known.topics_paused.sort_by(|a, b| a.topic.cmp(&b.topic));
        known
    }
}

/// Why a topic takes nothing, or only in part; since when; and which partitions, if not all.
fn waits(facts: &Facts, now: Instant) -> Option<(TopicFault, Instant, Vec<i32>)> {
    let pause = facts.pause.as_ref();
    if let Some(pause) = pause.filter(|pause| now < pause.until + FORGOTTEN_AFTER) {
        return Some((pause.fault, pause.since, Vec::new()));
    }
    let held = facts.holds.iter();
    let held = held.filter(|(_, hold)| now < hold.until + FORGOTTEN_AFTER);
    let held: Vec<_> = held.collect();
    let since = held.iter().map(|(_, hold)| hold.since).min()?;
    let partitions = held.iter().map(|(partition, _)| **partition).collect();
    Some((TopicFault::Silent, since, partitions))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_kafka_is_what_the_sinks_met() {
        let topics = Topics::new(&testing::kafka("b:9092"), &testing::relay());
        assert!(topics.known().reachable && topics.known().topics_paused.is_empty());

        topics.away("connection refused", Instant::now());
        tokio::time::advance(Duration::from_secs(30)).await;
        topics.away("still refused", Instant::now());
        let known = topics.known();
        assert!(!known.reachable);
        assert_eq!(known.away_s, Some(30.0));
        assert_eq!(known.why.as_deref(), Some("still refused"));
        topics.takes();
        assert!(topics.known().reachable);

        topics.pause("t", TopicFault::Denied, Instant::now());
        tokio::time::advance(Duration::from_secs(2)).await;
        let paused = topics.known().topics_paused;
        assert_eq!(
            (paused[0].topic.as_str(), paused[0].reason.as_str()),
            ("t", "denied")
        );
        assert!(paused[0].next_step.contains("kafka-acls.sh"));
        assert!((paused[0].lasted_s - 2.0).abs() < 0.01);
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(
            topics.known().topics_paused.is_empty(),
            "nothing waits for it"
        );
    }
}
