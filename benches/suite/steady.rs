//! `steady` and `idle`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Size;
use crate::catalog::{Steady, Trouble};
use crate::drain::prepare;
use crate::load::{Arrival, Backlog, Taken};
use crate::meter::{Meter, used_us};
use crate::relays::{Build, Relay, Told, done, migrated};
use crate::report::{Latency, Row};
use crate::stand::{Place, Stand};

/// A few rows that come first: connections are made and statements prepared by them.
const FIRST: u64 = 500;

pub(crate) async fn run(
    stand: &mut Stand,
    steady: &Steady,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    let link = stand.delay(steady.link);
    let mut place = migrated(stand, link, "jsonb", steady.mode, build).await?;
    let pinned = prepare(&mut place, steady.trouble).await?;
    // A bad day has a past: the dead rows of a backlog. Its clean twin has the same, vacuumed.
    let past = match steady.trouble {
        Trouble::Pinned => size.rows,
        _ => FIRST,
    };
    let mut relays = [serve(&mut place, steady.mode, build, past).await?];
    let before = Meter::read(stand, &mut place, &relays).await?;
    let arrival = Arrival::of(steady, size, past, false);
    let taken = arrival.run(&place).await?;
    before
        .stop(stand, &mut place, &relays, taken.events, row)
        .await?;
    written(&taken, row);
    relays[0].check()?;
    let [relay] = relays;
    relay.stop().await?;
    drop(pinned);
    stand.heal();
    stand.leave(place).await
}

/// Events whose writers send them to Kafka themselves: what a commit and a publish take without a relay
/// between them.
pub(crate) async fn direct(
    stand: &mut Stand,
    steady: &Steady,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    // the writers' inserts are to be the same
    let mut place = migrated(stand, None, "jsonb", steady.mode, build).await?;
    let pinned = prepare(&mut place, steady.trouble).await?;
    if steady.trouble == Trouble::Pinned {
        place.seed(&Backlog::usual(size.rows)).await?;
        place.execute("delete from outbox").await?;
    }
    let before = Meter::start(stand, &mut place).await?;
    let arrival = Arrival::of(steady, size, 1, true);
    let taken = arrival.run(&place).await?;
    before
        .stop(stand, &mut place, &[], taken.events, row)
        .await?;
    written(&taken, row);
    row.note("no relay, nothing claimed".to_owned());
    drop(pinned);
    stand.leave(place).await
}

pub(crate) fn written(taken: &Taken, row: &mut Row) {
    row.events = taken.events;
    row.seconds = taken.seconds;
    row.rate = Some(taken.events as f64 / taken.seconds);
    row.latency = Latency::of(&taken.ms);
    row.commit = Latency::of(&taken.commit_ms);
}

/// What a relay uses while nothing comes.
pub(crate) async fn idle(
    stand: &mut Stand,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    let mut place = migrated(stand, None, "jsonb", "delete", build).await?;
    let relay = serve(&mut place, "delete", build, FIRST).await?;
    // the pauses have grown to their longest by then
    sleep(Duration::from_secs(3)).await;
    let postgres = Meter::start(stand, &mut place).await?;
    let (began, before) = (Instant::now(), used_us(relay.pid()));
    sleep(Duration::from_secs(2 * size.seconds.max(1))).await;
    let seconds = began.elapsed().as_secs_f64();
    let of_a_core = |used_us: f64| used_us / 1e6 / seconds * 100.0;
    let relay_us = used_us(relay.pid()) - before;
    let relays = [relay];
    postgres.stop(stand, &mut place, &relays, 1, row).await?;
    row.seconds = seconds;
    row.core_percent = Some(of_a_core(relay_us));
    row.note(format!(
        "Postgres {:.2} % of a core",
        of_a_core(row.postgres_us.unwrap_or(0.0))
    ));
    (row.relay_us, row.postgres_us, row.kafka_us) = (None, None, None);
    (row.wal_bytes, row.statements, row.rows_per_transaction) = (None, None, None);
    let [relay] = relays;
    relay.stop().await?;
    stand.leave(place).await
}

/// A relay that has published `past` rows already.
async fn serve(place: &mut Place, mode: &str, build: &Build, past: u64) -> Result<Relay, String> {
    let backlog = Backlog::usual(past);
    place.seed(&backlog).await?;
    let told = Told { place, mode };
    let mut relays = [told.start(build)?];
    let began = Instant::now();
    while done(&mut relays).await?.published < backlog.good() {
        if began.elapsed() > Duration::from_secs(600) {
            return Err(format!("the backlog before stays\n{}", relays[0].log()));
        }
        sleep(Duration::from_millis(50)).await;
    }
    let [relay] = relays;
    Ok(relay)
}
