//! What the machine allows without a relay: Postgres alone, Kafka alone.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DefaultProducerContext, Producer, ProducerContext, ThreadedProducer,
};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Size;
use crate::catalog::{Kafka, Postgres};
use crate::load::{Backlog, HOMELESS};
use crate::meter::{Meter, used_us};
use crate::relays::{Build, migrated};
use crate::report::Row;
use crate::stand::{Stand, execute};
use crate::support::kafka::blocking;

const LANES: u64 = 16;
const BATCH: usize = 2_000;
/// As the relay has them: without these the claim becomes a sort.
pub(crate) const OPEN: &str = "begin isolation level read committed;
     set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off;
     set local jit = off";

/// Connections that claim rows lane by lane and delete them, and do nothing else with them. Each has
/// lanes of its own and remembers where it was, so that it does not pass over the dead rows behind it.
pub(crate) async fn postgres(
    stand: &mut Stand,
    postgres: Postgres,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    // for the numbers and the index of the lanes
    let mut place = migrated(stand, None, "jsonb", "delete", build).await?;
    let backlog = Backlog {
        homeless_every: postgres.passing.then_some(10),
        ..Backlog::usual(size.rows)
    };
    place.seed(&backlog).await?;
    let before = Meter::start(stand, &mut place).await?;
    let (used, began) = (used_us(std::process::id()), Instant::now());
    let mut tasks = JoinSet::new();
    for first in 0..postgres.connections {
        let connection = place.connect().await?;
        tasks.spawn(async move { drain(connection, postgres, first).await });
    }
    let mut deleted = 0;
    while let Some(ended) = tasks.join_next().await {
        deleted += ended.map_err(|error| error.to_string())??;
    }
    let seconds = began.elapsed().as_secs_f64();
    if deleted != backlog.good() {
        return Err(format!("{deleted} of {} rows", backlog.good()));
    }
    let used = used_us(std::process::id()) - used;
    before.stop(stand, &mut place, &[], deleted, row).await?;
    row.relay_us = Some(used / deleted.max(1) as f64);
    (row.events, row.seconds) = (deleted, seconds);
    row.rate = Some(deleted as f64 / seconds);
    row.kafka_us = None;
    row.note("no relay, nothing published; relay µs are what reading the rows takes".to_owned());
    stand.leave(place).await
}

async fn drain(
    mut connection: PgConnection,
    postgres: Postgres,
    first: u64,
) -> Result<u64, String> {
    let told = |error: sqlx::Error| error.to_string();
    let columns =
        "t.seq, t.tableoid, t.ctid::text, t.id, t.aggregate_type::text, t.aggregate_id::text,
                   t.event_type::text, t.payload::text, t.created_at";
    let passed = match postgres.passing {
        true => format!("and t.aggregate_type <> '{HOMELESS}'"),
        false => String::new(),
    };
    let rows = format!(
        "from outbox t
          where t.published_at is null and t.seq is not null
            and (hashtext(coalesce(t.aggregate_id::text, '')) & {mask}) = $1 and t.seq > $2 {passed}
          order by t.seq limit {BATCH} for update skip locked",
        mask = LANES - 1
    );
    let claim = format!("select {columns} {rows}");
    let delete = "delete from outbox t where t.ctid = any ($1::text[]::tid[])";
    let both = format!(
        "delete from outbox t where t.ctid = any (array(select t.ctid {rows})) returning {columns}"
    );
    let mut lanes: Vec<(i32, i64)> = (first..LANES)
        .step_by(postgres.connections as usize)
        .map(|lane| (lane as i32, i64::MIN))
        .collect();
    let mut deleted = 0;
    while !lanes.is_empty() {
        let mut left = Vec::new();
        for (lane, after) in lanes {
            execute(&mut connection, OPEN).await?;
            let sql = if postgres.at_once { &both } else { &claim };
            let claimed = sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(lane)
                .bind(after)
                .fetch_all(&mut connection)
                .await
                .map_err(told)?;
            if !postgres.at_once {
                let places: Vec<&str> = claimed.iter().map(|row| row.get(2)).collect();
                sqlx::query(delete)
                    .bind(places)
                    .execute(&mut connection)
                    .await
                    .map_err(told)?;
            }
            execute(&mut connection, "commit").await?;
            deleted += claimed.len() as u64;
            let last = claimed.iter().map(|row| row.get::<i64, _>(0)).max();
            if let Some(last) = last {
                left.push((lane, last));
            }
        }
        lanes = left;
    }
    Ok(deleted)
}

/// Producers of records as the relay would make them, as fast as they can.
pub(crate) async fn kafka(
    stand: &mut Stand,
    kafka: Kafka,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    let mut place = stand.place(None).await?;
    let each = size.rows / kafka.producers;
    let events = each * kafka.producers;
    let before = Meter::start(stand, &mut place).await?;
    let (used, began) = (used_us(std::process::id()), Instant::now());
    let mut tasks = JoinSet::new();
    for number in 0..kafka.producers {
        let (brokers, topic) = (place.brokers.clone(), place.topic.clone());
        tasks.spawn(blocking(move || {
            produce(&brokers, &topic, kafka, number * each..(number + 1) * each)
        }));
    }
    while let Some(ended) = tasks.join_next().await {
        ended
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let used = used_us(std::process::id()) - used;
    before.stop(stand, &mut place, &[], events, row).await?;
    row.relay_us = Some(used / events.max(1) as f64);
    let there = place.kafka.count(&place.topic).await as u64;
    if there != events {
        return Err(format!("{there} of {events} records"));
    }
    (row.events, row.seconds) = (events, seconds);
    row.rate = Some(events as f64 / seconds);
    (row.postgres_us, row.wal_bytes) = (None, None);
    row.note("no relay, nothing claimed; relay µs are the producers'".to_owned());
    stand.leave(place).await
}

/// A producer with the relay's settings, but for the requests in flight.
pub(crate) fn producer(
    brokers: &str,
    in_flight: u64,
) -> Result<ThreadedProducer<DefaultProducerContext>, KafkaError> {
    producer_settings(brokers, in_flight).create()
}

/// The settings of such a producer.
pub(crate) fn producer_settings(brokers: &str, in_flight: u64) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set(
            "max.in.flight.requests.per.connection",
            in_flight.to_string(),
        )
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .set("linger.ms", "0");
    settings
}

fn produce(
    brokers: &str,
    topic: &str,
    kafka: Kafka,
    numbers: std::ops::Range<u64>,
) -> Result<(), KafkaError> {
    let producer = producer(brokers, kafka.in_flight)?;
    let note = "x".repeat(150);
    for number in numbers {
        let key = format!("{:08x}-0000-4000-8000-000000000000", number % 20_000);
        let id = format!("{number:08x}-0000-4000-8000-000000000000");
        let value = format!(
            "{{\"note\": \"{note}\", \"items\": [1, 2, 3], \"total\": {number}.5, \"customer\": \
             \"{number:032x}\", \"order_id\": {number}}}"
        );
        let record = BaseRecord::to(topic).key(&*key).payload(&*value);
        enqueue(&producer, record, &id, "OrderCreated")?;
    }
    producer.flush(Duration::from_secs(120))
}

/// Hands a record to a producer with the headers that the relay gives it, as soon as there is room.
pub(crate) fn enqueue<C: ProducerContext<DeliveryOpaque = ()>>(
    producer: &ThreadedProducer<C>,
    record: BaseRecord<'_, str, str>,
    id: &str,
    kind: &str,
) -> Result<(), KafkaError> {
    let header = |key, value| Header {
        key,
        value: Some(value),
    };
    let headers = OwnedHeaders::new()
        .insert(header("event_id", id))
        .insert(header("event_type", kind));
    let mut record = record.headers(headers);
    while let Err((error, back)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(1));
        record = back;
    }
    Ok(())
}
