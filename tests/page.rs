//! The status page in a real browser: what stands in it, what it asks for, and what it says when the
//! relay is gone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;

use crate::see::{Seen, watched};
use crate::support::janitor;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::Load;
use crate::support::{self, World, topic_of};

const SOON: Duration = Duration::from_secs(90);

/// What a browser made of a page.
pub(crate) struct Looked {
    /// The document at the end, as HTML.
    document: String,
    /// What was written to its console.
    console: Vec<String>,
    /// What it asked for, itself included.
    asked: Vec<String>,
}

impl Looked {
    /// The value of a field of an outbox, as a machine reads it.
    pub(crate) fn value(&self, field: &str) -> &str {
        let field = format!("data-field=\"{field}\" data-value=\"");
        let rest = self.document.split(&field).nth(1);
        let rest = rest.unwrap_or_else(|| panic!("no {field} in {}", self.body()));
        rest.split('"').next().unwrap_or_default()
    }

    /// Whether `part` is in the body, the page's script aside.
    pub(crate) fn shows(&self, part: &str) -> bool {
        self.body().contains(part)
    }

    fn body(&self) -> &str {
        let body = self.document.split("<body").nth(1).unwrap_or_default();
        body.split("<script>").next().unwrap_or_default()
    }
}

/// Where Debian puts the browser.
const BROWSER: &str = "/usr/bin/chromium";

/// Opens `url` and lets `milliseconds` of its own time go by, in which it asks again and again.
async fn look(url: &str, home: &Path, milliseconds: u32) -> Looked {
    fs::create_dir_all(home).expect("a directory can be made");
    let log = home.join("net-log.json");
    let mut browser = Command::new(BROWSER);
    browser
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--disable-extensions",
            "--enable-logging=stderr",
        ])
        .arg(format!(
            "--user-data-dir={}",
            home.join("profile").display()
        ))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("--virtual-time-budget={milliseconds}"))
        .args(["--dump-dom", url])
        .env("HOME", home)
        .env(
            janitor::RUN,
            format!("{}{}", janitor::PREFIX, *janitor::RUN_ID),
        )
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ran = timeout(Duration::from_secs(180), browser.output()).await;
    let ran = ran.expect("the browser ends").expect("the browser starts");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "the browser: {said}");
    let origin = url.trim_end_matches('/');
    Looked {
        document: String::from_utf8_lossy(&ran.stdout).into_owned(),
        console: said
            .lines()
            .filter(|line| line.contains("CONSOLE"))
            .map(str::to_owned)
            .collect(),
        asked: asked(&log, origin),
    }
}

/// What the page of a relay shows now; none without a browser.
pub(crate) async fn shown(world: &World, seen: &Seen) -> Option<Looked> {
    if !has_browser() {
        return None;
    }
    let url = format!("http://{}/", seen.address());
    let home = world.file(&format!("browser-{}", Uuid::new_v4()));
    Some(look(&url, &home, 2_000).await)
}

/// Every address that the page at `origin` asked for. The browser asks for things of its own, too.
fn asked(log: &Path, origin: &str) -> Vec<String> {
    let log = fs::read(log).expect("the browser keeps a log");
    let log: Value = serde_json::from_slice(&log).expect("the log is whole");
    let events = log["events"].as_array().expect("it has events");
    let of_page = |params: &Value| {
        params["initiator"] == *origin
            || params["url"]
                .as_str()
                .is_some_and(|url| url.starts_with(origin))
    };
    let urls = events.iter().filter_map(|event| {
        let params = &event["params"];
        let url = params["url"].as_str().filter(|_| of_page(params))?;
        // a URL_REQUEST has the method beside it
        params["method"].as_str().map(|_| url.to_owned())
    });
    urls.collect()
}

/// Whether there is a browser; without one a test is skipped, loudly.
fn has_browser() -> bool {
    let there = Path::new(BROWSER).exists();
    if !there {
        support::skip("no browser: the package `chromium` has one");
    }
    there
}

#[test]
fn the_page_shows_what_is_so_and_asks_nobody_else() {
    if !has_browser() {
        return;
    }
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Mark);
        outbox.config = "freshness_budget = \"1ms\"".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let relay = Seen::start(&watched(setup)).await;
        let url = format!("http://{}", relay.address());

        let mut load = Load::of(&aggregate_type);
        load.events = 300;
        let ledger = load.start(world, &outbox).await.finish().await;
        outbox.wait_drained(world, SOON).await;
        // three rows that wait for a topic that is not there, one that is refused for its topic's name
        let missing = world.aggregate_type("Missing");
        for (many, aggregate_type) in [(3, missing.as_str()), (1, "no topic is called so")] {
            world
                .execute(&format!(
                    "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                     select gen_random_uuid(), '{aggregate_type}', 'E', '{{}}' from generate_series(1, {many})"
                ))
                .await;
        }
        let waits = topic_of(&missing);
        // what the page is to show must first be so
        relay
            .until("the relay has seen it all", |status| {
                let (outbox, kafka) = (&status["outboxes"][0], &status["kafka"]);
                outbox["parked_rows"]["blocked_keys"] == 1
                    && outbox["backlog"]["events"] == 3
                    && kafka["topics_paused"][0]["topic"] == waits
            })
            .await;

        let seen = look(&format!("{url}/"), &world.file("browser"), 5_000).await;
        let published = outbox.published(world).await;
        assert_eq!(usize::try_from(published).unwrap(), ledger.committed());
        assert_eq!(
            seen.value("backlog"),
            outbox.pending(world).await.to_string()
        );
        assert_eq!(seen.value("blocked_keys"), "1");
        assert_eq!(seen.value("state"), "serving");
        assert_eq!(
            seen.value("kept"),
            "false",
            "three rows are older than a millisecond"
        );
        let age: f64 = seen.value("oldest_pending_age_s").parse().unwrap();
        assert!(age > 0.0);
        for part in [
            &format!("data-outbox=\"{}\"", "public.outbox"),
            &format!("data-topic=\"{waits}\""),
            &format!("<div class=\"sub\" title=\"{published} so far\">"),
            "Kafka takes records",
            "kafka-topics.sh",
            "data-part=\"parked\"",
        ] {
            assert!(seen.shows(part), "no {part} in {}", seen.body());
        }
        // the charts are drawn, of more than one answer
        assert!(seen.document.matches("<path d=\"M").count() >= 4);
        assert_eq!(seen.console, Vec::<String>::new());
        let all: BTreeSet<_> = seen.asked.iter().map(String::as_str).collect();
        assert_eq!(
            all,
            BTreeSet::from([format!("{url}/").as_str(), format!("{url}/status").as_str()])
        );
        let times = seen
            .asked
            .iter()
            .filter(|it| it.ends_with("/status"))
            .count();
        assert!(times > 2, "it asks again and again: {times}");

        relay.relay.stop().await;
    });
}

/// A relay of the test's own words: it answers `/status` so many times, then not at all.
struct Pretended {
    url: String,
    answers: Arc<AtomicUsize>,
}

impl Pretended {
    fn telling(facts: &Value, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answers);
        let facts = facts.to_string();
        let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops/page.html"));
        let page = page.unwrap();
        // it ends with the tests; who asks after that meets a closed connection
        let listener = Mutex::new(listener);
        std::thread::spawn(move || {
            for stream in listener.lock().unwrap().incoming().map_while(Result::ok) {
                let mut first = String::new();
                if BufReader::new(&stream).read_line(&mut first).is_err() {
                    continue;
                }
                let (kind, body) = if first.starts_with("GET / ") {
                    ("text/html; charset=utf-8", &page)
                } else if count.fetch_add(1, Ordering::SeqCst) < times {
                    ("application/json", &facts)
                } else {
                    continue;
                };
                let mut stream = stream;
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                )
                .ok();
            }
        });
        Self { url, answers }
    }
}

/// A status with `text` wherever somebody outside may have had a say.
fn hostile(text: &str) -> Value {
    let quantiles = json!({"count": 0, "p50_s": null, "p90_s": null, "p99_s": null, "max_s": null});
    json!({
        "at": text, "build": {"version": text, "features": []}, "started_at": text, "uptime_s": 5,
        "live": false, "ready": false, "why": [text],
        "kafka": {
            "brokers": text, "reachable": false, "away_since": text, "away_s": 61.0, "why": text,
            "topics_paused": [{
                "topic": text, "reason": text, "text": text, "next_step": text, "since": text,
                "lasted_s": 1.0, "partitions": [1], "outbox": text,
            }],
        },
        "outboxes": [{
            "outbox": text, "state": text, "state_since": text, "state_text": text, "on_published": text,
            "published": 1, "parked": 1, "behind": 1, "late": 1, "rate_out_per_s": 1.0, "rate_in_per_s": null,
            "window_s": 60.0, "lag": quantiles, "publish": quantiles, "lanes": null, "lanes_held": 0,
            "workers": {"count": 1, "doing": {text: 1}, "stuck": 1},
            "database": {"reachable": false, "away_s": 1.0, "why": text, "clock_offset_s": 9.0},
            "backlog": {"events": null, "exact": false, "counted_max": 1},
            "oldest_pending_age_s": null,
            "topics": [{
                "topic": text, "published": 1, "rate_out_per_s": 1.0, "lag": quantiles, "pending": 1,
                "pending_exact": false, "oldest_pending_age_s": 1.0,
            }],
            "parked_rows": {
                "exact": false, "blocked_keys": 1, "oldest_blocked_age_s": 1.0,
                "rows": [{"state": text, "reason": text, "rows": 1}],
            },
            "freshness": [{"topic": text, "budget_s": 1.0, "staleness_s": 2.0, "kept": false, "late": 1}],
            "drained_in_s": null,
        }],
        "errors": [{"at": text, "first_at": text, "times": 2, "outbox": text, "text": text, "lasts": true}],
    })
}

#[test]
fn no_text_becomes_markup_whatever_somebody_wrote_into_a_row() {
    if !has_browser() {
        return;
    }
    support::block_on(async {
        let text = "\"><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>";
        let relay = Pretended::telling(&hostile(text), usize::MAX);
        let home = janitor::directory().join("browser-hostile");
        let seen = look(&format!("{}/", relay.url), &home, 4_000).await;
        assert!(!seen.document.contains("<img"), "{}", seen.body());
        assert_eq!(
            seen.document.matches("<script>").count(),
            1,
            "the page's own"
        );
        assert!(!seen.document.contains("<title>taken"));
        // it is there, to be read
        assert!(seen.document.matches("&lt;img src=x").count() > 10);
        assert_eq!(seen.console, Vec::<String>::new());
        fs::remove_dir_all(home).ok();
    });
}

#[test]
fn the_page_says_so_when_the_relay_is_gone() {
    if !has_browser() {
        return;
    }
    support::block_on(async {
        let relay = Pretended::telling(&hostile("words"), 3);
        let home = janitor::directory().join("browser-gone");
        let seen = look(&format!("{}/", relay.url), &home, 15_000).await;
        assert!(
            relay.answers.load(Ordering::SeqCst) > 5,
            "it goes on asking"
        );
        assert!(
            seen.shows("The relay has not answered for"),
            "{}",
            seen.body()
        );
        assert!(seen.shows("What is shown is of"));
        assert!(seen.shows("class=\"stale\""));
        // what it knew stays
        assert!(seen.shows("data-outbox=\"words\""));
        let uncaught = seen.console.iter().any(|line| line.contains("Uncaught"));
        assert!(!uncaught, "{:?}", seen.console);
        fs::remove_dir_all(home).ok();
    });
}
