//! The producers of one worker, each with a share of the partitions.
//!
//! librdkafka puts one partition into a request, and order wants one request in flight to a broker (see
//! `settings`), so one producer takes the partitions of a batch one after another. Several take them
//! side by side, and nothing else changes: a partition belongs to one of them, so a key does, and
//! what holds for the records of a producer holds for those of a key.
//!
//! They are made when their first record comes: whoever publishes to one partition has one producer. While
//! one beside the first cannot be made, because files are half written or memory is short, the first takes
//! its part as well: nothing of a partition is in two of them at once.
//!
//! **Drawback chosen**: each has threads and connections of its own. With two of them for each worker the
//! median of 500 events a second was 0.59 of that with one where the broker is 1 ms away, and 0.46 at 5 ms;
//! beside the broker it is the same, for a sixth more of the relay's time (`just bench link steady`). Four
//! take off another third or more where one broker has all partitions, for more memory still; where there
//! are several brokers, each is sent to by itself as it is.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::generation::Generation;
use super::outcome;
use super::rotated::Files;
use super::settings::{self, Sizes};
use super::token::Token;
use crate::config;
use crate::partition;
use crate::record::Record;

/// The share whose producer also asks the cluster what is not about a record.
pub(super) const FIRST: usize = 0;

/// See the module's description.
pub(super) struct Producers {
    kafka: config::Kafka,
    relay: config::Relay,
    shares: Vec<Share>,
    /// Told at each news of one of them.
    news: Arc<Notify>,
    /// What a producer is made of and may change on disk.
    files: Files,
    /// How often that has changed, and up to which change it was told.
    changes: u64,
    told: u64,
}

#[derive(Default)]
struct Share {
    /// Its producer, where that is made and not taken out.
    made: Option<Generation>,
    /// How often the files had changed when it was made, or last could not be.
    changes: u64,
}

impl Producers {
    pub(super) fn new(kafka: &config::Kafka, relay: &config::Relay) -> Self {
        Self {
            kafka: kafka.clone(),
            relay: relay.clone(),
            shares: (0..relay.producers.max(1))
                .map(|_| Share::default())
                .collect(),
            news: Arc::default(),
            files: Files::of(kafka),
            changes: 0,
            told: 0,
        }
    }

    /// How many shares there are.
    pub(super) fn shares(&self) -> usize {
        self.shares.len()
    }

    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.shares.iter().flat_map(|share| &share.made).count()
    }

    /// Takes out the producer of `share`, made anew if there is none or it is not sized by `sizes`.
    pub(super) async fn take(&mut self, share: usize, sizes: Sizes) -> Result<Generation, String> {
        if self.files.changed().await {
            self.changes += 1;
        }
        let Share { made, changes } = &self.shares[share];
        if made.is_some() && *changes != self.changes {
            self.renew(share, sizes).await;
        }
        if let Some(generation) = self.shares[share].made.take() {
            if generation.sizes() == sizes && !generation.may_have_moved() {
                return Ok(generation);
            }
            debug!(
                ?sizes,
                "the producer is made anew: a topic has another size limit, or it was cut off"
            );
            end(generation);
        }
        self.shares[share].changes = self.changes;
        self.make(sizes).await.map_err(|error| {
            let why = format!("a producer cannot be made: {}", outcome::in_words(&error));
            match share {
                // without it nothing goes
                FIRST => error!("{why}"),
                _ => debug!("{why}"),
            }
            why
        })
    }

    /// Puts `generation` back, to be taken again.
    pub(super) fn put(&mut self, share: usize, generation: Generation) {
        self.shares[share].made = Some(generation);
    }

    /// Lets go of all that are not taken out.
    pub(super) fn end_all(&mut self) {
        let made = self.shares.iter_mut().filter_map(|share| share.made.take());
        made.for_each(end);
    }

    /// As [`Self::end_all`]; completes when they are gone.
    pub(super) async fn close(mut self) {
        let made = self.shares.iter_mut().filter_map(|share| share.made.take());
        let retired: Vec<_> = made.filter_map(Generation::retire).collect();
        for retired in retired {
            // its panic has told its story
            drop(retired.await);
        }
    }

    async fn make(&self, sizes: Sizes) -> Result<Generation, rdkafka::error::KafkaError> {
        let settings = settings::producer(&self.kafka, &self.relay, sizes);
        let (token, news) = (Token::of(&self.kafka), Arc::clone(&self.news));
        Generation::make(settings, sizes, token, news).await
    }

    /// A producer of the files as they are now, in the place of that of `share`. One that cannot be made leaves
    /// it: half of the files may be written.
    async fn renew(&mut self, share: usize, sizes: Sizes) {
        // dropped half-way, it is for the next to do
        let made = self.make(sizes).await;
        self.shares[share].changes = self.changes;
        let is_news = std::mem::replace(&mut self.told, self.changes) != self.changes;
        match made {
            Ok(generation) => {
                if let Some(old) = self.shares[share].made.replace(generation) {
                    end(old);
                }
                if is_news {
                    info!("certificates or passwords changed on disk: a new producer takes them");
                }
            }
            Err(error) => warn!(
                why = outcome::in_words(&error),
                "certificates or passwords changed on disk, and no producer can be made of them: \
                 the old one goes on until they change again"
            ),
        }
    }
}

impl Drop for Producers {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// Tells shares, of `count` in all: each of a partition, which a key is in. Topics begin with different ones,
/// so that several with one partition each are shared out as well.
#[derive(Debug)]
pub(super) struct Shares<'a> {
    count: i32,
    topics: HashMap<&'a str, Topic>,
    /// The last one: records of a topic mostly come together.
    last: Option<(&'a str, Topic)>,
}

/// What is the same for all records of a topic, however often the topic is looked up elsewhere meanwhile.
#[derive(Debug, Clone, Copy)]
struct Topic {
    /// How many topics came before it.
    place: usize,
    partitions: i32,
    /// The share of its first partition.
    first: i32,
}

impl<'a> Shares<'a> {
    pub(super) fn new(count: usize) -> Self {
        let count = i32::try_from(count).unwrap_or(1).max(1);
        let topics = HashMap::new();
        Self {
            count,
            topics,
            last: None,
        }
    }

    /// The share that `key` in `topic` is in, and its partition: the topic's place among those that were asked
    /// about, and the partition's number in it. `partitions` tells how many a topic has.
    pub(super) fn of(
        &mut self,
        topic: &'a str,
        key: &[u8],
        partitions: impl Fn(&str) -> i32,
    ) -> (usize, (usize, i32)) {
        let (place, count) = (self.topics.len(), self.count);
        let known = match self.last {
            Some((last, known)) if last == topic => known,
            _ => *self.topics.entry(topic).or_insert_with(|| Topic {
                place,
                partitions: partitions(topic),
                first: partition::of_key(topic.as_bytes(), count),
            }),
        };
        self.last = Some((topic, known));
        let partition = partition::of_key(key, known.partitions);
        let share = (known.first + partition % count) % count;
        let share = usize::try_from(share).unwrap_or(0);
        (share, (known.place, partition))
    }

    /// The records at `indices`, by share: those of a partition in order, behind one another. librdkafka sends what
    /// it has of a partition as soon as it may, so that records of many partitions in turns become many small
    /// requests, one after another: a drain had 0.94 of the rate.
    pub(super) fn of_all(
        mut self,
        indices: &[usize],
        record: impl Fn(usize) -> &'a Record<'a>,
        partitions: impl Fn(&str) -> i32,
    ) -> Vec<Vec<usize>> {
        let mut lists = vec![Vec::new(); usize::try_from(self.count).unwrap_or(1)];
        for &i in indices {
            let record = record(i);
            let (share, partition) = self.of(&record.topic, &record.key, &partitions);
            lists[share].push((partition, i));
        }
        let in_order = |mut list: Vec<((usize, i32), usize)>| {
            list.sort_unstable();
            list.into_iter().map(|(_, i)| i).collect()
        };
        lists.into_iter().map(in_order).collect()
    }
}

/// Lets `generation` go without waiting for it.
pub(super) fn end(generation: Generation) {
    drop(generation.retire());
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_key_has_the_share_of_its_partition_and_topics_of_one_partition_are_shared_out() {
        let mut shares = Shares::new(3);
        let partitions = |topic: &str| if topic == "wide" { 8 } else { 1 };
        let mut of_partition: [HashSet<usize>; 8] = Default::default();
        for key in (0..200).map(|n: u32| n.to_string().into_bytes()) {
            let (share, (place, partition)) = shares.of("wide", &key, partitions);
            assert_eq!((place, partition), (0, partition::of_key(&key, 8)));
            of_partition[usize::try_from(partition).unwrap()].insert(share);
        }
        assert!(
            of_partition.iter().all(|shares| shares.len() == 1),
            "{of_partition:?}"
        );
        let all: HashSet<usize> = of_partition.into_iter().flatten().collect();
        assert_eq!(all, HashSet::from([0, 1, 2]));

        let topics: Vec<String> = (0..50).map(|n| format!("t{n}")).collect();
        let of_topics = topics
            .iter()
            .map(|topic| shares.of(topic, b"k", partitions).0);
        assert_eq!(of_topics.collect::<HashSet<_>>(), HashSet::from([0, 1, 2]));
        // one that is not known has no partitions yet
        assert!(shares.of("gone", b"k", |_| 0).0 < 3);
        assert_eq!(Shares::new(1).of("wide", b"k", partitions).0, 0);
    }

    #[test]
    fn records_of_a_partition_are_behind_one_another_and_in_order() {
        let record = |n: u32| Record {
            topic: if n.is_multiple_of(3) { "t" } else { "u" }.into(),
            key: (n % 40).to_string().into_bytes().into(),
            value: None,
            headers: Vec::new().into(),
        };
        let records: Vec<_> = (0..100).map(record).collect();
        // one that is found to have more partitions meanwhile
        let asked = Cell::new(0);
        let grows = |_: &str| 8 + 8 * i32::from(asked.replace(asked.get() + 1) > 1);
        // one that has gone already is not among them
        let indices: Vec<usize> = (1..records.len()).collect();
        for count in [1, 2, 3] {
            asked.set(0);
            let lists = Shares::new(count).of_all(&indices, |i| &records[i], grows);
            assert_eq!(lists.len(), count);
            let mut all = lists.concat();
            let partition = |i: usize| partition::of_key(&records[i].key, 8);
            for list in lists {
                let placed: Vec<_> = list
                    .iter()
                    .map(|i| ((&*records[*i].topic, partition(*i)), *i))
                    .collect();
                let runs = placed.chunk_by(|a, b| a.0 == b.0);
                assert!(runs.clone().all(<[_]>::is_sorted), "{count}: {placed:?}");
                let partitions: HashSet<_> = placed.iter().map(|(it, _)| *it).collect();
                assert_eq!(runs.count(), partitions.len(), "{count}: {placed:?}");
                assert!(partitions.len() > 2, "{count}: {placed:?}");
            }
            all.sort_unstable();
            assert_eq!(all, indices);
        }
    }
}
