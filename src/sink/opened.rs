//! The partitions that have taken a record of a producer, and so know its sequence.
//!
//! A broker accepts any first sequence of a producer id that it has no state for in that partition.
//! So if the first request for a partition is refused, one that follows it is let in, and the order
//! is broken. One request in flight and the gapless guarantee do not prevent that: librdkafka keeps
//! one request more made and waiting (`queue.buffering.backpressure.threshold` is at least 1), and
//! sends it when the refusal has come in, before the fatal error is raised (librdkafka 2.12,
//! `rd_kafka_toppar_producer_serve`; seen in two of three tries with a large first record). Once the
//! partition has state, what follows a refused request is out of sequence, and refused too.
//!
//! So the first record for a partition goes alone, and what follows it waits for its acknowledgement.
//! Drawback: a round trip more for each new producer, and again after [`OPEN_FOR`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::Attempt;
use crate::partition;

/// How long a partition counts as opened. Brokers forget a producer that has been silent for a day
/// (`producer.id.expiration.ms`), or for less where somebody says so.
const OPEN_FOR: Duration = Duration::from_secs(600);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Opened {
    topics: HashMap<String, Topic>,
}

#[derive(Debug)]
struct Topic {
    since: Instant,
    partitions: HashSet<i32>,
}

/// What [`Opened::split`] makes of a list of records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split<'a> {
    /// To be sent now, those of a partition in order.
    pub(super) now: Vec<usize>,
    /// To be sent when those have been acknowledged, likewise.
    pub(super) later: Vec<usize>,
    /// What is opened by that.
    pub(super) opening: HashSet<(&'a str, i32)>,
}

impl Opened {
    /// Splits the attempts at `indices`, those of a partition in order: those of opened partitions and the
    /// first for each that is not may go now, the others later. A key is in one partition, so its records
    /// stay in order. `partitions` tells how many a topic has.
    pub(super) fn split<'a>(
        &mut self,
        attempts: &'a [Attempt<'_>],
        indices: &[usize],
        partitions: impl Fn(&str) -> i32,
        now: Instant,
    ) -> Split<'a> {
        self.topics
            .retain(|_, topic| now.duration_since(topic.since) < OPEN_FOR);
        let mut split = Split::default();
        // of the last topic: records of one mostly come together
        let mut last: Option<(&str, i32, Option<&HashSet<i32>>)> = None;
        for &index in indices {
            let record = attempts[index].record;
            let topic: &'a str = &record.topic;
            let (_, partitions, opened) = match last {
                Some(last) if last.0 == topic => last,
                _ => {
                    let opened = self.topics.get(topic).map(|topic| &topic.partitions);
                    *last.insert((topic, partitions(topic), opened))
                }
            };
            // where one producer has all of them, nearly always
            let all = opened
                .is_some_and(|opened| i32::try_from(opened.len()).is_ok_and(|it| it >= partitions));
            if all {
                split.now.push(index);
                continue;
            }
            let partition = partition::of_key(&record.key, partitions);
            let is_open = opened.is_some_and(|opened| opened.contains(&partition));
            if is_open || split.opening.insert((topic, partition)) {
                split.now.push(index);
            } else {
                split.later.push(index);
            }
        }
        split
    }

    /// The partitions in `opening` have taken their record.
    pub(super) fn took(&mut self, opening: &HashSet<(&str, i32)>, now: Instant) {
        for (topic, partition) in opening {
            let topic = self
                .topics
                .entry((*topic).to_owned())
                .or_insert_with(|| Topic {
                    since: now,
                    partitions: HashSet::new(),
                });
            topic.partitions.insert(*partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    /// Keys by the partition of two that they go to.
    fn keys(partition: i32) -> impl Iterator<Item = String> {
        (0..)
            .map(|n: u32| n.to_string())
            .filter(move |key| partition::of_key(key.as_bytes(), 2) == partition)
    }

    fn record(key: &String) -> Record<'_> {
        Record {
            topic: "t".into(),
            key: key.as_bytes().into(),
            value: None,
            headers: Vec::new().into(),
        }
    }

    #[test]
    fn the_first_record_of_a_partition_goes_before_all_others_of_it() {
        let now = Instant::now();
        let (zero, one): (Vec<_>, Vec<_>) = (keys(0).take(3).collect(), keys(1).take(2).collect());
        let all = [&zero[..1], &one[..1], &zero[1..], &one[1..]].concat();
        let records: Vec<_> = all.iter().map(record).collect();
        let attempt = |record| Attempt {
            record,
            alone: false,
        };
        let attempts: Vec<_> = records.iter().map(attempt).collect();
        let split =
            |opened: &mut Opened, now| opened.split(&attempts, &[0, 1, 2, 3, 4], |_| 2, now);
        let mut opened = Opened::default();
        let first = split(&mut opened, now);
        assert_eq!((first.now, first.later), (vec![0, 1], vec![2, 3, 4]));

        // one of the two took it
        opened.took(&HashSet::from([("t", 0)]), now);
        let second = split(&mut opened, now);
        assert_eq!((second.now, second.later), (vec![0, 1, 2, 3], vec![4]));
        opened.took(&second.opening, now);
        let third = split(&mut opened, now);
        assert_eq!((third.now.len(), third.later.len()), (5, 0));
        assert!(third.opening.is_empty());

        // a broker may have forgotten the producer
        let again = split(&mut opened, now + OPEN_FOR);
        assert_eq!((again.now, again.later), (vec![0, 1], vec![2, 3, 4]));
    }
}
