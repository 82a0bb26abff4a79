//! Holds what arrived against what was written.
//!
//! It needs nothing from the relay: the writers' ledger says which events exist, in which order
//! their aggregate had them, and what their bytes are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use uuid::Uuid;

use super::kafka::{Header, Record};

/// What became of the transaction that wrote an event, as its writer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Committed,
    RolledBack,
    /// The reply to `commit` was lost.
    Unknown,
}

/// One event as its writer knows it.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) id: Uuid,
    pub(crate) topic: String,
    pub(crate) key: String,
    /// The aggregate's own count of its events, without a gap.
    pub(crate) n: i64,
    /// As Postgres prints it.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<Header>,
    pub(crate) fate: Fate,
}

/// What is wrong, one line each, and the counts.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) committed: usize,
    pub(crate) rolled_back: usize,
    /// Committed events that arrived at least once.
    pub(crate) delivered: usize,
    /// Records beyond the first of their event.
    pub(crate) duplicates: usize,
    /// Committed, and in no topic.
    pub(crate) lost: Vec<String>,
    /// In a topic, and never committed.
    pub(crate) phantom: Vec<String>,
    /// A first occurrence out of its aggregate's order, or behind a gap.
    pub(crate) disordered: Vec<String>,
    /// Not in the partition that the Java client would choose.
    pub(crate) misplaced: Vec<String>,
    /// Key, value or headers differ from what was written, or from another copy.
    pub(crate) unequal: Vec<String>,
}

/// Compares the `records` of some topics with the `ledger` of everything written for them.
pub(crate) fn verify(
    ledger: &[Written],
    records: &[Record],
    partitions: &HashMap<String, i32>,
) -> Report {
    let mut report = Report::default();
    // An event's id is unique among those committed; a rolled-back one never comes again.
    let mut known = HashMap::new();
    let mut aggregates: BTreeMap<(&str, &str), Vec<&Written>> = BTreeMap::new();
    for event in ledger {
        assert_ne!(
            event.fate,
            Fate::Unknown,
            "ask the database what became of {}",
            event.id
        );
        known.insert(event.id, event);
        if event.fate == Fate::Committed {
            report.committed += 1;
            aggregates
                .entry((&event.topic, &event.key))
                .or_default()
                .push(event);
        } else {
            report.rolled_back += 1;
        }
    }

    let mut records: Vec<_> = records.iter().collect();
    records.sort_by_key(|record| (&record.topic, record.partition, record.offset));
    let mut first_copies: HashMap<Uuid, &Record> = HashMap::new();
    let mut arrived: HashMap<(&str, &str), Vec<&Written>> = HashMap::new();
    for record in records {
        let at = format!("{}/{}@{}", record.topic, record.partition, record.offset);
        let Some(event) = event_id(record).and_then(|id| known.get(&id)) else {
            report.phantom.push(format!("{at}: nobody wrote it"));
            continue;
        };
        if event.fate != Fate::Committed {
            report
                .phantom
                .push(format!("{at}: {} was rolled back", event.id));
            continue;
        }
        check_bytes(event, record, &at, &mut report);
        check_place(event, record, partitions, &at, &mut report);
        if let Some(first) = first_copies.get(&event.id) {
            report.duplicates += 1;
            if (&first.key, &first.value, &first.headers)
                != (&record.key, &record.value, &record.headers)
            {
                report
                    .unequal
                    .push(format!("{at}: another copy of {} differs", event.id));
            }
            continue;
        }
        first_copies.insert(event.id, record);
        report.delivered += 1;
        arrived
            .entry((&event.topic, &event.key))
            .or_default()
            .push(event);
    }

    for (aggregate, mut events) in aggregates {
        events.sort_by_key(|event| event.n);
        let came = arrived.remove(&aggregate).unwrap_or_default();
        let ids: HashSet<_> = came.iter().map(|event| event.id).collect();
        let lost = events.iter().filter(|event| !ids.contains(&event.id));
        let lost = lost.map(|event| format!("{} of {}: {}", event.n, event.key, event.id));
        report.lost.extend(lost);
        // One line an aggregate: behind the first fault everything is out of step.
        if let Some((due, event)) = events
            .iter()
            .zip(&came)
            .find(|(due, came)| due.id != came.id)
        {
            report.disordered.push(format!(
                "{}: {} arrived where {} was due",
                event.key, event.n, due.n
            ));
        }
    }
    report
}

/// The ids of the events that are there.
pub(crate) fn ids(records: &[Record]) -> HashSet<Uuid> {
    records.iter().filter_map(event_id).collect()
}

/// The id that a record says its event has.
fn event_id(record: &Record) -> Option<Uuid> {
    let (_, value) = record.headers.iter().find(|(name, _)| name == "event_id")?;
    Uuid::parse_str(str::from_utf8(value.as_deref()?).ok()?).ok()
}

fn check_bytes(event: &Written, record: &Record, at: &str, report: &mut Report) {
    let unequal = [
        ("key", record.key.as_deref() != Some(event.key.as_bytes())),
        ("value", record.value != event.value),
        ("headers", record.headers != event.headers),
    ];
    for (part, _) in unequal.iter().filter(|(_, unequal)| *unequal) {
        report.unequal.push(format!(
            "{at}: the {part} of {} is not what was written",
            event.id
        ));
    }
}

fn check_place(
    event: &Written,
    record: &Record,
    partitions: &HashMap<String, i32>,
    at: &str,
    report: &mut Report,
) {
    let right = partitions
        .get(&record.topic)
        .map(|count| java_partition(event.key.as_bytes(), *count));
    if record.topic != event.topic {
        report
            .misplaced
            .push(format!("{at}: {} belongs to {}", event.id, event.topic));
    } else if right != Some(record.partition) {
        report.misplaced.push(format!(
            "{at}: {} belongs to partition {right:?}",
            event.key
        ));
    }
}

impl Report {
    /// Fails the test unless all is right, with at most `duplicates_max` records too many.
    pub(crate) fn assert_clean(&self, duplicates_max: usize) {
        let faults = [
            &self.lost,
            &self.phantom,
            &self.disordered,
            &self.misplaced,
            &self.unequal,
        ];
        assert!(faults.iter().all(|fault| fault.is_empty()), "{self}");
        assert!(
            self.duplicates <= duplicates_max,
            "at most {duplicates_max} duplicates: {self}"
        );
    }

    /// Fails the test if an event is lost or out of its order; others than the ledger's may be there too.
    pub(crate) fn assert_whole(&self) {
        assert!(self.lost.is_empty() && self.disordered.is_empty(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "committed {}, rolled back {}, delivered {}, duplicates {}",
            self.committed, self.rolled_back, self.delivered, self.duplicates
        )?;
        for (name, lines) in [
            ("lost", &self.lost),
            ("phantom", &self.phantom),
            ("disordered", &self.disordered),
            ("misplaced", &self.misplaced),
            ("unequal", &self.unequal),
        ] {
            writeln!(f, "{name}: {}", lines.len())?;
            for line in lines.iter().take(5) {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

/// The partition that Kafka's Java client chooses for a key: murmur2, sign bit cleared, modulo.
pub(crate) fn java_partition(key: &[u8], partitions: i32) -> i32 {
    let positive = i32::try_from(murmur2(key) & 0x7fff_ffff).expect("31 bits");
    positive % partitions
}

/// MurmurHash2 with the seed that Kafka's clients use.
pub(crate) fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ u32::try_from(key.len()).expect("a key is short");
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "order-events";
    const PARTITIONS: i32 = 4;

    /// Three events for each of two orders, and one rolled back.
    fn ledger() -> Vec<Written> {
        let mut ledger = Vec::new();
        for key in ["a", "b"] {
            for n in 1..=3 {
                let id = Uuid::new_v4();
                ledger.push(Written {
                    id,
                    topic: TOPIC.to_owned(),
                    key: key.to_owned(),
                    n,
                    value: Some(format!("{{\"n\": {n}}}").into_bytes()),
                    headers: vec![
                        ("event_id".to_owned(), Some(id.to_string().into_bytes())),
                        ("event_type".to_owned(), Some(b"OrderChanged".to_vec())),
                    ],
                    fate: Fate::Committed,
                });
            }
        }
        let mut dropped = ledger[0].clone();
        dropped.id = Uuid::new_v4();
        dropped.headers[0].1 = Some(dropped.id.to_string().into_bytes());
        dropped.fate = Fate::RolledBack;
        ledger.push(dropped);
        ledger
    }

    fn record(event: &Written) -> Record {
        Record {
            topic: event.topic.clone(),
            partition: java_partition(event.key.as_bytes(), PARTITIONS),
            offset: 0,
            key: Some(event.key.clone().into_bytes()),
            value: event.value.clone(),
            headers: event.headers.clone(),
        }
    }

    /// What a faultless relay makes of the ledger.
    fn records(ledger: &[Written]) -> Vec<Record> {
        let committed = ledger.iter().filter(|event| event.fate == Fate::Committed);
        committed.map(record).collect()
    }

    fn check(ledger: &[Written], mut records: Vec<Record>) -> Report {
        for (offset, record) in (0..).zip(&mut records) {
            record.offset = offset;
        }
        verify(
            ledger,
            &records,
            &HashMap::from([(TOPIC.to_owned(), PARTITIONS)]),
        )
    }

    /// The counts of lost, phantom, disordered, misplaced and unequal.
    fn faults(report: &Report) -> [usize; 5] {
        [
            report.lost.len(),
            report.phantom.len(),
            report.disordered.len(),
            report.misplaced.len(),
            report.unequal.len(),
        ]
    }

    #[test]
    fn a_faultless_log_is_clean() {
        let ledger = ledger();
        let report = check(&ledger, records(&ledger));
        report.assert_clean(0);
        assert_eq!(
            (report.committed, report.rolled_back, report.delivered),
            (6, 1, 6)
        );
    }

    #[test]
    fn a_repeated_run_of_events_is_only_duplicates() {
        let ledger = ledger();
        let mut all = records(&ledger);
        let again = all[0..2].to_vec();
        all.splice(2..2, again);
        let report = check(&ledger, all);
        report.assert_clean(2);
        assert_eq!(report.duplicates, 2);
        assert!(std::panic::catch_unwind(|| report.assert_clean(1)).is_err());
    }

    #[test]
    fn a_missing_event_is_lost() {
        let ledger = ledger();
        let mut all = records(&ledger);
        all.remove(2);
        assert_eq!(faults(&check(&ledger, all)), [1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_missing_event_with_others_behind_it_is_lost_and_a_gap() {
        let ledger = ledger();
        let mut all = records(&ledger);
        all.remove(1);
        assert_eq!(faults(&check(&ledger, all)), [1, 0, 1, 0, 0]);
    }

    #[test]
    fn a_rolled_back_event_and_one_that_nobody_wrote_are_phantoms() {
        let ledger = ledger();
        let mut all = records(&ledger);
        all.push(record(&ledger[6]));
        let mut stranger = record(&ledger[0]);
        stranger.headers[0].1 = Some(Uuid::new_v4().to_string().into_bytes());
        all.push(stranger);
        let mut nameless = record(&ledger[0]);
        nameless.headers.clear();
        all.push(nameless);
        assert_eq!(faults(&check(&ledger, all)), [0, 3, 0, 0, 0]);
    }

    #[test]
    fn two_events_swapped_are_out_of_order() {
        let ledger = ledger();
        let mut all = records(&ledger);
        all.swap(0, 1);
        assert_eq!(faults(&check(&ledger, all)), [0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_late_first_copy_is_out_of_order_though_a_second_one_follows() {
        let ledger = ledger();
        let mut all = records(&ledger);
        let first = all.remove(0);
        all.splice(1..1, [first.clone(), first]);
        let report = check(&ledger, all);
        assert_eq!((faults(&report), report.duplicates), ([0, 0, 1, 0, 0], 1));
    }

    #[test]
    fn a_changed_byte_in_any_part_of_any_copy_is_unequal() {
        let ledger = ledger();
        let changes: [fn(&mut Record); 4] = [
            |record| record.key = Some(b"A".to_vec()),
            |record| record.value = Some(b"{\"n\":1}".to_vec()),
            |record| record.value = None,
            |record| record.headers.reverse(),
        ];
        for change in changes {
            let mut all = records(&ledger);
            change(&mut all[0]);
            assert_eq!(faults(&check(&ledger, all)), [0, 0, 0, 0, 1]);

            let mut all = records(&ledger);
            let mut copy = all[0].clone();
            change(&mut copy);
            all.push(copy);
            // Neither what was written nor what the first copy was.
            assert_eq!(faults(&check(&ledger, all)), [0, 0, 0, 0, 2]);
        }
    }

    #[test]
    fn another_partition_or_topic_is_misplaced() {
        let ledger = ledger();
        let mut all = records(&ledger);
        all[0].partition = (all[0].partition + 1) % PARTITIONS;
        assert_eq!(check(&ledger, all).misplaced.len(), 1);
        let mut all = records(&ledger);
        all[0].topic = "other".to_owned();
        assert_eq!(check(&ledger, all).misplaced.len(), 1);
    }
}
