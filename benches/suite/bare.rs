//! The barest polling publisher there is, to measure the relay's latency against: one connection that claims what
//! there is, one producer with the relay's settings, a batch settled before the next is claimed. No lanes, no
//! judging, no parking, no metrics, and one process with who writes and reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientContext, Message as _};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::Size;
use crate::catalog::Steady;
use crate::ceiling::{OPEN, enqueue, producer_settings};
use crate::load::Arrival;
use crate::meter::{Meter, used_us};
use crate::relays::{Build, migrated};
use crate::report::Row;
use crate::stand::{Stand, execute};
use crate::steady::written;

/// As long as the relay's, which is what `poll_interval_min` is by default.
const PAUSE: Duration = Duration::from_millis(1);
/// And `poll_interval_max`.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
const CLAIM: &str =
    "select t.seq, t.tableoid, t.ctid::text, t.id, t.aggregate_type::text, t.aggregate_id::text,
        t.event_type::text, t.payload::text, t.created_at
   from outbox t where t.published_at is null and t.seq is not null order by t.seq limit 2000
    for update skip locked";
const DELETE: &str = "delete from outbox t where t.ctid = any ($1::text[]::tid[])";

/// Counts what was acknowledged, and tells who waits for it.
#[derive(Debug, Default)]
struct Acknowledged {
    count: Mutex<usize>,
    more: Condvar,
    refused: AtomicBool,
}

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((_, record)) = result {
            eprintln!("{}: refused", record.topic());
            self.refused.store(true, Ordering::Relaxed);
        }
        *self.count.lock().unwrap() += 1;
        self.more.notify_one();
    }
}

pub(crate) async fn run(
    stand: &mut Stand,
    steady: &Steady,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    // the writers' inserts are to be the same, with one index as well
    let mut place = migrated(stand, None, "jsonb", steady.mode, build).await?;
    place
        .execute(
            "do $$ declare name text; begin
               for name in select indexrelid::regclass from pg_index
                            where indrelid = 'outbox'::regclass and not indisprimary and not indisunique
               loop execute 'drop index ' || name; end loop;
             end $$",
        )
        .await?;
    place
        .execute("create index bare on outbox (seq) where published_at is null")
        .await?;
    let (connection, topic) = (place.connect().await?, place.topic.clone());
    let producer: ThreadedProducer<Acknowledged> = producer_settings(&place.brokers, 1)
        .create_with_context(Acknowledged::default())
        .map_err(|error| error.to_string())?;
    // the connection is made, and what the topic has is known
    let warm = producer.send(BaseRecord::to(&topic).key("warm").payload("{}"));
    warm.map_err(|(error, _)| error.to_string())?;
    let flushed = producer.flush(Duration::from_secs(60));
    flushed.map_err(|error| error.to_string())?;
    let enough = Arc::new(AtomicBool::new(false));
    let before = Meter::start(stand, &mut place).await?;
    let relaying = {
        let (enough, handle) = (Arc::clone(&enough), Handle::current());
        std::thread::spawn(move || relay(&handle, connection, &producer, &topic, &enough))
    };
    let arrival = Arrival::of(steady, size, 1, false);
    let taken = arrival.run(&place).await;
    enough.store(true, Ordering::Relaxed);
    let batches = relaying.join().map_err(|_| "the publisher panicked")??;
    let taken = taken?;
    before
        .stop(stand, &mut place, &[], taken.events, row)
        .await?;
    written(&taken, row);
    row.note(format!(
        "no relay, the barest loop; {:.1} rows a batch",
        taken.events as f64 / batches.max(1) as f64
    ));
    stand.leave(place).await
}

/// What this process uses to ask for the outbox's last number as often as a relay at rest does, and for nothing
/// else: no producer, no metrics, nobody who looks after the table.
pub(crate) async fn idle(
    stand: &mut Stand,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    let mut place = migrated(stand, None, "jsonb", "delete", build).await?;
    let mut connection = place.connect().await?;
    sleep(Duration::from_secs(3)).await;
    let before = Meter::start(stand, &mut place).await?;
    let (used, began) = (used_us(std::process::id()), Instant::now());
    while began.elapsed() < Duration::from_secs(2 * size.seconds.max(1)) {
        sleep(LONGEST_PAUSE).await;
        let asked = sqlx::raw_sql(
            "select pg_sequence_last_value(pg_get_serial_sequence('outbox', 'seq')::regclass)",
        );
        let asked = asked.fetch_one(&mut connection).await;
        asked.map_err(|error| error.to_string())?;
    }
    row.seconds = began.elapsed().as_secs_f64();
    let of_a_core = |used_us: f64| used_us / 1e6 / row.seconds * 100.0;
    row.core_percent = Some(of_a_core(used_us(std::process::id()) - used));
    before.stop(stand, &mut place, &[], 1, row).await?;
    row.note(format!(
        "no relay, one question for each poll; Postgres {:.2} % of a core",
        row.postgres_us.unwrap_or(0.0) / 1e6 / row.seconds * 100.0
    ));
    (row.postgres_us, row.kafka_us, row.wal_bytes) = (None, None, None);
    stand.leave(place).await
}

/// Claims, publishes, settles, again and again until it is enough: how many batches that were.
fn relay(
    handle: &Handle,
    mut connection: PgConnection,
    producer: &ThreadedProducer<Acknowledged>,
    topic: &str,
    enough: &AtomicBool,
) -> Result<usize, String> {
    let told = |error: sqlx::Error| error.to_string();
    let mut batches = 0;
    while !enough.load(Ordering::Relaxed) {
        let rows = handle.block_on(async {
            execute(&mut connection, OPEN).await?;
            let claimed = sqlx::query(CLAIM).fetch_all(&mut connection);
            claimed.await.map_err(told)
        })?;
        if !rows.is_empty() {
            publish(producer, topic, &rows).map_err(|error| error.to_string())?;
            batches += 1;
        }
        handle.block_on(async {
            if !rows.is_empty() {
                let places: Vec<&str> = rows.iter().map(|row| row.get(2)).collect();
                let delete = sqlx::query(DELETE).bind(places);
                delete.execute(&mut connection).await.map_err(told)?;
            }
            execute(&mut connection, "commit").await?;
            if rows.is_empty() {
                sleep(PAUSE).await;
            }
            Ok::<_, String>(())
        })?;
    }
    Ok(batches)
}

/// Returns once all of it is acknowledged.
fn publish(
    producer: &ThreadedProducer<Acknowledged>,
    topic: &str,
    rows: &[PgRow],
) -> Result<(), KafkaError> {
    let told = producer.context();
    let all = *told.count.lock().unwrap() + rows.len();
    for row in rows {
        let (id, kind): (sqlx::types::Uuid, &str) = (row.get(3), row.get(6));
        let id = id.to_string();
        let record = BaseRecord::to(topic).key(row.get(5)).payload(row.get(7));
        enqueue(producer, record, &id, kind)?;
    }
    let count = told.count.lock().unwrap();
    drop(told.more.wait_while(count, |count| *count < all).unwrap());
    match told.refused.load(Ordering::Relaxed) {
        true => Err(KafkaError::Canceled),
        false => Ok(()),
    }
}
