//! The image that the Dockerfile makes, with as little leave as it says it wants: not root, nothing
//! to write to, no capability. `OUTBOX_TEST_RELAY_IMAGE` names it; `.ci/run image` builds it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::support::janitor::{LABEL, RUN_ID};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::servers::{given, say};
use crate::support::writers::Load;
use crate::support::{self, World};

const SOON: Duration = Duration::from_secs(60);

/// The image, or None where nobody built one.
fn image() -> Option<String> {
    let image = given("OUTBOX_TEST_RELAY_IMAGE");
    if image.is_none() {
        say("no OUTBOX_TEST_RELAY_IMAGE: the image is not tested");
    }
    image
}

fn docker(arguments: &[&str]) -> String {
    let ran = Command::new("docker").args(arguments).output();
    let ran = ran.expect("docker can be started");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "docker {arguments:?}: {said}");
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

/// A program that runs the relay in a container named `name`, in the network of this machine, where
/// the tests' servers are. Signals and the exit code go through.
fn in_container(world: &World, image: &str, name: &str) -> PathBuf {
    let program = world.file(name);
    let folder = program.parent().expect("a file is somewhere");
    let script = format!(
        "#!/bin/sh\nexec docker run --rm --name {name} --label {LABEL}={} --network host --read-only \\\n  \
         --cap-drop ALL --security-opt no-new-privileges --memory 256m --volume {dir}:{dir}:ro \\\n  \
         {image} \"$@\"\n",
        *RUN_ID,
        dir = folder.display(),
    );
    fs::write(&program, script).expect("the script can be written");
    let all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&program, all).expect("it can be made a program");
    program
}

#[test]
fn the_image_relays_every_row_without_root_and_stops_gently() {
    let Some(image) = image() else { return };
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Mark);
        outbox.create(world).await;
        let name = format!("outbox-relay-{}-image", *RUN_ID);
        let setup = world.relay(&[&outbox]);
        let setup = setup.program(in_container(world, &image, &name));
        setup.migrate().await;

        let load = Load::of(&world.aggregate_type("Order"));
        let topic = support::topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 3, &[]).await;
        let mut relay = setup.run();
        relay.wait_line("serving the outbox", SOON).await;
        let ledger = load.start(world, &outbox).await.finish().await;
        outbox.wait_drained(world, SOON).await;

        // every process of it, as the machine sees them
        let users = docker(&["top", &name, "-o", "pid,uid"]);
        let users = users.lines().skip(1);
        let users: Vec<_> = users
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        assert_eq!(users, ["65532"], "one process, and not root");

        relay.sigterm();
        let status = relay.wait_exit(SOON).await;
        assert!(status.success(), "after SIGTERM: {status}");
        assert!(ledger.committed() > 0);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn the_image_has_the_program_and_no_shell_and_says_who_runs_it() {
    let Some(image) = image() else { return };
    let config = |field: &str| {
        docker(&[
            "image",
            "inspect",
            "-f",
            &format!("{{{{json .Config.{field}}}}}"),
            &image,
        ])
    };
    assert_eq!(config("User"), "\"65532:65532\"");
    assert_eq!(config("Entrypoint"), "[\"/usr/local/bin/outbox-relay\"]");
    assert_eq!(config("StopSignal"), "\"SIGTERM\"");
    let shell = Command::new("docker")
        .args([
            "run",
            "--rm",
            "--entrypoint",
            "/bin/sh",
            &image,
            "-c",
            "true",
        ])
        .output()
        .expect("docker can be started");
    assert!(!shell.status.success(), "a shell is of no use to the relay");
    let version = docker(&[
        "run",
        "--rm",
        "--read-only",
        "--network",
        "none",
        &image,
        "--version",
    ]);
    assert_eq!(
        version,
        format!("outbox-relay {}", env!("CARGO_PKG_VERSION"))
    );
}
