//! `outbox-relay tail`: events as they are in Kafka, the last ones and those that follow.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::args::ConfigArgs;
use super::parked::plain;
use super::{Exit, complain, fail, say};
use crate::config::Config;
use crate::connect::{self, Format, Formats};
use crate::ops::signals::StopSignals;
use crate::record::{Encoding, Standard, Style};
use crate::relay::chain;
use crate::route;
use crate::sink::reader::{Error, Reader, Seen, Start};
use crate::source::Created;

/// Options of `tail`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Which cluster, and which topics if none are named.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Events of this topic [default: every topic that the config can route to]
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    topic: Vec<String>,

    /// Events of this aggregate
    #[arg(long, value_name = "AGGREGATE_ID", allow_hyphen_values = true)]
    key: Vec<String>,

    /// Events of this type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Vec<String>,

    /// Go on with what is published from now on, until a signal
    #[arg(long, short)]
    follow: bool,

    /// Look as far back as this, such as 1h, instead of at the last records of each partition
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,

    /// Most events of the past: the last ones
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    limit: u32,

    /// One JSON object a line
    #[arg(long)]
    json: bool,

    /// The payloads too, which may hold personal data
    #[arg(long)]
    payload: bool,
}

fn topic(text: &str) -> Result<String, String> {
    match route::illegal(text) {
        None => Ok(text.to_owned()),
        Some(why) => Err(format!("a topic of this name cannot be: it {why}")),
    }
}

/// How long a record is waited for, and how long some gather before they are shown.
const POLL: Duration = Duration::from_millis(100);
/// Most events that are looked up at once.
const BATCH: usize = 500;

/// Reads, until the end or a signal.
pub async fn run(args: Args, config: Config) -> Exit {
    let mut signals = match StopSignals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(Exit::Unavailable, &format!("no signals: {error}")),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (found, mut batches) = mpsc::channel(4);
    let past = Past {
        config: config.clone(),
        limit: usize::try_from(args.limit).unwrap_or(usize::MAX),
        follow: args.follow,
        start: start(&args),
        filter: Filter {
            topics: args.topic.clone(),
            keys: args.key.clone(),
            event_types: args.event_type.clone(),
            named: Named::of(&config),
        },
        payload: args.payload,
    };
    let told = Arc::clone(&stop);
    let reading = tokio::task::spawn_blocking(move || past.read(&told, &found));
    let mut created = Created::new(&config).ok();
    let named = Named::of(&config);
    let mut exit = Exit::Ok;
    loop {
        let batch = tokio::select! {
            batch = batches.recv() => batch,
            () = signals.next() => break,
        };
        let Some(batch) = batch else { break };
        let text = tell(&args, &named, &mut created, &batch).await;
        exit = say(&text);
        if exit != Exit::Ok {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    drop(batches);
    match reading.await {
        Ok(Ok(())) => exit,
        Ok(Err(error @ Error::Unreachable { .. })) => fail(Exit::Unavailable, &chain(&error)),
        Ok(Err(error)) => fail(Exit::Failed, &chain(&error)),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn start(args: &Args) -> Start {
    match args.since {
        None => Start::Last(args.limit),
        Some(since) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let then = now.unwrap_or_default().saturating_sub(since);
            Start::Time(i64::try_from(then.as_millis()).unwrap_or(0))
        }
    }
}

/// Which records are shown.
struct Filter {
    topics: Vec<String>,
    keys: Vec<String>,
    event_types: Vec<String>,
    named: Named,
}

/// What the relays of a config call their headers, and whether any of them writes JSON there, or as the key.
#[derive(Debug, Clone)]
struct Named {
    headers: Vec<(Standard, String)>,
    formats: Formats,
}

impl Named {
    fn of(config: &Config) -> Self {
        let usual = Encoding::default();
        let encodings = (config.outboxes.iter()).map(|outbox| &outbox.encoding);
        let mut formats = Formats::default();
        for encoding in encodings.clone() {
            if let Style::Connect(connect) = &encoding.style {
                let its = connect.formats();
                formats.key = formats.key.max(its.key);
                formats.headers = formats.headers.max(its.headers);
            }
        }
        let all = encodings.chain([&usual]).flat_map(|it| it.headers.clone());
        Self {
            headers: all.collect(),
            formats,
        }
    }

    /// What the header says that is `what`.
    fn get<'a>(&self, what: Standard, seen: &'a Seen) -> Option<Cow<'a, str>> {
        let mut names = self.headers.iter().filter(|(it, _)| *it == what);
        let text = names.find_map(|(_, name)| seen.header(name))?;
        Some(match self.formats.headers {
            Format::Plain => text.into(),
            _ => connect::unwrapped(text).into(),
        })
    }

    /// Whether `key` is the one of the aggregate `id`.
    fn is_key(&self, key: &[u8], id: &str) -> bool {
        let wrapped = self.formats.key != Format::Plain
            && str::from_utf8(key).is_ok_and(|key| connect::unwrapped(key) == id);
        wrapped || key == id.as_bytes()
    }
}

impl Filter {
    fn passes(&self, seen: &Seen) -> bool {
        let key = seen.key.as_deref().unwrap_or_default();
        let of_key = self.keys.is_empty() || self.keys.iter().any(|it| self.named.is_key(key, it));
        let event_type = self.named.get(Standard::EventType, seen);
        let of_type = self.event_types.is_empty()
            || (self.event_types.iter()).any(|it| Some(it.as_str()) == event_type.as_deref());
        of_key && of_type
    }
}

/// The reading half: it blocks, on a thread of its own.
struct Past {
    config: Config,
    limit: usize,
    follow: bool,
    start: Start,
    filter: Filter,
    payload: bool,
}

impl Past {
    fn read(&self, stop: &AtomicBool, found: &mpsc::Sender<Vec<Seen>>) -> Result<(), Error> {
        let routed = |topic: &str| {
            let mut outboxes = self.config.outboxes.iter();
            outboxes.any(|outbox| {
                outbox.topic.may_give(topic) || outbox.dead_letter_topic.as_deref() == Some(topic)
            })
        };
        let named = &self.filter.topics;
        let mut reader = Reader::open(&self.config.kafka, named, routed, self.start, self.payload)?;
        if reader.partitions() == 0 {
            complain("no topic there is can have events of this config; name one with --topic\n");
        }
        // the last ones, however many there are to look through
        let mut last: VecDeque<Seen> = VecDeque::new();
        while !reader.caught_up() && !stop.load(Ordering::Relaxed) {
            let Some(seen) = reader.next(POLL)? else {
                continue;
            };
            if self.filter.passes(&seen) {
                last.push_back(seen);
            }
            // partitions come one after another, so the last to come are not the newest
            if last.len() > 2 * self.limit + BATCH {
                newest(&mut last, self.limit);
            }
        }
        newest(&mut last, self.limit);
        let mut last: Vec<Seen> = last.into();
        while !last.is_empty() {
            let rest = last.split_off(last.len().min(BATCH));
            if found.blocking_send(last).is_err() {
                return Ok(());
            }
            last = rest;
        }
        let mut gathered = Vec::new();
        while self.follow && !stop.load(Ordering::Relaxed) {
            let seen = reader.next(POLL)?;
            let quiet = seen.is_none();
            gathered.extend(seen.filter(|seen| self.filter.passes(seen)));
            let full = gathered.len() >= BATCH;
            if (full || quiet) && !gathered.is_empty() {
                let batch = std::mem::take(&mut gathered);
                if found.blocking_send(batch).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Leaves the newest `limit`, in the order of their times; of one partition in that of its log.
fn newest(seen: &mut VecDeque<Seen>, limit: usize) {
    let all = seen.make_contiguous();
    all.sort_by(|a, b| {
        let key = |it: &Seen| (it.time_ms, it.topic.clone(), it.partition, it.offset);
        key(a).cmp(&key(b))
    });
    let surplus = seen.len().saturating_sub(limit);
    seen.drain(..surplus);
}

/// The lines for a batch, with how long each event took, where its row tells when it was written.
async fn tell(args: &Args, named: &Named, created: &mut Option<Created>, batch: &[Seen]) -> String {
    let ids: Vec<Uuid> = batch.iter().filter_map(|seen| id(named, seen)).collect();
    let mut known = std::collections::HashMap::new();
    if let Some(source) = created {
        match source.of(&ids).await {
            Ok(found) => known = found,
            Err(error) => {
                complain(&format!("latencies are not shown: {}\n", chain(&error)));
                *created = None;
            }
        }
    }
    let latency = |seen: &Seen| {
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds since 1970 fit a float"
        )]
        let published_ms = seen.time_ms? as f64;
        Some(published_ms - known.get(&id(named, seen)?)?)
    };
    let line = |seen: &Seen| match args.json {
        true => format!("{}\n", object(named, seen, latency(seen))),
        false => text(named, seen, latency(seen)),
    };
    batch.iter().map(line).collect()
}

fn id(named: &Named, seen: &Seen) -> Option<Uuid> {
    named.get(Standard::EventId, seen)?.parse().ok()
}

fn time(seen: &Seen) -> Option<String> {
    let time_ms = u64::try_from(seen.time_ms?).ok()?;
    let time = UNIX_EPOCH + Duration::from_millis(time_ms);
    Some(humantime::format_rfc3339_millis(time).to_string())
}

/// For people.
fn text(named: &Named, seen: &Seen, latency_ms: Option<f64>) -> String {
    let none = || "-".to_owned();
    let key = seen
        .key
        .as_deref()
        .map(|key| plain(&String::from_utf8_lossy(key)));
    let header = |what| (named.get(what, seen)).map_or_else(none, |text| plain(&text));
    let size = seen
        .value_bytes
        .map_or_else(|| "tombstone".to_owned(), |it| format!("{it} B"));
    let mut line = format!(
        "{}  {}[{}]@{}  {}  {}  {}  {}  {size}\n",
        time(seen).unwrap_or_else(none),
        plain(&seen.topic),
        seen.partition,
        seen.offset,
        header(Standard::EventType),
        key.unwrap_or_else(none),
        header(Standard::EventId),
        latency_ms.map_or_else(none, |ms| format!("{ms:.0} ms")),
    );
    if let Some(value) = &seen.value {
        let value = match str::from_utf8(value) {
            Ok(text) => plain(text),
            Err(_) => format!("base64 {}", STANDARD.encode(value)),
        };
        line.push_str(&format!("    {value}\n"));
    }
    line
}

/// For machines.
fn object(named: &Named, seen: &Seen, latency_ms: Option<f64>) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers =
        (seen.headers.iter()).map(|(name, value)| json!([name, value.as_deref().map(text)]));
    let mut object = json!({
        "time": time(seen),
        "topic": seen.topic,
        "partition": seen.partition,
        "offset": seen.offset,
        "event_type": named.get(Standard::EventType, seen),
        "key": seen.key.as_deref().map(text),
        "event_id": named.get(Standard::EventId, seen),
        "latency_ms": latency_ms.map(f64::round),
        "headers": headers.collect::<Vec<_>>(),
        "value_bytes": seen.value_bytes,
    });
    if let Some(value) = &seen.value {
        match str::from_utf8(value) {
            Ok(text) => object["value"] = text.into(),
            Err(_) => object["value_base64"] = STANDARD.encode(value).into(),
        }
    }
    object
}

const HELP: &str = "\
Examples:
  outbox-relay tail --config relay.toml --follow
  outbox-relay tail --config relay.toml --key 4b5e… --since 1h --limit 1000 --payload
  outbox-relay tail --config relay.toml --topic order-events --json | jq .latency_ms

A line has the time of publishing, topic[partition]@offset, event type, key, event id, how long after its
row was written it was published (where the row is still there), and the size. No consumer group is
joined and no offset committed: consumers do not notice.

Exit codes: 0 done, or stopped by a signal; 1 there is no such topic; 69 Kafka cannot be reached; 78 bad
config.";

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Named {
        Named {
            headers: Encoding::default().headers,
            formats: Formats::default(),
        }
    }

    fn seen(partition: i32, offset: i64, time_ms: i64) -> Seen {
        Seen {
            topic: "t".into(),
            partition,
            offset,
            time_ms: Some(time_ms),
            key: Some(b"a\x1bb".to_vec()),
            headers: vec![
                ("event_id".into(), Some(b"x".to_vec())),
                ("event_type".into(), Some(b"Created".to_vec())),
            ],
            value_bytes: Some(2),
            value: None,
        }
    }

    #[test]
    fn the_newest_of_all_partitions_are_shown_in_order() {
        let mut all: VecDeque<Seen> = [(0, 1, 10), (0, 2, 30), (1, 7, 20), (1, 8, 5)]
            .map(|(partition, offset, time)| seen(partition, offset, time))
            .into();
        newest(&mut all, 3);
        let offsets: Vec<i64> = all.iter().map(|seen| seen.offset).collect();
        assert_eq!(offsets, [1, 7, 2]);
        newest(&mut all, 0);
        assert!(all.is_empty());
    }

    #[test]
    fn a_line_has_what_tells_events_apart_and_cannot_steer_a_terminal() {
        let mut event = seen(3, 42, 1_700_000_000_123);
        assert_eq!(
            text(&named(), &event, Some(12.4)),
            "2023-11-14T22:13:20.123Z  t[3]@42  Created  a\\u{1b}b  x  12 ms  2 B\n"
        );
        event.value_bytes = None;
        assert!(text(&named(), &event, None).ends_with("x  -  tombstone\n"));
        event.value = Some(vec![0xff]);
        assert_eq!(object(&named(), &event, None)["value_base64"], "/w==");
        event.value = Some(b"{}".to_vec());
        let object = object(&named(), &event, Some(0.6));
        assert_eq!(
            (&object["value"], &object["latency_ms"]),
            (&"{}".into(), &1.0.into())
        );
    }

    #[test]
    fn a_filter_passes_any_of_its_keys_and_any_of_its_types() {
        let filter = |keys: &[&str], types: &[&str]| Filter {
            topics: Vec::new(),
            keys: keys.iter().map(ToString::to_string).collect(),
            event_types: types.iter().map(ToString::to_string).collect(),
            named: named(),
        };
        let event = seen(0, 0, 0);
        assert!(filter(&[], &[]).passes(&event));
        assert!(filter(&["z", "a\x1bb"], &["Created"]).passes(&event));
        assert!(!filter(&["a"], &[]).passes(&event));
        assert!(!filter(&[], &["created"]).passes(&event));
    }
}
