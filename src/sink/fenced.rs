//! A broker that was fenced: it answers, and the first time it knows of no brokers, not even of itself. Real
//! ones do so for a moment, when they go on after a freeze (one freeze of some twenty, on a busy machine).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::timeout;

use super::generation::Generation;
use super::mocked::{self, Mock};
use super::token::Token;
use super::{KafkaSink, Sink, Topics, settings, testing};

/// A mock cluster behind a broker that answers the first question about brokers as above.
fn fenced() -> (Mock, String) {
    let (mock, _) = mocked::cluster(&["t"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (behind, first) = (mock.bootstrap_servers(), Arc::new(AtomicBool::new(true)));
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&behind).unwrap());
            let (mut answers, mut to_client) =
                (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut answers, &mut to_client));
            let first = Arc::clone(&first);
            thread::spawn(move || drop(pass(client, server, &first)));
        }
    });
    (mock, address)
}

/// Passes requests on, but for the first about metadata.
fn pass(mut client: TcpStream, mut server: TcpStream, first: &AtomicBool) -> std::io::Result<()> {
    const METADATA: i16 = 3;
    loop {
        let mut size = [0; 4];
        client.read_exact(&mut size)?;
        let mut request = vec![0; usize::try_from(u32::from_be_bytes(size)).unwrap()];
        client.read_exact(&mut request)?;
        let number = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
        if number(0) == METADATA && first.swap(false, Ordering::Relaxed) {
            let answer = of_nobody(number(2), &request[4..8]);
            let size = u32::try_from(answer.len()).unwrap();
            client.write_all(&size.to_be_bytes())?;
            client.write_all(&answer)?;
        } else {
            server.write_all(&size)?;
            server.write_all(&request)?;
        }
    }
}

/// A metadata response, of a version from 9 on, with no brokers and no topics
/// (`MetadataResponse.json` of Kafka's protocol).
fn of_nobody(version: i16, correlation: &[u8]) -> Vec<u8> {
    assert!(version >= 9, "librdkafka asks in version {version}");
    let mut answer = correlation.to_vec();
    // tags; throttle time; no brokers; a cluster id of one letter; no controller; no topics
    answer.extend([0, 0, 0, 0, 0, 1, 2, b'c', 255, 255, 255, 255, 1]);
    if version <= 10 {
        // what may be done to the cluster
        answer.extend([128, 0, 0, 0]);
    }
    if version >= 13 {
        // no error
        answer.extend([0, 0]);
    }
    answer.push(0);
    answer
}

#[tokio::test]
async fn who_had_an_empty_answer_asks_again_about_a_topic() {
    let (_mock, brokers) = fenced();
    let (kafka, relay) = (testing::kafka(&brokers), testing::relay());
    let sizes = Topics::new(&kafka, &relay).sizes();
    let settings = settings::producer(&kafka, &relay, sizes);
    let made = Generation::make(settings, sizes, Token::of(&kafka), Arc::default());
    let generation = made.await.unwrap();
    // as librdkafka has it: it waits for an answer that it does not ask for any more
    assert!(!generation.cluster_answers(None).await);
    assert!(!generation.cluster_answers(None).await);
    assert!(generation.cluster_answers(Some("t".to_owned())).await);
    assert!(generation.cluster_answers(None).await, "it remembers");
}

#[tokio::test]
async fn a_sink_that_knows_no_topic_yet_asks_by_a_new_producer() {
    let (_mock, brokers) = fenced();
    let (kafka, relay) = (testing::kafka(&brokers), testing::relay());
    let topics = Arc::new(Topics::new(&kafka, &relay));
    let mut sink = KafkaSink::new(&kafka, &relay, topics);
    let ready = timeout(Duration::from_secs(40), sink.ready()).await;
    assert!(ready.is_ok());
    sink.close().await;
}
