//! P4: one key, one partition, and it is the one that the Java client would choose.

use std::time::Duration;

use crate::support::checker::{java_partition, murmur2};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::one;
use crate::support::{self, topic_of};

/// Topics of these sizes were asked about.
const COUNTS: [i32; 7] = [1, 2, 3, 6, 7, 12, 50];

/// A key, its hash, and its partition in a topic of each size, as Kafka's own code gave them.
struct Vector {
    key: &'static str,
    hash: i32,
    partitions: Vec<i32>,
}

fn vectors() -> Vec<Vector> {
    let lines = include_str!("data/java_partitions.tsv").lines();
    let parsed = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let mut fields = line.split('\t');
        let mut key = || fields.next().expect("a line has fields");
        Vector {
            key: key(),
            hash: key().parse().expect("a hash is a number"),
            partitions: fields
                .map(|it| it.parse().expect("a partition is a number"))
                .collect(),
        }
    });
    parsed.collect()
}

#[test]
fn the_checkers_own_idea_of_placement_is_javas() {
    let vectors = vectors();
    assert!(vectors.len() > 20);
    for Vector {
        key,
        hash,
        partitions,
    } in vectors
    {
        assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        assert_eq!(
            COUNTS.map(|count| java_partition(key.as_bytes(), count)),
            *partitions,
            "{key}"
        );
    }
}

#[test]
fn every_key_is_in_the_partition_that_java_would_choose() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        outbox.create(world).await;
        let relay = world.relay(&[&outbox]);
        relay.migrate().await;
        let sizes = [(3, "Few"), (12, "Dozen"), (50, "Many")];
        for (count, name) in sizes {
            let aggregate_type = world.aggregate_with_topic(name, count).await;
            for vector in vectors() {
                one(world, &outbox, &aggregate_type, vector.key, 1).await;
            }
        }
        let status = relay.until_empty(Duration::from_secs(30)).await;
        assert!(status.success(), "{status}");
        for (count, name) in sizes {
            let topic = topic_of(&world.aggregate_type(name));
            let records = world.kafka.read_all(&topic).await;
            let nth = COUNTS.iter().position(|it| *it == count).unwrap();
            for vector in vectors() {
                let key = Some(vector.key.as_bytes());
                let mut found = records.iter().filter(|record| record.key.as_deref() == key);
                let place = found.next().map(|record| record.partition);
                assert_eq!(
                    place,
                    Some(vector.partitions[nth]),
                    "{:?} of {count}",
                    vector.key
                );
                assert!(found.next().is_none(), "{:?} arrived twice", vector.key);
            }
        }
    });
}
