//! Kafka's error codes → whose fault it was. Pure.
//!
//! **A report without an error is not yet an acknowledgement.** The broker accepts any first
//! sequence number of a producer id it has no state for. If the first request failed retriably and
//! a second one got in, librdkafka takes the second's success for the first's too and reports the
//! first as delivered, "implicitly", with offset −1001 (`RD_KAFKA_OFFSET_INVALID`), though it is
//! not in the log (librdkafka `rdkafka_request.c`, `rd_kafka_handle_idempotent_Produce_error` and
//! the implicit ack in `rd_kafka_handle_Produce`; reproduced on 2.12). The same offset comes with
//! `DUPLICATE_SEQUENCE_NUMBER`. So a report counts only with the offset the broker gave: ≥ 0.

use std::fmt;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::ops::{Mistake, makes};
use crate::outcome::{Outcome, Reason};

/// Whose fault an error is, and so what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The broker's word on the record, or on the batch it travelled in.
    Record(RecordFault),
    /// The topic cannot be written now, whatever the record.
    Topic(TopicFault),
    /// The cluster, the network or the identity: it will pass, or somebody has to mend it.
    Cluster,
    /// The producer is done for; nothing is known of the record.
    Producer,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordFault {
    TooLarge,
    Invalid,
}

/// What is wrong with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopicFault {
    /// It does not exist, or the relay may not know that it does.
    Unknown,
    /// The relay may not write to it.
    Denied,
    /// It exists and no broker leads any of its partitions.
    Leaderless,
    /// Its records are not answered for, though the cluster answers: librdkafka tries again for
    /// ever, below the minimum of in-sync replicas for one.
    Silent,
    /// It takes nothing for a reason of its own.
    Refuses(Code),
}

impl Fault {
    /// Whose fault `code` is.
    pub(super) fn of(code: Code) -> Self {
        match code {
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
                Self::Record(RecordFault::TooLarge)
            }
            Code::InvalidRecord => Self::Record(RecordFault::Invalid),

            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::UnknownTopicId => Self::Topic(TopicFault::Unknown),
            Code::TopicAuthorizationFailed => Self::Topic(TopicFault::Denied),
            Code::LeaderNotAvailable => Self::Topic(TopicFault::Leaderless),
            // A wrong clock, a broker policy, an old message format, a codec the topic forbids:
            // every record of the topic would fare the same.
            Code::InvalidTopic
            | Code::PolicyViolation
            | Code::InvalidTimestamp
            | Code::InvalidRequiredAcks
            | Code::UnsupportedForMessageFormat
            | Code::UnsupportedCompressionType => Self::Topic(TopicFault::Refuses(code)),

            // The batch was refused for another record in it, or by our own purge; or the
            // producer's sequence broke. None of it says anything about this record.
            Code::InvalidDifferentRecord
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::Fatal
            | Code::GaplessGuarantee
            | Code::Inconsistent
            | Code::OutOfOrderSequenceNumber
            | Code::DuplicateSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerIdMapping
            | Code::InvalidProducerEpoch
            | Code::ProducerFenced
            | Code::Fenced
            | Code::State => Self::Producer,

            // Everything else, codes of later versions included, is never held against a row.
            _ => Self::Cluster,
        }
    }
}

/// Whether a broker gave this offset: see the head of this file.
pub(super) fn is_real(offset: i64) -> bool {
    offset >= 0 || makes(Mistake::BelieveNoOffset)
}

/// What a delivery report says of a record. `alone` tells that no other record shared its batch.
pub(super) fn of_report(report: Result<(i32, i64), Code>, alone: bool) -> Outcome {
    match report {
        Ok((partition, offset)) if is_real(offset) => Outcome::Delivered { partition, offset },
        // the false acknowledgement
        Ok(_) => Outcome::Unfinished,
        Err(code) => match Fault::of(code) {
            Fault::Record(fault) if alone => Outcome::Rejected(refused(fault, code)),
            Fault::Record(_) => Outcome::Suspect,
            Fault::Topic(_) => Outcome::Paused,
            Fault::Cluster | Fault::Producer => Outcome::Unfinished,
        },
    }
}

/// The reason to park a record that the broker refused.
fn refused(fault: RecordFault, code: Code) -> Reason {
    match fault {
        RecordFault::TooLarge => Reason::new(
            "too_large",
            format!("the broker refused the record for its size: {code}"),
        ),
        RecordFault::Invalid => Reason::new(
            "invalid_record",
            format!("the broker refused the record: {code}"),
        ),
    }
}

/// `error` in words that hold no setting's value: those may be secrets.
pub(super) fn in_words(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => {
            format!("librdkafka does not accept the value of `{key}`")
        }
        error => match error.rdkafka_error_code() {
            Some(code) => code.to_string(),
            None => error.to_string(),
        },
    }
}

impl TopicFault {
    /// A short, stable word for metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Denied => "denied",
            Self::Leaderless => "leaderless",
            Self::Silent => "silent",
            Self::Refuses(_) => "refuses",
        }
    }
}

impl fmt::Display for TopicFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("does not exist, or the relay may not see it"),
            Self::Denied => f.write_str("may not be written by the relay"),
            Self::Leaderless => f.write_str("has no leader for any of its partitions"),
            Self::Silent => f.write_str("takes no records though the cluster answers"),
            Self::Refuses(code) => write!(f, "refuses records: {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_counts_only_with_a_real_offset() {
        let delivered = Outcome::Delivered {
            partition: 3,
            offset: 0,
        };
        assert_eq!(of_report(Ok((3, 0)), false), delivered);
        for offset in [-1001, -1, i64::MIN] {
            assert_eq!(of_report(Ok((3, offset)), false), Outcome::Unfinished);
            assert_eq!(of_report(Ok((3, offset)), true), Outcome::Unfinished);
        }
    }

    #[test]
    fn a_record_is_rejected_only_when_it_was_alone() {
        for (code, class) in [
            (Code::MessageSizeTooLarge, "too_large"),
            (Code::MessageBatchTooLarge, "too_large"),
            (Code::InvalidRecord, "invalid_record"),
        ] {
            assert_eq!(of_report(Err(code), false), Outcome::Suspect, "{code:?}");
            match of_report(Err(code), true) {
                Outcome::Rejected(reason) => assert_eq!(reason.class, class, "{code:?}"),
                other => panic!("{code:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn nothing_but_a_record_fault_is_ever_held_against_a_row() {
        for (code, outcome) in [
            (Code::UnknownTopic, Outcome::Paused),
            (Code::UnknownTopicOrPartition, Outcome::Paused),
            (Code::UnknownPartition, Outcome::Paused),
            (Code::TopicAuthorizationFailed, Outcome::Paused),
            (Code::InvalidTopic, Outcome::Paused),
            (Code::PolicyViolation, Outcome::Paused),
            (Code::InvalidTimestamp, Outcome::Paused),
            (Code::LeaderNotAvailable, Outcome::Paused),
            (Code::InvalidDifferentRecord, Outcome::Unfinished),
            (Code::PurgeQueue, Outcome::Unfinished),
            (Code::PurgeInflight, Outcome::Unfinished),
            (Code::GaplessGuarantee, Outcome::Unfinished),
            (Code::Fatal, Outcome::Unfinished),
            (Code::OutOfOrderSequenceNumber, Outcome::Unfinished),
            (Code::MessageTimedOut, Outcome::Unfinished),
            (Code::BrokerTransportFailure, Outcome::Unfinished),
            (Code::AllBrokersDown, Outcome::Unfinished),
            (Code::NotEnoughReplicas, Outcome::Unfinished),
            (Code::ClusterAuthorizationFailed, Outcome::Unfinished),
            (Code::SaslAuthenticationFailed, Outcome::Unfinished),
            (Code::Authentication, Outcome::Unfinished),
            (Code::InvalidMessage, Outcome::Unfinished),
            (Code::Unknown, Outcome::Unfinished),
        ] {
            for alone in [false, true] {
                assert_eq!(of_report(Err(code), alone), outcome, "{code:?}");
            }
        }
    }

    #[test]
    fn a_bad_setting_is_told_without_its_value() {
        let error = rdkafka::ClientConfig::new()
            .set("sasl.mechanism", "GSSAPI")
            .set("linger.ms", "hunter2")
            .create_native_config()
            .err()
            .unwrap();
        let text = in_words(&error);
        assert!(
            text.contains("linger.ms") && !text.contains("hunter2"),
            "{text}"
        );
    }
}
