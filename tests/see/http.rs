//! The way the figures are told: bounded, and never at the cost of the events.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use super::{SOON, Seen, watched};
use crate::support::outbox::Outbox;
use crate::support::writers::{first, one};
use crate::support::{self, Own, eventually, topic_of};

#[test]
fn what_is_told_is_what_prometheus_and_people_can_read() {
    support::run(async |world| {
        let mut outbox = Outbox::classic();
        outbox.config = "freshness_budget = \"1m\"".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        outbox.config.push_str(&format!(
            "\nfreshness_budget_by_topic = {{ {topic} = \"30s\" }}"
        ));
        drop(setup);
        let seen = Seen::start(&watched(world.relay(&[&outbox]))).await;
        let order = Uuid::new_v4().to_string();
        for n in 1..=3 {
            one(world, &outbox, &aggregate_type, &order, n).await;
        }
        outbox.wait_drained(world, SOON).await;
        seen.until("it is told", |status| {
            status["outboxes"][0]["published"] == 3
        })
        .await;

        let metrics = seen.metrics().await;
        let of_topic = format!("topic=\"{topic}\"");
        assert_eq!(
            metrics.one("freshness_budget_seconds", &["topic=\"\""]),
            60.0
        );
        assert_eq!(metrics.one("freshness_budget_seconds", &[&of_topic]), 30.0);
        assert_eq!(metrics.one("events_late_total", &[&of_topic]), 0.0);
        lint(&metrics.0);
        // every metric there is has its place in the docs
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        for line in metrics.0.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(docs.contains(&format!("| `{name}` |")), "{name}");
        }

        let (code, page) = seen.get("/").await;
        assert_eq!(code, 200);
        // (what names SVG is no address)
        let page = page.replace("http://www.w3.org/2000/svg", "");
        let outside = ["http://", "https://", "//cdn", "@import"];
        assert!(page.contains("<html") && !outside.iter().any(|link| page.contains(link)));
        let (code, _) = seen.get("/nothing").await;
        assert_eq!(code, 404);
        let (head, _) = seen
            .send("POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert!(head.contains(" 405 "), "{head}");
        let long = "x".repeat(100_000);
        let (head, _) = seen
            .send(&format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert!(
            head.contains(" 431 ") || head.contains(" 414 ") || head.contains(" 400 "),
            "{head}"
        );
        seen.relay.stop().await;
    });
}

/// Holds the text against Prometheus' own checker.
fn lint(text: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Ok(promtool) => promtool,
        Err(error) => return support::skip(&format!("promtool: {error}")),
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let ended = promtool.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ended.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn clients_that_say_nothing_are_cut_off_and_others_are_answered() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, _) = outbox.prepare(world).await;
        let seen = Seen::start(&watched(setup)).await;
        // more than are let in at once
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(seen.address()).await.unwrap());
        }
        // answered once some of them are gone
        let (code, _) = seen.get("/livez").await;
        assert_eq!(code, 200);
        for stream in &mut silent {
            let mut byte = [0; 256];
            let ended = timeout(SOON, stream.read(&mut byte)).await;
            let ended = ended.expect("nobody keeps a place for ever");
            // a goodbye, an end, or a reset
            drop(ended);
        }
        seen.relay.stop().await;
    });
}

#[test]
fn a_port_that_is_taken_is_told_and_stops_no_event() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let setup = setup.set("http", "listen", &format!("\"{address}\""));
        let relay = setup.run();
        let line = relay.wait_line("cannot listen on http.listen", SOON).await;
        assert!(
            line.contains(&address.to_string()) && line.contains("WARN"),
            "{line}"
        );
        first(world, &outbox, &aggregate_type).await;
        outbox.wait_drained(world, SOON).await;
        drop(taken);
        let seen = Seen::of(relay).await;
        assert_eq!(seen.address(), address.to_string());
        assert_eq!(seen.health().await, (true, true));
        seen.relay.stop().await;
    });
}

#[test]
fn a_worker_that_makes_no_progress_is_told_by_livez() {
    support::run_with(Own::POSTGRES, async |world| {
        world.expect_errors("trying again");
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let seen = Seen::start(&watched(setup).set("http", "stuck_after", "\"1s\"")).await;
        seen.until("it is served", |status| {
            status["outboxes"][0]["state"] == "serving"
        })
        .await;
        eventually(SOON, "it is well", async || {
            seen.health().await == (true, true)
        })
        .await;
        // a worker that still connects is not stuck: it gives up after five seconds and says so
        first(world, &outbox, &aggregate_type).await;
        outbox.wait_drained(world, SOON).await;
        // its workers ask, and nobody answers for half a minute
        world.own_postgres().pause().await;
        eventually(SOON, "it is told as stuck", async || {
            let (code, why) = seen.get("/livez").await;
            code == 503 && why.contains("public.outbox") && why.contains("claiming")
        })
        .await;
        let (_, metrics) = (
            seen.until("stuck", |s| s["live"] == false).await,
            seen.metrics().await,
        );
        assert_eq!(metrics.one("live", &[]), 0.0);
        assert!(metrics.one("workers_stuck", &[]) >= 1.0);
        world.own_postgres().unpause().await;
        eventually(Duration::from_secs(90), "it is well again", async || {
            seen.health().await == (true, true)
        })
        .await;
        seen.relay.stop().await;
    });
}

#[test]
fn the_heartbeat_says_what_was_done_since_the_last_one() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let relay = setup.set("log", "heartbeat", "\"300ms\"").run();
        let order = Uuid::new_v4().to_string();
        for n in 1..=20 {
            one(world, &outbox, &aggregate_type, &order, n).await;
        }
        outbox.wait_drained(world, SOON).await;
        eventually(SOON, "all of it is told, once", async || {
            let lines = relay.lines();
            let beats = lines
                .iter()
                .filter(|line| line.contains("since the last of these lines"));
            let told = beats.map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["published"].as_i64().unwrap()
            });
            told.sum::<i64>() == 20
        })
        .await;
        relay.stop().await;
    });
}
