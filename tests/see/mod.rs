//! P9: what a relay tells of itself agrees with what the database and Kafka say, during every fault.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::eventually;
use crate::support::relay::{Relay, Setup};

mod faults;
mod http;
mod table;

/// Long enough for a machine that is slow for a while.
pub(super) const SOON: Duration = Duration::from_secs(60);
/// How much two clocks, two roundings and one round trip may make, on a slow machine.
const SLACK_S: f64 = 5.0;

/// A relay that is asked how it is.
pub(crate) struct Seen {
    pub(crate) relay: Relay,
    address: String,
}

/// Quick samples, and a port of its own.
pub(crate) fn watched(setup: Setup<'_>) -> Setup<'_> {
    setup
        .set("http", "listen", "\"127.0.0.1:0\"")
        .set("relay", "sample_interval", "\"200ms\"")
}

impl Seen {
    pub(crate) async fn start(setup: &Setup<'_>) -> Self {
        Self::of(setup.run()).await
    }

    /// A relay that has been started.
    pub(crate) async fn of(relay: Relay) -> Self {
        let line = relay
            .wait_line("status and metrics are on http://", SOON)
            .await;
        let (_, rest) = line.split_once("http://").unwrap();
        let (address, _) = rest.split_once('/').unwrap();
        Self {
            address: address.to_owned(),
            relay,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The status code and the body of `path`.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = self.send(&request).await;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.unwrap_or_else(|| panic!("{head}")), body)
    }

    /// Sends a request as it stands: the head and the body of the answer.
    pub(crate) async fn send(&self, request: &str) -> (String, String) {
        let asking = async {
            let mut stream = TcpStream::connect(&self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        };
        let answer = timeout(SOON, asking).await.expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head.to_owned(), body.to_owned())
    }

    /// What `/status` says.
    pub(super) async fn status(&self) -> Value {
        let (code, body) = self.get("/status").await;
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// What `/status` says of its only outbox.
    pub(super) async fn outbox(&self) -> Value {
        self.status().await["outboxes"][0].take()
    }

    /// Waits until `/status` is `so`.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        eventually(SOON, what, async || so(&self.status().await)).await;
        let status = self.status().await;
        // what was so may be over; whoever cares looks again
        status
    }

    /// The metrics, as they are now.
    pub(super) async fn metrics(&self) -> Metrics {
        let (code, text) = self.get("/metrics").await;
        assert_eq!(code, 200, "{text}");
        Metrics(text)
    }

    /// Whether `/livez` and `/readyz` are well.
    pub(super) async fn health(&self) -> (bool, bool) {
        let (live, why) = self.get("/livez").await;
        assert!([200, 503].contains(&live), "{live} {why}");
        let (ready, why) = self.get("/readyz").await;
        assert!([200, 503].contains(&ready), "{ready} {why}");
        (live == 200, ready == 200)
    }
}

/// A scrape.
pub(super) struct Metrics(pub(super) String);

impl Metrics {
    /// The samples of `outbox_relay_NAME` that have all of `labels`, such as `state="serving"`.
    fn samples(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        let of_it = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (is, rest) = series.split_once('{').unwrap_or((series, ""));
            let wanted = is.strip_prefix("outbox_relay_")? == name;
            let has = |label: &&str| rest.contains(*label);
            (wanted && labels.iter().all(has)).then(|| value.parse().unwrap())
        });
        of_it.collect()
    }

    /// Their sum; nothing where there is none.
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples(name, labels).iter().sum()
    }

    /// The only one.
    pub(super) fn one(&self, name: &str, labels: &[&str]) -> f64 {
        match self.samples(name, labels)[..] {
            [one] => one,
            ref many => panic!("{name} {labels:?}: {many:?}"),
        }
    }
}

/// `value` as a whole number.
pub(super) fn whole(value: &Value) -> i64 {
    value
        .as_i64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// `value` as a number.
pub(super) fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}
