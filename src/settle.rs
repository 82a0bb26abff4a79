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
//! - No row of an aggregate is done after one of them was parked under `Block`, whatever the policies
//!   of the later ones.
//! - A row that was rejected under `DeadLetter` holds nothing back.
//! - Every row gets exactly one verdict, and a parked row keeps its own reason and policy.
//!
//! **Drawback chosen**: a delivered row behind an unfinished one is published again. Marking it
//! would save the repeat and could make a later failure of the earlier row invisible.

use std::collections::{BTreeMap, HashSet};

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

/// The policy of each event type of an outbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policies {
    /// Of the event types that are not named.
    pub usual: Policy,
    /// By event type, as the rows have it.
    pub by_event_type: BTreeMap<String, Policy>,
}

impl Policies {
    /// What a rejected row of `event_type` means for its aggregate.
    #[must_use]
    pub fn of(&self, event_type: &str) -> Policy {
        let named = self.by_event_type.get(event_type);
        named.copied().unwrap_or(self.usual)
    }
}

impl From<Policy> for Policies {
    fn from(usual: Policy) -> Self {
        Self {
            usual,
            by_event_type: BTreeMap::new(),
        }
    }
}

/// What order is kept for: a row's aggregate and the topic it goes to. And what it means for its
/// aggregate if it is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// See [`crate::event::Event::key`].
    pub key: &'a str,
    /// `None` where the row could not be routed.
    pub topic: Option<&'a str>,
    /// Of the row's event type: see [`Policies::of`].
    pub policy: Policy,
}

/// What becomes of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Mark or delete it: Kafka has it.
    Done,
    /// Move it to the parked rows with this reason, its aggregate to wait for it or not.
    Park(Reason, Policy),
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
pub fn settle<'a>(
    rows: impl ExactSizeIterator<Item = Row<'a>>,
    outcomes: &[Outcome],
) -> Vec<Verdict> {
    assert_eq!(rows.len(), outcomes.len(), "one outcome per row");
    if outcomes
        .iter()
        .all(|outcome| matches!(outcome, Outcome::Delivered { .. }))
    {
        return vec![Verdict::Done; rows.len()];
    }
    let mut unfinished = HashSet::new();
    let mut blocked = HashSet::new();
    let judge = |(row, outcome): (Row<'a>, &Outcome)| {
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
                if row.policy == Policy::Block {
                    blocked.insert(row.key);
                }
                Verdict::Park(reason.clone(), row.policy)
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
    rows.zip(outcomes).map(judge).collect()
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

    type Rows = Vec<(String, Option<String>, Policy)>;

    /// Rows of few aggregates, in few topics, each of the policy that `policy` gives its event type.
    fn batch(policy: impl Strategy<Value = Policy>) -> impl Strategy<Value = (Rows, Vec<Outcome>)> {
        let row = (
            "[abc]",
            prop_oneof![
                Just(Some("t".to_owned())),
                Just(Some("u".to_owned())),
                Just(None)
            ],
            policy,
        );
        proptest::collection::vec((row, outcome()), 0..40)
            .prop_map(|pairs| pairs.into_iter().unzip())
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        prop_oneof![Just(Policy::Block), Just(Policy::DeadLetter)]
    }

    fn rows(rows: &Rows) -> Vec<Row<'_>> {
        rows.iter()
            .map(|(key, topic, policy)| Row {
                key,
                topic: topic.as_deref(),
                policy: *policy,
            })
            .collect()
    }

    fn delivered(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Delivered { .. })
    }

    proptest! {
        #[test]
        fn nothing_past_a_streams_first_unfinished_row_is_ever_done((keys, outcomes) in batch(any_policy())) {
            let rows = rows(&keys);
            let verdicts = settle(rows.iter().copied(), &outcomes);
            prop_assert_eq!(verdicts.len(), rows.len());
            for (i, verdict) in verdicts.iter().enumerate() {
                if *verdict != Verdict::Done {
                    continue;
                }
                prop_assert!(delivered(&outcomes[i]), "row {} was never delivered", i);
                for j in 0..i {
                    let same = (rows[j].key, rows[j].topic) == (rows[i].key, rows[i].topic);
                    prop_assert!(!(same && verdicts[j] == Verdict::Release), "{} is done past {}", i, j);
                }
            }
        }

        #[test]
        fn an_aggregate_waits_behind_its_first_row_that_blocks((keys, outcomes) in batch(any_policy())) {
            let rows = rows(&keys);
            let verdicts = settle(rows.iter().copied(), &outcomes);
            for i in 0..rows.len() {
                let waits = |j: usize| {
                    rows[j].key == rows[i].key
                        && matches!(verdicts[j], Verdict::Park(_, Policy::Block) | Verdict::Behind)
                };
                if (0..i).any(waits) {
                    prop_assert_eq!(&verdicts[i], &Verdict::Behind);
                }
            }
        }

        #[test]
        fn a_dead_letter_changes_nothing_for_the_rows_after_it((keys, outcomes) in batch(any_policy())) {
            let all = rows(&keys);
            let verdicts = settle(all.iter().copied(), &outcomes);
            let dead = |i: &usize| matches!(verdicts[*i], Verdict::Park(_, Policy::DeadLetter));
            let kept: Vec<usize> = (0..all.len()).filter(|i| !dead(i)).collect();
            let rows: Vec<_> = kept.iter().map(|i| all[*i]).collect();
            let outcomes: Vec<_> = kept.iter().map(|i| outcomes[*i].clone()).collect();
            let without = settle(rows.iter().copied(), &outcomes);
            for (i, verdict) in kept.iter().zip(&without) {
                prop_assert_eq!(&verdicts[*i], verdict);
            }
        }

        #[test]
        fn only_what_was_rejected_is_parked_and_only_behind_something_is_behind((keys, outcomes) in batch(any_policy())) {
            let rows = rows(&keys);
            let verdicts = settle(rows.iter().copied(), &outcomes);
            for (i, verdict) in verdicts.iter().enumerate() {
                match verdict {
                    Verdict::Park(reason, policy) => {
                        prop_assert_eq!(&Outcome::Rejected(reason.clone()), &outcomes[i]);
                        prop_assert_eq!(*policy, rows[i].policy);
                    }
                    Verdict::Behind => prop_assert!((0..=i).any(|j| rows[j].key == rows[i].key
                        && (outcomes[j] == Outcome::Held || matches!(verdicts[j], Verdict::Park(_, Policy::Block))))),
                    Verdict::Done | Verdict::Release => {}
                }
            }
        }

        #[test]
        fn streams_without_trouble_are_done((keys, outcomes) in batch(any_policy())) {
            let rows = rows(&keys);
            let verdicts = settle(rows.iter().copied(), &outcomes);
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
        let row = row("t", Policy::Block);
        let other = self::row("u", Policy::Block);
        let ok = Outcome::Delivered {
            partition: 0,
            offset: 3,
        };
        let verdicts = settle(
            [row, row, other].into_iter(),
            &[Outcome::Unfinished, ok.clone(), ok],
        );
        assert_eq!(
            verdicts,
            [Verdict::Release, Verdict::Release, Verdict::Done]
        );
    }

    fn row(topic: &str, policy: Policy) -> Row<'_> {
        Row {
            key: "a",
            topic: Some(topic),
            policy,
        }
    }

    #[test]
    fn a_dead_letter_lets_its_aggregate_go_on() {
        let ok = Outcome::Delivered {
            partition: 0,
            offset: 3,
        };
        let reason = Reason::new("too_large", "for the test");
        let outcomes = [Outcome::Rejected(reason.clone()), ok];
        for (policy, next) in [
            (Policy::DeadLetter, Verdict::Done),
            (Policy::Block, Verdict::Behind),
        ] {
            // the policy of the row that is rejected decides, not that of the one behind it
            for other in [Policy::Block, Policy::DeadLetter] {
                let rows = [row("t", policy), row("t", other)];
                let park = Verdict::Park(reason.clone(), policy);
                assert_eq!(
                    settle(rows.iter().copied(), &outcomes),
                    [park, next.clone()]
                );
            }
        }
    }

    #[test]
    fn an_event_type_that_is_named_has_a_policy_of_its_own() {
        let mut policies = Policies::from(Policy::Block);
        let named = "OrderViewed".to_owned();
        policies.by_event_type.insert(named, Policy::DeadLetter);
        assert_eq!(policies.of("OrderViewed"), Policy::DeadLetter);
        assert_eq!(policies.of("OrderPaid"), Policy::Block);
        assert_eq!(policies.of("orderviewed"), Policy::Block);
    }
}
