//! Several producers of one sink, against librdkafka's mock cluster: see `mocked`.

use std::time::Duration;

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::time::{sleep, timeout};

use super::Sink;
use super::mocked::{cluster, delivered, publish, record, together};
use super::producers::Shares;
use crate::outcome::Outcome;
use crate::partition;
use crate::record::Record;

/// A record for topic `t` by each of two producers, of which the first also asks whether Kafka is there.
fn one_of_each_producer() -> [Record<'static>; 2] {
    let mut shares = Shares::new(2);
    let mut of = |share: usize| {
        let mut keys = (0..1_000).map(|n: u32| n.to_string());
        let key = keys.find(|key| shares.of("t", key.as_bytes(), |_| 4).0 == share);
        record("t", &key.unwrap())
    };
    [of(0), of(1)]
}

#[tokio::test]
async fn a_refusal_ends_one_producer_and_the_records_of_the_other_go() {
    let (mock, mut sink) = cluster(&["t"]);
    let warm = one_of_each_producer();
    let [first, second] = warm.clone();
    let outcomes = publish(&mut sink, &together(&warm)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");

    assert_eq!(sink.made(), 2);
    let records = [first.clone(), second.clone(), first, second];
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    mock.request_errors(RDKafkaApiKey::Produce, &[too_large]);
    let outcomes = publish(&mut sink, &together(&records)).await;
    let went: Vec<bool> = outcomes.iter().map(delivered).collect();
    assert!(
        went == [true, false, true, false] || went == [false, true, false, true],
        "{outcomes:?}"
    );
    assert_eq!(sink.made(), 1, "the other goes on");
    let outcomes = publish(&mut sink, &together(&records)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
    assert_eq!(sink.made(), 2);
}

#[tokio::test]
async fn what_a_failure_left_unsent_holds_its_key_back_behind_a_record_that_goes_alone() {
    let mut shares = Shares::new(2);
    let [warm, _] = one_of_each_producer();
    // two partitions of the producer that has sent nothing yet, so that their first records go alone
    let mut key_of = |partition: i32| {
        let is_there = |key: &String| {
            partition::of_key(key.as_bytes(), 4) == partition
                && shares.of("t", key.as_bytes(), |_| 4).0 == 1
        };
        (0..1_000).map(|n: u32| n.to_string()).find(is_there)
    };
    let keys: Vec<String> = (0..4).filter_map(&mut key_of).collect();
    assert_eq!(keys.len(), 2);
    let mut is_reached = false;
    for (key, refused) in [(&keys[0], &keys[1]), (&keys[1], &keys[0])] {
        let (mock, mut sink) = cluster(&["t"]);
        let first = [warm.clone()];
        assert!(delivered(&publish(&mut sink, &together(&first)).await[0]));
        // of the two first records one is taken, the other refused; whichever is asked for first
        let errors = [
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
        ];
        mock.request_errors(RDKafkaApiKey::Produce, &errors);
        let of = |key: &str| record("t", key);
        let records = [of(key), of(key), of(refused), warm.clone(), of(key)];
        let mut attempts = together(&records);
        attempts[3].alone = true;
        let went: Vec<bool> = (publish(&mut sink, &attempts).await.iter())
            .map(delivered)
            .collect();
        is_reached |= went[0] && !went[2];
        assert!(
            went[1] || !went[4],
            "the third of a key before its second: {went:?}"
        );
    }
    assert!(is_reached);
}

#[tokio::test]
async fn no_producer_remembers_a_cluster_that_is_away() {
    let (mock, mut sink) = cluster(&["t"]);
    sink.ready().await;
    let [first, second] = one_of_each_producer();
    let both = [first, second.clone()];
    let outcomes = publish(&mut sink, &together(&both)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");

    mock.broker_down(1).unwrap();
    // nothing of the producer that is asked whether Kafka is there
    let theirs = [second];
    let outcomes = sink
        .publish(&together(&theirs), sleep(Duration::from_millis(500)))
        .await;
    assert_eq!(outcomes, [Outcome::Unfinished]);
    assert!(
        timeout(Duration::from_secs(1), sink.ready()).await.is_err(),
        "away"
    );
    mock.broker_up(1).unwrap();
    timeout(Duration::from_secs(5), sink.ready())
        .await
        .expect("back within 5 s");
    let outcomes = publish(&mut sink, &together(&both)).await;
    assert!(outcomes.iter().all(delivered), "{outcomes:?}");
}
