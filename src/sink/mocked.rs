//! The sink against librdkafka's mock cluster: how errors are mapped, and nothing else. The mock
//! skips the checks of sequence numbers, so it is no evidence for order or loss.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::time::{sleep, timeout};

use super::{Attempt, Held, KafkaSink, Sink, Topics, testing};
use crate::config::Secret;
use crate::ops::controls::{Controls, Paused};
use crate::outcome::Outcome;
use crate::record::Record;

pub(super) type Mock = MockCluster<'static, DefaultProducerContext>;

pub(super) fn cluster(topics: &[&str]) -> (Mock, KafkaSink) {
    let mock = MockCluster::new(1).unwrap();
    for topic in topics {
        mock.create_topic(topic, 4, 1).unwrap();
    }
    let (mut kafka, relay) = (testing::kafka(&mock.bootstrap_servers()), testing::relay());
    // What is published together is one request, so that an error is everybody's. Of two requests the mock
    // would let in the second although the first failed, which a broker that looks at sequence numbers does not.
    let linger_ms = Secret::new("50");
    kafka.properties.insert("linger.ms".to_owned(), linger_ms);
    let topics = Arc::new(Topics::new(&kafka, &relay));
    (mock, KafkaSink::new(&kafka, &relay, topics))
}

pub(super) fn record(topic: &str, key: &str) -> Record<'static> {
    Record {
        topic: topic.to_owned().into(),
        key: key.as_bytes().to_vec().into(),
        value: Some(b"v".to_vec().into()),
        headers: Vec::new().into(),
    }
}

pub(super) fn together<'a>(records: &'a [Record<'a>]) -> Vec<Attempt<'a>> {
    let attempt = |record| Attempt {
        record,
        alone: false,
    };
    records.iter().map(attempt).collect()
}

pub(super) fn delivered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Delivered { .. })
}

pub(super) async fn publish(sink: &mut KafkaSink, attempts: &[Attempt<'_>]) -> Vec<Outcome> {
    timeout(Duration::from_secs(20), sink.publish(attempts, pending()))
        .await
        .unwrap()
}

#[tokio::test]
async fn an_unknown_topic_pauses_and_others_flow() {
    let (mock, mut sink) = cluster(&["known"]);
    mock.topic_error(
        "gone",
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    )
    .unwrap();
    let records = [
        record("gone", "a"),
        record("known", "a"),
        record("gone", "b"),
        record("known", "b"),
    ];
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert_eq!(
        (&outcomes[0], &outcomes[2]),
        (&Outcome::Paused, &Outcome::Paused)
    );
    assert!(
        delivered(&outcomes[1]) && delivered(&outcomes[3]),
        "{outcomes:?}"
    );
    assert_eq!(sink.paused(), ["gone".to_owned()].into());

    mock.topic_error("gone", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR)
        .unwrap();
    while !sink.paused().is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
    sink.close().await;
}

#[tokio::test]
async fn a_refusal_suspects_a_batch_and_rejects_a_record_alone() {
    let (mock, mut sink) = cluster(&["t"]);
    let warm = [record("t", "a")];
    assert!(
        publish(&mut sink, &together(&warm))
            .await
            .iter()
            .all(delivered)
    );

    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    mock.request_errors(RDKafkaApiKey::Produce, &[too_large]);
    let records = [record("t", "a"), record("t", "a"), record("t", "a")];
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert_eq!(outcomes[0], Outcome::Suspect);
    assert!(
        !outcomes.iter().any(delivered),
        "nothing of the key passes a refusal: {outcomes:?}"
    );

    mock.request_errors(RDKafkaApiKey::Produce, &[too_large]);
    let mut attempts = together(&records);
    attempts[0].alone = true;
    let outcomes = publish(&mut sink, &attempts).await;
    match &outcomes[0] {
        Outcome::Rejected(reason) => assert_eq!(reason.class, "too_large"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        outcomes[1..],
        [Outcome::Unfinished, Outcome::Unfinished],
        "its key waits"
    );

    // the producer was made anew: the rest flows
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
}

#[tokio::test]
async fn after_a_record_alone_was_refused_other_keys_go_on_in_the_same_publish() {
    let (mock, mut sink) = cluster(&["t"]);
    let warm = [record("t", "a")];
    assert!(
        publish(&mut sink, &together(&warm))
            .await
            .iter()
            .all(delivered)
    );
    mock.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD],
    );
    let records = [record("t", "a"), record("t", "b"), record("t", "a")];
    let mut attempts = together(&records);
    attempts[0].alone = true;
    let outcomes = publish(&mut sink, &attempts).await;
    assert!(matches!(&outcomes[0], Outcome::Rejected(reason) if reason.class == "invalid_record"));
    assert!(delivered(&outcomes[1]), "{outcomes:?}");
    assert_eq!(outcomes[2], Outcome::Unfinished);
}

#[tokio::test]
async fn a_topic_that_may_not_be_written_is_found_by_one_record() {
    let (mock, mut sink) = cluster(&["denied"]);
    mock.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
    );
    let records = [
        record("denied", "a"),
        record("denied", "b"),
        record("denied", "a"),
    ];
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert_eq!(
        outcomes,
        [Outcome::Paused, Outcome::Paused, Outcome::Paused]
    );
    assert_eq!(sink.paused(), ["denied".to_owned()].into());
    while !sink.paused().is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(
        outcomes.iter().all(delivered),
        "one error was pushed, one record met it: {outcomes:?}"
    );
}

#[tokio::test]
async fn what_is_left_at_the_deadline_is_withdrawn_and_goes_when_the_broker_is_back() {
    let (mock, mut sink) = cluster(&["t"]);
    sink.ready().await;
    let records = [record("t", "a"), record("t", "b")];
    assert!(
        publish(&mut sink, &together(&records))
            .await
            .iter()
            .all(delivered)
    );

    mock.broker_down(1).unwrap();
    let begun = tokio::time::Instant::now();
    let outcomes = sink
        .publish(&together(&records), sleep(Duration::from_millis(500)))
        .await;
    assert_eq!(outcomes, [Outcome::Unfinished, Outcome::Unfinished]);
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        timeout(Duration::from_secs(1), sink.ready()).await.is_err(),
        "away"
    );
    assert!(!sink.topics().reachable());

    mock.broker_up(1).unwrap();
    timeout(Duration::from_secs(5), sink.ready())
        .await
        .expect("back within 5 s");
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
    assert!(sink.topics().reachable());
}

/// Two brokers. The second leads `theirs`: while it is down they take nothing, and the cluster
/// answers. (The mock has no better way: it dies of a record for a partition without a leader.)
fn cluster_of_two(topics: &[&str], theirs: &[(&str, i32)]) -> (Mock, KafkaSink) {
    let mock = MockCluster::new(2).unwrap();
    for topic in topics {
        mock.create_topic(topic, 4, 1).unwrap();
        for partition in 0..4 {
            let leader = 1 + i32::from(theirs.contains(&(topic, partition)));
            mock.partition_leader(topic, partition, Some(leader))
                .unwrap();
        }
    }
    let (kafka, relay) = (testing::kafka(&mock.bootstrap_servers()), testing::relay());
    let topics = Arc::new(Topics::new(&kafka, &relay));
    (mock, KafkaSink::new(&kafka, &relay, topics))
}

#[tokio::test]
async fn a_topic_that_is_silent_though_the_cluster_answers_pauses_alone() {
    let theirs = [0, 1, 2, 3].map(|partition| ("silent", partition));
    let (mock, mut sink) = cluster_of_two(&["silent", "well"], &theirs);
    let records = [
        record("silent", "a"),
        record("well", "a"),
        record("silent", "a"),
        record("silent", "b"),
        record("well", "b"),
    ];
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");

    // it was looked at a moment ago: nothing but silence tells
    mock.broker_down(2).unwrap();
    let outcomes = sink
        .publish(&together(&records), sleep(Duration::from_millis(1500)))
        .await;
    assert!(
        delivered(&outcomes[1]) && delivered(&outcomes[4]),
        "{outcomes:?}"
    );
    for i in [0, 2, 3] {
        assert_eq!(outcomes[i], Outcome::Paused, "{outcomes:?}");
    }
    let waits = |sink: &KafkaSink| {
        ["a", "b"]
            .iter()
            .all(|key| sink.keeps_waiting("silent", key))
    };
    assert!(waits(&sink) && !sink.keeps_waiting("well", "a"));
    assert!(sink.topics().reachable());

    mock.broker_up(2).unwrap();
    while waits(&sink) {
        sleep(Duration::from_millis(20)).await;
    }
    publish(&mut sink, &together(&records)).await;
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
}

#[tokio::test]
async fn partitions_that_stay_silent_starve_no_new_topic() {
    let names = ["a", "b", "c"];
    let all = |topic| (0..4).map(move |partition| (topic, partition));
    let theirs: Vec<_> = names.into_iter().flat_map(all).collect();
    let (mock, mut sink) = cluster_of_two(&["a", "b", "c", "new"], &theirs);
    mock.broker_down(2).unwrap();
    for topic in names {
        let records = [record(topic, "k")];
        let outcomes = sink
            .publish(&together(&records), sleep(Duration::from_millis(1500)))
            .await;
        assert_eq!(outcomes, [Outcome::Paused]);
        assert!(sink.keeps_waiting(topic, "k"));
    }
    while names.iter().any(|topic| sink.keeps_waiting(topic, "k")) {
        sleep(Duration::from_millis(20)).await;
    }
    let records = ["a", "b", "c", "new"].map(|topic| record(topic, "k"));
    let begun = tokio::time::Instant::now();
    let outcomes = publish(&mut sink, &together(&records)).await;
    let took = begun.elapsed();
    for outcome in &outcomes[..3] {
        assert_eq!(*outcome, Outcome::Paused);
    }
    assert!(delivered(&outcomes[3]), "{outcomes:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn a_topic_below_its_min_isr_is_silent() {
    let (mock, mut sink) = cluster(&["t"]);
    let records = [record("t", "a")];
    // librdkafka tries again and again: it never runs out of these
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1000];
    mock.request_errors(RDKafkaApiKey::Produce, &errors);
    let outcomes = sink
        .publish(&together(&records), sleep(Duration::from_millis(1500)))
        .await;
    assert_eq!(outcomes, [Outcome::Paused]);
    mock.clear_request_errors(RDKafkaApiKey::Produce);
    while sink.keeps_waiting("t", "a") {
        sleep(Duration::from_millis(20)).await;
    }
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
}

#[tokio::test]
async fn a_silent_partition_holds_its_own_keys_and_no_others() {
    let (mock, mut sink) = cluster_of_two(&["t"], &[("t", 2)]);
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let records = keys.map(|key| record("t", key));
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
    let theirs = |outcome: &Outcome| matches!(outcome, Outcome::Delivered { partition: 2, .. });
    let theirs: Vec<bool> = outcomes.iter().map(theirs).collect();
    assert!(theirs.contains(&true) && theirs.contains(&false));
    let held = |outcomes: &[Outcome]| {
        let pairs = outcomes.iter().zip(&theirs);
        pairs.for_each(|(outcome, held)| match held {
            true => assert_eq!(*outcome, Outcome::Paused),
            false => assert!(delivered(outcome), "{outcomes:?}"),
        });
    };

    mock.broker_down(2).unwrap();
    let outcomes = sink
        .publish(&together(&records), sleep(Duration::from_millis(1500)))
        .await;
    held(&outcomes);
    assert!(sink.paused().is_empty(), "the topic takes records");
    let waits = |sink: &KafkaSink| keys.map(|key| sink.keeps_waiting("t", key)).to_vec();
    assert_eq!(waits(&sink), theirs);

    let begun = tokio::time::Instant::now();
    held(&publish(&mut sink, &together(&records)).await);
    let at_once = begun.elapsed();
    assert!(at_once < Duration::from_secs(1), "{at_once:?}");

    // one record tries it, for a short time
    while waits(&sink) == theirs {
        sleep(Duration::from_millis(20)).await;
    }
    held(&publish(&mut sink, &together(&records)).await);
    assert_eq!(waits(&sink), theirs);

    mock.broker_up(2).unwrap();
    while waits(&sink) == theirs {
        sleep(Duration::from_millis(20)).await;
    }
    // the trial goes through, and with it the partition is free
    publish(&mut sink, &together(&records)).await;
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
}

#[tokio::test]
async fn silence_is_no_topics_fault_while_the_cluster_is_away() {
    let (mock, mut sink) = cluster(&["t"]);
    let records = [record("t", "a"), record("t", "b")];
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
    // too slow to answer anything in time, and never cut off
    mock.broker_round_trip_time(1, Duration::from_secs(8))
        .unwrap();
    let begun = tokio::time::Instant::now();
    let outcomes = sink
        .publish(&together(&records), sleep(Duration::from_millis(1500)))
        .await;
    assert_eq!(outcomes, [Outcome::Unfinished, Outcome::Unfinished]);
    assert!(sink.paused().is_empty());
    assert!(!sink.topics().reachable());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_record_larger_than_its_topic_is_rejected_unsent_and_its_key_waits() {
    let (_mock, mut sink) = cluster(&["t"]);
    let mut records = [
        record("t", "a"),
        record("t", "a"),
        record("t", "a"),
        record("t", "b"),
    ];
    records[1].value = Some(vec![b'x'; 1_000_001].into());
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(
        delivered(&outcomes[0]) && delivered(&outcomes[3]),
        "{outcomes:?}"
    );
    match &outcomes[1] {
        Outcome::Rejected(reason) => {
            assert_eq!(reason.class, "too_large");
            assert!(reason.text.contains("1000000"), "{}", reason.text);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(outcomes[2], Outcome::Unfinished);
}

#[tokio::test]
async fn a_key_goes_to_the_partition_the_java_client_chooses() {
    let vectors = include_str!("../../tests/vectors/java_murmur2.txt");
    let rows: Vec<Vec<&str>> = vectors
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(rows.len() > 20);
    let (mock, mut sink) = cluster(&[]);
    for (column, partitions) in [(2, 4), (3, 8), (4, 12), (5, 50)] {
        let topic = format!("p{partitions}");
        mock.create_topic(&topic, partitions, 1).unwrap();
        let bytes = |hex: &str| -> Vec<u8> {
            let digits: Vec<char> = hex.trim_start_matches('-').chars().collect();
            let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
            digits.chunks(2).map(|pair| byte(pair).unwrap()).collect()
        };
        let keyed = |row: &Vec<&str>| Record {
            key: bytes(row[0]).into(),
            ..record(&topic, "")
        };
        let records: Vec<_> = rows.iter().map(keyed).collect();
        let outcomes = publish(&mut sink, &together(&records)).await;
        for (row, outcome) in rows.iter().zip(outcomes) {
            let Outcome::Delivered { partition, .. } = outcome else {
                panic!("{row:?}: {outcome:?}");
            };
            assert_eq!(
                partition.to_string(),
                row[column],
                "{} of {partitions}",
                row[0]
            );
        }
    }
}

/// What ends a producer, or makes librdkafka believe in a delivery that was none.
#[tokio::test]
async fn after_a_fatal_error_or_a_false_acknowledgement_a_new_producer_goes_on() {
    use RDKafkaRespErr as E;
    for error in [
        E::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        E::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
        E::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        E::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING,
        E::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER,
    ] {
        let (mock, mut sink) = cluster(&["t"]);
        let warm = [record("t", "a")];
        let outcomes = publish(&mut sink, &together(&warm)).await;
        assert!(outcomes.iter().all(delivered), "{outcomes:?}");
        mock.request_errors(RDKafkaApiKey::Produce, &[error]);
        let records = [record("t", "a"), record("t", "a")];
        let outcomes = publish(&mut sink, &together(&records)).await;
        match error {
            // the word of the first has no offset; the second may have been on its way
            E::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER => {
                assert_eq!(outcomes[0], Outcome::Unfinished);
            }
            // librdkafka mends some by itself, with a new id: then all went through, or none did
            _ => {
                let none = outcomes.iter().all(|o| *o == Outcome::Unfinished);
                let all = outcomes.iter().all(delivered);
                assert!(all || none, "{error:?}: {outcomes:?}");
            }
        }
        let outcomes = publish(&mut sink, &together(&records)).await;
        assert!(outcomes.iter().all(delivered), "{error:?}: {outcomes:?}");
        assert!(sink.paused().is_empty(), "{error:?}: no topic's fault");
    }
}

#[tokio::test]
async fn a_topic_all_of_whose_partitions_were_silent_is_found_again() {
    let theirs = [0, 1, 2, 3].map(|partition| ("t", partition));
    let (mock, mut sink) = cluster_of_two(&["t"], &theirs);
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let records = keys.map(|key| record("t", key));
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
    mock.broker_down(2).unwrap();
    let outcomes = sink
        .publish(&together(&records), sleep(Duration::from_millis(1500)))
        .await;
    assert!(
        outcomes.iter().all(|o| *o == Outcome::Paused),
        "{outcomes:?}"
    );
    assert_eq!(sink.paused(), ["t".to_owned()].into());
    mock.broker_up(2).unwrap();
    let found = async {
        while !publish(&mut sink, &together(&records))
            .await
            .iter()
            .all(delivered)
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), found)
        .await
        .expect("found again");
}

#[tokio::test]
async fn records_are_given_to_the_one_cluster_and_to_no_other() {
    let (mock, mut sink) = cluster(&["t"]);
    let ours = sink.cluster_id().await.unwrap();
    let (kafka, relay) = (testing::kafka(&mock.bootstrap_servers()), testing::relay());
    let records = [record("t", "a"), record("t", "b")];
    for (cluster, taken) in [("another", false), (ours.as_str(), true)] {
        let topics = Arc::new(Topics::new(&kafka, &relay));
        let sink = KafkaSink::new(&kafka, &relay, Arc::clone(&topics));
        let mut sink = sink.only_to(Some(cluster.to_owned()));
        let outcomes = publish(&mut sink, &together(&records)).await;
        assert_eq!(outcomes.iter().all(delivered), taken, "{outcomes:?}");
        assert_eq!(outcomes.iter().any(delivered), taken, "{outcomes:?}");
        if !taken {
            assert!(
                !topics.reachable(),
                "brokers of another cluster are as good as none"
            );
            let ready = timeout(Duration::from_secs(3), sink.ready()).await;
            assert!(ready.is_err(), "nothing is claimed for them");
        }
    }
}

#[tokio::test]
async fn what_is_paused_waits_and_the_rest_of_a_batch_goes() {
    let (_mock, sink) = cluster(&["free", "paused"]);
    let controls = Arc::new(Controls::new(None));
    let mut sink = Held::new(sink, Arc::clone(&controls));
    let records = [
        record("paused", "a"),
        record("free", "a"),
        record("paused", "b"),
        record("free", "b"),
    ];
    let all = async |sink: &mut Held<KafkaSink>| {
        let attempts = together(&records);
        let publish = sink.publish(&attempts, pending());
        timeout(Duration::from_secs(20), publish).await.unwrap()
    };
    controls.pause(Paused::of(["paused".to_owned()]));
    assert!(sink.paused().contains("paused") && sink.keeps_waiting("paused", "a"));
    let outcomes = all(&mut sink).await;
    let went: Vec<bool> = outcomes.iter().map(delivered).collect();
    assert_eq!(went, [false, true, false, true], "{outcomes:?}");
    assert_eq!(
        (&outcomes[0], &outcomes[2]),
        (&Outcome::Paused, &Outcome::Paused)
    );
    controls.pause(Paused::of([String::new()]));
    let outcomes = all(&mut sink).await;
    assert!(
        outcomes.iter().all(|outcome| *outcome == Outcome::Paused),
        "{outcomes:?}"
    );
    controls.pause(Paused::default());
    let outcomes = all(&mut sink).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
}
