//! Outcomes → one verdict per row. Pure: no clock, no socket, no await. The order promise is kept
//! here, so nothing else may decide what is marked.
//!
//! Rows come in outbox order. Order is kept per *stream*, one aggregate in one topic; parking under
//! [`Policy::Block`] holds the whole aggregate, whatever the topic.
//!
//! **Invariants** (property-tested below)
//! - A row is [`Verdict::Done`] only if it was delivered, and only if no earlier row of its stream
//!   is unfinished. A row that was delivered past an unfinished one is released; it will arrive
//!   twice, and its first arrival broke no promise that marking it would mend.
//! - Under `Block` no row of an aggregate is done after one of them was parked.
//! - Every row gets exactly one verdict, and a parked row keeps its own reason.
//!
//! **Drawback chosen**: a delivered row behind an unfinished one is published again. Marking it
//! would save the repeat and could make a later failure of the earlier row invisible.

use std::collections::HashSet;

use crate::outcome::{Outcome, Reason};

/// What a rejected row means for the rest of its aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The aggregate waits until somebody decides: no gap by accident.
    #[default]
    Block,
    /// The row is parked and its aggregate goes on.
    DeadLetter,
}

/// What order is kept for: a row's aggregate and the topic it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// See [`crate::event::Event::key`].
    pub key: &'a str,
    /// `None` where the row could not be routed.
    pub topic: Option<&'a str>,
}

/// What becomes of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Mark or delete it: Kafka has it.
    Done,
    /// Move it to the parked rows with this reason.
    Park(Reason),
    /// Move it to the parked rows, behind the row its aggregate waits for.
    Behind,
    /// Leave it where it is, for the next attempt.
    Release,
}

/// Judges `rows`, given in outbox order, by the outcome of each.
///
/// # Panics
/// If there is not one outcome per row.
#[must_use]
pub fn settle<'a>(rows: &[Row<'a>], outcomes: &[Outcome], policy: Policy) -> Vec<Verdict> {
    assert_eq!(rows.len(), outcomes.len(), "one outcome per row");
    if outcomes
        .iter()
        .all(|outcome| matches!(outcome, Outcome::Delivered { .. }))
    {
        return vec![Verdict::Done; rows.len()];
    }
    let mut unfinished = HashSet::new();
    let mut blocked = HashSet::new();
    let judge = |(row, outcome): (&Row<'a>, &Outcome)| {
        if blocked.contains(row.key) {
            return Verdict::Behind;
        }
        let stream = (row.key, row.topic);
        if unfinished.contains(&stream) {
            return Verdict::Release;
        }
        match outcome {
            Outcome::Delivered { .. } => Verdict::Done,
            Outcome::Rejected(reason) => {
                if policy == Policy::Block {
                    blocked.insert(row.key);
                }
                Verdict::Park(reason.clone())
            }
            Outcome::Held => {
                blocked.insert(row.key);
                Verdict::Behind
            }
            Outcome::Suspect | Outcome::Paused | Outcome::Unfinished => {
                unfinished.insert(stream);
                Verdict::Release
            }
        }
    };
    rows.iter().zip(outcomes).map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            4 => Just(Outcome::Delivered { partition: 0, offset: 0 }),
            1 => Just(Outcome::Rejected(Reason::new("too_large", "for the test"))),
            1 => Just(Outcome::Unfinished),
            1 => Just(Outcome::Suspect),
            1 => Just(Outcome::Paused),
            1 => Just(Outcome::Held),
        ]
    }

    type Rows = Vec<(String, Option<String>)>;

    fn batch() -> impl Strategy<Value = (Rows, Vec<Outcome>, Policy)> {
        let row = (
            "[abc]",
            prop_oneof![
                Just(Some("t".to_owned())),
                Just(Some("u".to_owned())),
                Just(None)
            ],
        );
        let policy = prop_oneof![Just(Policy::Block), Just(Policy::DeadLetter)];
        (proptest::collection::vec((row, outcome()), 0..40), policy).prop_map(|(pairs, policy)| {
            let (rows, outcomes) = pairs.into_iter().unzip();
            (rows, outcomes, policy)
        })
    }

    fn rows(rows: &Rows) -> Vec<Row<'_>> {
        rows.iter()
            .map(|(key, topic)| Row {
                key,
                topic: topic.as_deref(),
            })
            .collect()
    }

    fn delivered(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Delivered { .. })
    }

    proptest! {
        #[test]
        fn nothing_past_a_streams_first_unfinished_row_is_ever_done((keys, outcomes, policy) in batch()) {
            let rows = rows(&keys);
            let verdicts = settle(&rows, &outcomes, policy);
            prop_assert_eq!(verdicts.len(), rows.len());
            for (i, verdict) in verdicts.iter().enumerate() {
                if *verdict != Verdict::Done {
                    continue;
                }
                prop_assert!(delivered(&outcomes[i]), "row {} was never delivered", i);
                for j in 0..i {
                    let same = rows[j] == rows[i];
                    prop_assert!(!(same && verdicts[j] == Verdict::Release), "{} is done past {}", i, j);
                }
            }
        }

        #[test]
        fn under_block_an_aggregate_waits_behind_its_first_parked_row((keys, outcomes, _) in batch()) {
            let rows = rows(&keys);
            let verdicts = settle(&rows, &outcomes, Policy::Block);
            for i in 0..rows.len() {
                let waits = |j: usize| {
                    rows[j].key == rows[i].key && matches!(verdicts[j], Verdict::Park(_) | Verdict::Behind)
                };
                if (0..i).any(waits) {
                    prop_assert_eq!(&verdicts[i], &Verdict::Behind);
                }
            }
        }

        #[test]
        fn only_what_was_rejected_is_parked_and_only_behind_something_is_behind((keys, outcomes, policy) in batch()) {
            let rows = rows(&keys);
            let verdicts = settle(&rows, &outcomes, policy);
            for (i, verdict) in verdicts.iter().enumerate() {
                match verdict {
                    Verdict::Park(reason) => prop_assert_eq!(&Outcome::Rejected(reason.clone()), &outcomes[i]),
                    Verdict::Behind => prop_assert!((0..=i).any(|j| rows[j].key == rows[i].key
                        && (outcomes[j] == Outcome::Held || matches!(verdicts[j], Verdict::Park(_))))),
                    Verdict::Done | Verdict::Release => {}
                }
            }
        }

        #[test]
        fn streams_without_trouble_are_done((keys, outcomes, policy) in batch()) {
            let rows = rows(&keys);
            let verdicts = settle(&rows, &outcomes, policy);
            for i in 0..rows.len() {
                let calm = (0..=i).all(|j| rows[j].key != rows[i].key || delivered(&outcomes[j]));
                if calm {
                    prop_assert_eq!(&verdicts[i], &Verdict::Done);
                }
            }
        }
    }

    #[test]
    fn a_delivered_row_behind_an_unfinished_one_is_released() {
        let row = Row {
            key: "a",
            topic: Some("t"),
        };
        let other = Row {
            key: "a",
            topic: Some("u"),
        };
        let ok = Outcome::Delivered {
            partition: 0,
            offset: 3,
        };
        let verdicts = settle(
            &[row, row, other],
            &[Outcome::Unfinished, ok.clone(), ok],
            Policy::Block,
        );
        assert_eq!(
            verdicts,
            [Verdict::Release, Verdict::Release, Verdict::Done]
        );
    }

    #[test]
    fn a_dead_letter_lets_its_aggregate_go_on() {
        let row = Row {
            key: "a",
            topic: Some("t"),
        };
        let ok = Outcome::Delivered {
            partition: 0,
            offset: 3,
        };
        let reason = Reason::new("too_large", "for the test");
        let outcomes = [Outcome::Rejected(reason.clone()), ok];
        let park = Verdict::Park(reason);
        assert_eq!(
            settle(&[row, row], &outcomes, Policy::DeadLetter),
            [park.clone(), Verdict::Done]
        );
        assert_eq!(
            settle(&[row, row], &outcomes, Policy::Block),
            [park, Verdict::Behind]
        );
    }
}
