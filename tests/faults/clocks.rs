//! The relay's own clock is wrong. Nothing it decides about rows may depend on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;

use super::postgres_scene::{LONG, ROWS_MAX, Scene, TROUBLE, WORKERS};
use crate::support::outbox::Outbox;
use crate::support::{self, World};

/// Marked rows that are kept for five minutes are looked for every fifteen seconds.
const PURGE_PAUSE: Duration = Duration::from_secs(17);

/// Debian's libfaketime, wherever this machine's architecture has it.
pub(crate) fn fake_time() -> Result<PathBuf, String> {
    let libraries = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    let found = libraries.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    found
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| "no libfaketime: the package `libfaketime` has it".to_owned())
}

#[test]
fn a_relay_whose_clock_is_off_by_an_hour_keeps_every_promise() {
    let library = match fake_time() {
        Ok(library) => library,
        Err(why) => return support::skip(&why),
    };
    support::run(async |world| {
        let offset = world.file("clock");
        set(&offset, "+0");
        let waits = waits(world);
        let mut outbox = Outbox::classic();
        // marked rows would be gone soon if their age were told by the relay's clock
        outbox.config = "retention = \"5min\"".to_owned();
        let scene = Scene::of(world, outbox, 200.0, |setup| {
            setup
                .env(
                    "LD_PRELOAD",
                    &format!("{}:{}", waits.display(), library.display()),
                )
                .env("FAKETIME_TIMESTAMP_FILE", &offset.to_string_lossy())
                .env("FAKETIME_NO_CACHE", "1")
                // the clock that only goes forward is not what an operator can set wrong
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        })
        .await;
        // `{"timestamp":"…", …`
        let time = |line: &String| line.split('"').nth(3).map(str::to_owned);
        let before = scene.relay.wait_line("serving the outbox", LONG).await;
        set(&offset, "+55m");
        scene.flows().await;
        let last = "select max(seq) from outbox where published_at is not null";
        let last = world.number(last).await;
        let kept = format!("select count(*) from outbox where seq <= {last}");
        let rows = world.number(&kept).await;
        sleep(PURGE_PAUSE).await;
        assert_eq!(world.number(&kept).await, rows, "they are kept");
        for clock in ["-1h", "+30m", "-1h"] {
            set(&offset, clock);
            scene.flows().await;
        }
        // something to say, with the time it is there
        world
            .execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                  where datname = current_database() and application_name = 'outbox-relay'",
            )
            .await;
        let said = scene.relay.wait_line(TROUBLE, LONG).await;
        assert!(
            time(&said).is_some() && time(&said) < time(&before),
            "the relay's clock was set back: {said}, after {before}"
        );
        set(&offset, "+0");
        scene.flows().await;
        scene.end(WORKERS * ROWS_MAX).await;
    });
}

/// The library of `clocks.c`, made with the compiler that librdkafka wants as well.
fn waits(world: &World) -> PathBuf {
    let (source, library) = (world.file("clocks.c"), world.file("clocks.so"));
    std::fs::write(&source, include_str!("clocks.c")).expect("a file can be written");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status();
    assert!(made.is_ok_and(|made| made.success()), "cc makes it");
    library
}

/// At once, for a file that is half written is another time, by which a thread would wait for an hour.
fn set(file: &Path, offset: &str) {
    let written = file.with_extension("new");
    let set = std::fs::write(&written, offset).and_then(|()| std::fs::rename(&written, file));
    set.expect("the clock can be set");
}
