//! `drain`, `link` and the bad days of a backlog.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use crate::Size;
use crate::catalog::{Drain, Trouble};
use crate::load::Backlog;
use crate::meter::Meter;
use crate::relays::{Build, Relay, Told, done, migrated};
use crate::report::Row;
use crate::stand::{Place, Stand, execute};

/// How long Kafka stands still in [`Trouble::Stall`].
const STALL: Duration = Duration::from_secs(5);
/// A drain that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(600);

pub(crate) async fn run(
    stand: &mut Stand,
    drain: &Drain,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    let link = stand.delay(drain.link);
    let mut place = migrated(stand, link, drain.column, drain.mode, build).await?;
    let backlog = Backlog {
        rows: (size.rows / drain.part).max(1),
        bytes: drain.bytes,
        column: drain.column,
        aggregates: drain.aggregates,
        poison_every: (drain.trouble == Trouble::Poison).then_some(1_000),
        homeless_every: (drain.trouble == Trouble::MissingTopic).then_some(10),
    };
    if drain.trouble == Trouble::NoVacuum {
        place
            .execute("alter table outbox set (autovacuum_enabled = false)")
            .await?;
        place.seed(&backlog).await?;
        publish(stand, &mut place, drain, build, &backlog, None).await?;
    }
    place.seed(&backlog).await?;
    let pinned = prepare(&mut place, drain.trouble).await?;
    let published = match drain.trouble {
        Trouble::NoVacuum => 2 * backlog.good(),
        _ => backlog.good(),
    };
    publish(stand, &mut place, drain, build, &backlog, Some(row)).await?;
    drop(pinned);
    let there = place.kafka.count(&place.topic).await as u64;
    if there < published {
        return Err(format!("only {there} of {published} records are in Kafka"));
    }
    if there > published {
        row.note(format!("{} repeated", there - published));
    }
    stand.heal();
    stand.leave(place).await
}

/// Makes a day a bad one. What is returned is to be kept until it is over.
pub(crate) async fn prepare(
    place: &mut Place,
    trouble: Trouble,
) -> Result<Option<PgConnection>, String> {
    match trouble {
        Trouble::Pinned => {
            let mut open = place.connect().await?;
            let pin = "begin isolation level repeatable read; select count(*) from pg_class";
            execute(&mut open, pin).await?;
            return Ok(Some(open));
        }
        Trouble::Parked => {
            let aggregate_type = place.aggregate_type.clone();
            let parked = |state: &str, rows: u64, offset: i64| {
                format!(
                    "insert into outbox_relay.parked
                            (outbox, state, seq, event_id, aggregate_type, aggregate_id, event_type, topic,
                             headers, value, hash, reason_class, reason)
                     select 'public.outbox', '{state}', {offset} + i, gen_random_uuid(), '{aggregate_type}',
                            md5('hot'), 'OrderChanged', 'x', '[]', '1', hashtext(md5('hot')), 'other', 'a bench'
                       from generate_series(1, {rows}) i;"
                )
            };
            let both = parked("blocked", 1, -1_000_000) + &parked("behind", 99_999, -900_000);
            place.execute(&both).await?;
            place.execute("vacuum analyze outbox_relay.parked").await?;
        }
        _ => {}
    }
    Ok(None)
}

/// Lets relays publish the backlog, from their start to the last row that is settled.
async fn publish(
    stand: &Stand,
    place: &mut Place,
    drain: &Drain,
    build: &Build,
    backlog: &Backlog,
    row: Option<&mut Row>,
) -> Result<(), String> {
    let wanted = backlog.good();
    let before = Meter::start(stand, place).await?;
    let began = Instant::now();
    let told = Told {
        place,
        mode: drain.mode,
    };
    let mut relays = Vec::new();
    for _ in 0..drain.relays {
        relays.push(told.start(build)?);
    }
    let stalled = drain.trouble == Trouble::Stall && row.is_some();
    let ended = until(&mut relays, wanted, stalled.then_some(stand)).await?;
    let seconds = (ended.at - began).as_secs_f64();
    if let Some(row) = row {
        before.stop(stand, place, &relays, wanted, row).await?;
        let stall = if stalled { STALL.as_secs_f64() } else { 0.0 };
        row.events = wanted;
        row.seconds = seconds;
        row.rate = Some(wanted as f64 / (seconds - stall));
        row.start_ms = Some((ended.first.0 - began).as_secs_f64() * 1e3);
        if wanted > ended.first.1 && !stalled {
            let running = (ended.at - ended.first.0).as_secs_f64();
            row.running = Some((wanted - ended.first.1) as f64 / running);
        }
        if let Trouble::Poison = drain.trouble {
            row.note(format!("{} parked", ended.parked));
        }
        if stalled {
            row.note(format!("the rate is without the {STALL:?} of the stall"));
        }
    }
    for relay in relays {
        relay.stop().await?;
    }
    Ok(())
}

/// What was seen of a drain.
struct Ended {
    /// When the first rows were settled, as far as was looked, and how many they were.
    first: (Instant, u64),
    at: Instant,
    parked: u64,
}

/// Looks until `wanted` rows are published. It looks often towards the end only: each look costs the
/// relay a scrape.
async fn until(relays: &mut [Relay], wanted: u64, stall: Option<&Stand>) -> Result<Ended, String> {
    let began = Instant::now();
    let mut stall = stall;
    let mut first = None;
    loop {
        let done = done(relays).await?;
        let now = Instant::now();
        if done.published > 0 {
            first.get_or_insert((now, done.published));
        }
        if done.published >= wanted {
            return Ok(Ended {
                first: first.unwrap_or((now, wanted)),
                at: now,
                parked: done.parked,
            });
        }
        if began.elapsed() > LONGEST {
            let log: Vec<_> = relays.iter().map(Relay::log).collect();
            return Err(format!(
                "{} of {wanted} after {LONGEST:?}\n{}",
                done.published,
                log.join("\n")
            ));
        }
        if let Some(stand) = stall.take_if(|_| done.published > wanted / 3) {
            stand.kafka.pause().await;
            sleep(STALL).await;
            stand.kafka.unpause().await;
        }
        let pause = match first {
            Some((at, then)) if done.published > then => {
                let rate = (done.published - then) as f64 / (now - at).as_secs_f64();
                let left = (wanted - done.published) as f64 / rate;
                Duration::from_secs_f64((left / 3.0).clamp(0.01, 0.2))
            }
            _ => Duration::from_millis(20),
        };
        sleep(pause).await;
    }
}
