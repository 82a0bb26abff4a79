//! Rows: a backlog at once, or events one after the other with the time of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::Size;
use crate::catalog::Steady;
use crate::ceiling::producer;
use crate::stand::{PARTITIONS, Place};

/// Of an event without its filling: the key, the two headers, and what else is in the payload.
const BARE_BYTES: u64 = 200;
/// So many letters of the filling are alike, and so much of each event compresses well. What is beyond
/// does not.
const ALIKE_MAX: u64 = 150;
/// The aggregate type of rows that no topic is for.
pub(crate) const HOMELESS: &str = "Homeless";
/// The aggregate type of rows whose topic no broker could have.
const POISON: &str = "po/ison";

/// Rows of one backlog.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) column: &'static str,
    pub(crate) aggregates: u64,
    /// One of so many cannot be published.
    pub(crate) poison_every: Option<u64>,
    /// One of so many has no topic.
    pub(crate) homeless_every: Option<u64>,
}

impl Backlog {
    /// Of a usual size, of many aggregates, and all of them good.
    pub(crate) fn usual(rows: u64) -> Self {
        Self {
            rows,
            bytes: 350,
            column: "jsonb",
            aggregates: 20_000,
            poison_every: None,
            homeless_every: None,
        }
    }

    /// How many of the rows can be published.
    pub(crate) fn good(&self) -> u64 {
        let bad = |every: Option<u64>| every.map_or(0, |every| self.rows / every);
        self.rows - bad(self.poison_every) - bad(self.homeless_every)
    }
}

impl Place {
    /// The classic table, as a service's own migrations make it.
    pub(crate) async fn create(&mut self, column: &str) -> Result<(), String> {
        self.execute(&format!(
            "create table outbox (
               id uuid primary key default gen_random_uuid(), aggregate_id uuid not null, aggregate_type text not null,
               event_type text not null, payload {column} not null, created_at timestamptz not null default now(),
               published_at timestamptz)"
        ))
        .await
    }

    /// Inserts a backlog, vacuumed and on the disk.
    pub(crate) async fn seed(&mut self, backlog: &Backlog) -> Result<(), String> {
        let filling = backlog.bytes.saturating_sub(BARE_BYTES);
        let (alike, beyond) = (filling.min(ALIKE_MAX), filling.saturating_sub(ALIKE_MAX));
        // hex digits, another part of them in each row
        let noise = match beyond {
            0 => String::new(),
            _ => format!(" || substr(noise.text, 1 + (g % 1999)::int, {beyond})"),
        };
        let payload = format!(
            "jsonb_build_object('order_id', g, 'customer', md5(g::text), 'total', g * 1.5,
                                'items', jsonb_build_array(1, 2, 3), 'note', repeat('x', {alike}){noise})"
        );
        let payload = match backlog.column {
            "bytea" => format!("convert_to(({payload})::text, 'UTF8')"),
            "text" => format!("({payload})::text"),
            "json" => format!("({payload})::text::json"),
            _ => payload,
        };
        let aggregate_type = &self.aggregate_type;
        let when = |every: Option<u64>| match every {
            Some(every) => format!("g % {every} = {}", every / 2),
            None => "false".to_owned(),
        };
        // a row that cannot be published holds back the later ones of its aggregate: it has one of its own
        let (poison, homeless) = (when(backlog.poison_every), when(backlog.homeless_every));
        self.execute(&format!(
            "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
             select case when {poison} then md5('poison' || g)::uuid
                         when {homeless} then md5('homeless' || g % 1000)::uuid
                         else md5((g % {aggregates})::text)::uuid end,
                    case when {poison} then '{POISON}' when {homeless} then '{HOMELESS}'
                         else '{aggregate_type}' end,
                    'OrderCreated', {payload}
               from (select string_agg(md5(i::text), '') as text from generate_series(1, {lines}) i) noise,
                    generate_series(1, {rows}) g",
            aggregates = backlog.aggregates,
            lines = beyond / 32 + 64,
            rows = backlog.rows,
        ))
        .await?;
        self.execute("vacuum analyze outbox").await?;
        self.execute("checkpoint").await
    }
}

/// Events that arrive at a rate.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) rate: u64,
    pub(crate) rows_per_transaction: u64,
    pub(crate) lasting: Duration,
    /// Records that are in the topic already: the consumer has read them before the first event is due.
    pub(crate) past: u64,
    /// Whether the writers send each event to Kafka themselves, once its commit is there.
    pub(crate) direct: bool,
}

/// When each event was about to be committed, in nanoseconds since the first was due; 0: not yet.
struct Moments {
    began: Instant,
    sent: Vec<AtomicU64>,
}

impl Moments {
    fn now(&self) -> u64 {
        (Instant::now() - self.began).as_nanos() as u64
    }
}

/// What a writer works with.
struct Writing<'a> {
    connection: PgConnection,
    aggregate_type: &'a str,
    moments: &'a Moments,
    direct: Option<&'a Direct>,
}

/// What the consumer says and is told.
#[derive(Debug, Default)]
struct Reading {
    /// Records that are none of the events.
    passed: AtomicU64,
    enough: AtomicBool,
}

/// A producer in the writers' own process, set up as the relay's is: the shortest way there is from a
/// commit to the topic, and a lossy one.
struct Direct {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
}

impl Direct {
    fn new(place: &Place) -> Result<Self, String> {
        let producer = producer(&place.brokers, 1).map_err(|error| error.to_string())?;
        let direct = Self {
            producer,
            topic: place.topic.clone(),
        };
        // the connection is made, and what the topic has is known
        direct.produce("warm", "{}")?;
        let flushed = direct.producer.flush(Duration::from_secs(60));
        flushed.map_err(|error| error.to_string())?;
        Ok(direct)
    }

    fn send(&self, numbers: std::ops::Range<u64>) -> Result<(), String> {
        let note = "x".repeat(150);
        numbers.into_iter().try_for_each(|n| {
            let key = format!("{:08x}-0000-4000-8000-000000000000", n % 20_000);
            let payload = format!(
                "{{\"n\": {n}, \"note\": \"{note}\", \"items\": [1, 2, 3], \"total\": {n}.5, \
                 \"customer\": \"{n:032x}\"}}"
            );
            self.produce(&key, &payload)
        })
    }

    fn produce(&self, key: &str, payload: &str) -> Result<(), String> {
        let record = BaseRecord::to(&self.topic).key(key).payload(payload);
        let sent = self.producer.send(record);
        sent.map_err(|(error, _)| error.to_string())
    }
}

/// How long events took, and how many a second were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    pub(crate) events: u64,
    pub(crate) seconds: f64,
    /// From commit to consumer, in milliseconds, ascending.
    pub(crate) ms: Vec<f64>,
    /// Of these the commit, of each transaction, ascending.
    pub(crate) commit_ms: Vec<f64>,
}

impl Arrival {
    /// What arrives in a steady case, with `past` records in the topic before.
    pub(crate) fn of(steady: &Steady, size: Size, past: u64, direct: bool) -> Self {
        Self {
            rate: steady.rate,
            rows_per_transaction: steady.rows_per_transaction,
            lasting: Duration::from_secs(size.seconds.max(1)),
            past,
            direct,
        }
    }

    /// Writes, and reads what arrives in Kafka until all of it has.
    ///
    /// The time of an event is from just before its commit is sent (a row that is a transaction by itself
    /// carries its commit with it) to the return of the consumer's poll that has it. Writers keep to their
    /// schedule as well as they can; one that is late is late, and does not begin its clock before.
    pub(crate) async fn run(&self, place: &Place) -> Result<Taken, String> {
        let transactions = self.rate * self.lasting.as_secs() / self.rows_per_transaction;
        let events = transactions.max(1) * self.rows_per_transaction;
        // each is good for some hundreds of commits a second
        let writers = (self.rate / self.rows_per_transaction)
            .div_ceil(250)
            .clamp(1, 16);
        let moments = Arc::new(Moments {
            began: Instant::now(),
            sent: (0..events).map(|_| AtomicU64::new(0)).collect(),
        });
        let reading = Arc::new(Reading::default());
        let consumer = consume(place, Arc::clone(&moments), Arc::clone(&reading))?;
        let mut connections = Vec::new();
        for _ in 0..writers {
            connections.push(place.connect().await?);
        }
        let direct = match self.direct {
            true => Some(Arc::new(Direct::new(place)?)),
            false => None,
        };
        // a consumer takes most of a second to find its partitions: no part of any event's way
        let ready = Instant::now() + Duration::from_secs(120);
        while reading.passed.load(Ordering::Relaxed) < self.past {
            if Instant::now() > ready {
                return Err("the consumer did not read what is there".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut tasks = JoinSet::new();
        let began = Instant::now();
        for (writer, connection) in (0_u64..).zip(connections) {
            let (load, moments, direct) = (self.clone(), Arc::clone(&moments), direct.clone());
            let aggregate_type = place.aggregate_type.clone();
            tasks.spawn(async move {
                let every = (writer..transactions.max(1)).step_by(writers as usize);
                let writing = Writing {
                    connection,
                    aggregate_type: &aggregate_type,
                    moments: &moments,
                    direct: direct.as_deref(),
                };
                load.write(writing, every, began).await
            });
        }
        let mut commit_ms = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            commit_ms.extend(ended.map_err(|error| error.to_string())??);
        }
        commit_ms.sort_by(f64::total_cmp);
        let seconds = began.elapsed().as_secs_f64();
        let late = Instant::now() + Duration::from_secs(120);
        while !consumer.is_finished() {
            if Instant::now() > late {
                reading.enough.store(true, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut ms = consumer.join().map_err(|_| "the consumer panicked")?;
        if ms.len() as u64 != events {
            return Err(format!("{} of {events} events arrived", ms.len()));
        }
        ms.sort_by(f64::total_cmp);
        Ok(Taken {
            events,
            seconds,
            ms,
            commit_ms,
        })
    }

    /// Writes `transactions`, and says how many milliseconds the commit of each took.
    async fn write(
        &self,
        mut writing: Writing<'_>,
        transactions: impl Iterator<Item = u64>,
        began: Instant,
    ) -> Result<Vec<f64>, String> {
        let Writing {
            aggregate_type,
            moments,
            ..
        } = writing;
        let connection = &mut writing.connection;
        let mut commit_ms = Vec::new();
        let told = |error: sqlx::Error| error.to_string();
        let rows = self.rows_per_transaction;
        let pause = Duration::from_secs_f64(rows as f64 / self.rate as f64);
        for transaction in transactions {
            sleep_until(began + pause * transaction as u32).await;
            let first = transaction * rows;
            let stamp = || {
                let now = moments.now();
                let sent = moments.sent.iter().skip(first as usize).take(rows as usize);
                sent.for_each(|sent| sent.store(now, Ordering::Relaxed));
            };
            let insert = || {
                sqlx::query(
                    "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                     select md5((n % 20000)::text)::uuid, $1, 'OrderChanged',
                            jsonb_build_object('n', n, 'customer', md5(n::text), 'total', n * 1.5,
                                               'items', jsonb_build_array(1, 2, 3), 'note', repeat('x', 150))
                       from generate_series($2::int8, $3::int8) n",
                )
                .bind(aggregate_type)
                .bind(first as i64)
                .bind((first + rows - 1) as i64)
            };
            let committing = if rows == 1 {
                stamp();
                let committing = Instant::now();
                insert().execute(&mut *connection).await.map_err(told)?;
                committing
            } else {
                let mut open = sqlx::Connection::begin(&mut *connection)
                    .await
                    .map_err(told)?;
                insert().execute(&mut *open).await.map_err(told)?;
                stamp();
                let committing = Instant::now();
                open.commit().await.map_err(told)?;
                committing
            };
            commit_ms.push(committing.elapsed().as_secs_f64() * 1e3);
            if let Some(direct) = writing.direct {
                direct.send(first..first + rows)?;
            }
        }
        Ok(commit_ms)
    }
}

/// Reads one record after the other, as soon as it is there: a poll for many that waits for them adds
/// its wait to every time.
fn consume(
    place: &Place,
    moments: Arc<Moments>,
    reading: Arc<Reading>,
) -> Result<std::thread::JoinHandle<Vec<f64>>, String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &place.kafka.brokers)
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .create()
        .map_err(|error| error.to_string())?;
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        // what a case has published before this has no number, and is passed over
        all.add_partition_offset(&place.topic, partition, Offset::Beginning)
            .map_err(|error| error.to_string())?;
    }
    consumer.assign(&all).map_err(|error| error.to_string())?;
    Ok(std::thread::spawn(move || {
        let mut ms = Vec::with_capacity(moments.sent.len());
        while ms.len() < moments.sent.len() && !reading.enough.load(Ordering::Relaxed) {
            let Some(Ok(record)) = consumer.poll(Duration::from_millis(5)) else {
                continue;
            };
            let now = moments.now();
            let number = record.payload().and_then(number_of);
            let Some(sent) = number.and_then(|n| moments.sent.get(n)) else {
                reading.passed.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            // 0 from here on: a repeat is not another event
            let sent = sent.swap(0, Ordering::Relaxed);
            if sent > 0 {
                ms.push(now.saturating_sub(sent) as f64 / 1e6);
            }
        }
        ms
    }))
}

/// The member `n` of a payload, which Postgres prints first.
fn number_of(payload: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(payload).ok()?;
    let rest = text.strip_prefix("{\"n\": ")?;
    rest.split(',').next()?.parse().ok()
}
