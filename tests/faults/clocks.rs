//! Row 20: the relay's own clock is wrong. Nothing it decides about rows may depend on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::postgres_scene::{LONG, Scene};
use crate::support::outbox::Outbox;
use crate::support::{self, eventually};

/// Debian's libfaketime, wherever this machine's architecture has it.
fn fake_time() -> Result<PathBuf, String> {
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
        // Kafka's own word on records from the future
        world.expect_errors("refuses records");
        let offset = world.file("clock");
        set(&offset, "+0");
        let mut outbox = Outbox::classic();
        // marked rows would be gone soon if their age were told by the relay's clock
        outbox.config = "retention = \"20min\"".to_owned();
        let scene = Scene::of(world, outbox, 200.0, |setup| {
            setup
                .env("LD_PRELOAD", &library.to_string_lossy())
                .env("FAKETIME_TIMESTAMP_FILE", &offset.to_string_lossy())
                .env("FAKETIME_NO_CACHE", "1")
                // the clock that only goes forward is not what an operator can set wrong
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        })
        .await;
        let first = scene.relay.lines().len();
        for clock in ["+55m", "-1h", "+30m", "-1h"] {
            set(&offset, clock);
            scene.flows().await;
        }
        let hour = |line: &String| line.split('T').nth(1).map(|time| time[..2].to_owned());
        // Kafka takes nothing from more than an hour ahead: a fault of the topic, not of any row
        set(&offset, "+3h");
        let said = scene.relay.wait_line("refuses records", LONG).await;
        let before = scene.relay.lines()[..first].iter().rev().find_map(hour);
        assert_ne!(hour(&said), before, "the relay's clock was set: {said}");
        let published = scene.published().await;
        sleep(Duration::from_secs(2)).await;
        assert!(
            scene.published().await <= published + 50,
            "its topic is paused"
        );
        set(&offset, "+0");
        scene.flows().await;
        let kept = scene.published().await;
        eventually(LONG, "more are kept", async || {
            scene.published().await > kept
        })
        .await;
        scene.end(0).await;
    });
}

fn set(file: &Path, offset: &str) {
    std::fs::write(file, offset).expect("the clock can be set");
}
