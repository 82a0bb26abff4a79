//! `examples/shop`, as whoever tries it runs it: with a stand-in for Kafka, and against the tests' real servers; and
//! its checker, which must notice each way to do it wrong.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::servers::{self, say};
use crate::support::{self, Rng, World, janitor};

/// How long a shop may take, its start and its end included, beyond the time that customers order.
const AROUND: Duration = Duration::from_secs(120);

/// The program, built as the tests are. Cargo builds examples for `cargo test`, but not for one test binary alone,
/// and tells nobody where they are.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let relay = PathBuf::from(env!("CARGO_BIN_EXE_outbox-relay"));
        let folder = relay.parent().expect("a program is in a folder");
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        let target = folder.parent().expect("that folder is in target/");
        let mut build = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        // Cargo tells a test what package it is of. Build scripts that heed such (ring's) would run anew, and half
        // of the dependencies be built again, here and once more by whoever builds next.
        let package = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_CRATE_",
            "CARGO_BIN_",
        ];
        servers::forget(&mut build, &package);
        let built = build
            .args([
                "build",
                "--locked",
                "--offline",
                "--example",
                "shop",
                "--profile",
                profile,
            ])
            .arg("--target-dir")
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .output()
            .expect("cargo can be started");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{said}");
        folder.join("examples").join("shop")
    })
}

/// How a shop ended: whether it said that all is well, and its verdict.
struct Ended {
    success: bool,
    verdict: Value,
    said: String,
}

impl Ended {
    fn number(&self, field: &str) -> u64 {
        let number = self.verdict[field].as_u64();
        number.unwrap_or_else(|| panic!("{field} in {}", self.verdict))
    }

    fn faults(&self) -> Vec<&str> {
        let faults = self.verdict["faults"].as_array();
        let faults = faults.unwrap_or_else(|| panic!("{}", self.said));
        faults.iter().filter_map(Value::as_str).collect()
    }
}

/// A shop is a dozen processes: two at once would measure each other, and hold up all other tests.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Runs a shop to its end.
async fn shop(arguments: &[&str], servers: &[(&str, &str)], limit: Duration) -> Ended {
    let program = tokio::task::spawn_blocking(program).await.unwrap();
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut command = tokio::process::Command::new(program);
    let ours = [
        "OUTBOX_RELAY__",
        "SHOP_",
        "DATABASE_URL",
        "KAFKA_BROKERS",
        "PG",
        "RUST_LOG",
    ];
    servers::forget(command.as_std_mut(), &ours);
    command
        .arg("--json")
        .args(arguments)
        .args(servers.iter().flat_map(|(name, value)| [name, value]))
        .env(
            janitor::RUN,
            format!("{}{}", janitor::PREFIX, *janitor::RUN_ID),
        )
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = timeout(limit + AROUND, command.output()).await;
    let ended = ended.expect("the shop ends").unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ended.stdout).into_owned(),
        String::from_utf8_lossy(&ended.stderr).into_owned(),
    );
    Ended {
        success: ended.status.success(),
        verdict: serde_json::from_str(&out).unwrap_or_default(),
        said: format!("{}\n{out}\n{err}", ended.status),
    }
}

/// Asserts what is so of every run that is done right.
fn assert_kept(ended: &Ended, killed: bool) {
    assert!(ended.success, "{}", ended.said);
    assert_eq!(ended.faults(), Vec::<&str>::new(), "{}", ended.said);
    let told: u64 = ["confirmed", "out_of_stock", "payment_refused"]
        .iter()
        .map(|field| {
            let number = ended.number(field);
            assert!(number > 0, "no order ended so: {field}: {}", ended.verdict);
            number
        })
        .sum();
    assert_eq!(told, ended.number("orders"));
    assert!(ended.number("seen_at_once") > 0, "{}", ended.verdict);
    if killed {
        assert!(ended.number("kills") > 10, "{}", ended.verdict);
        // otherwise nothing of what the marks are for has happened
        assert!(ended.number("repeats") > 0, "{}", ended.verdict);
    } else {
        assert_eq!(ended.number("kills"), 0);
        // a machine that is slow for a while may tell some that they are early
        let late = ended.number("told_late");
        assert!(late * 10 <= ended.number("orders"), "{}", ended.verdict);
    }
    say(&format!("shop: {}", ended.verdict));
}

#[test]
fn the_one_command_sells_without_kafka_docker_or_a_set_up() {
    support::block_on(async {
        servers::janitor().await;
        let calm = shop(&["--for", "5s"], &[], Duration::from_secs(5)).await;
        assert_kept(&calm, false);
        let wild = shop(&["--for", "12s", "--chaos"], &[], Duration::from_secs(12)).await;
        assert_kept(&wild, true);
    });
}

/// Runs a shop on the tests' servers, killing processes for `length`, and leaves nothing there.
async fn wild_shop(world: &World, length: u64, arguments: &[&str]) -> Ended {
    // a test's own names are too long to put a role's behind them
    let prefix = Uuid::new_v4().simple().to_string();
    let prefix = format!("shop_{}_", prefix.split_at(10).0);
    let length = Duration::from_secs(length);
    let for_ = format!("{length:?}");
    let mut all = vec!["--chaos", "--for", &for_];
    all.extend(arguments);
    let ended = shop(
        &all,
        &[
            ("--admin-url", &world.database_url),
            ("--brokers", &world.kafka.brokers),
            ("--prefix", &prefix),
            ("--relay", env!("CARGO_BIN_EXE_outbox-relay")),
        ],
        length,
    )
    .await;
    let left = format!("select count(*) from pg_database where datname like '{prefix}%'");
    assert_eq!(world.number(&left).await, 0, "databases are left");
    let left = format!("select count(*) from pg_roles where rolname like '{prefix}%'");
    assert_eq!(world.number(&left).await, 0, "roles are left");
    ended
}

#[test]
fn money_stock_and_read_model_agree_whatever_is_killed() {
    support::run(async |world| {
        let length = if support::soak() { 300 } else { 25 };
        assert_kept(&wild_shop(world, length, &[]).await, true);
    });
}

/// Whether a fault is the one that is meant.
type Meant = fn(&str) -> bool;

/// What can be done wrong, and how the checker tells it.
const MISTAKES: [(&str, Meant); 6] = [
    ("mark-after-commit", done_twice),
    ("ignore-marks", done_twice),
    ("offset-first", left_placed),
    ("tell-after-commit", left_placed),
    ("no-release", left_placed),
    ("do-not-wait", |fault| fault.contains("did not see it: 404")),
];

/// Whether a fault says that an effect came twice, which no slowness does: in the stock, in the money, or in the
/// read model.
fn done_twice(fault: &str) -> bool {
    let took_more = || {
        let (_, told) = fault.split_once("the read model took ")?;
        let mut numbers = told.split(|it: char| !it.is_ascii_digit());
        // between the two is the order
        let took: u64 = numbers.next()?.parse().ok()?;
        let has: u64 = numbers.next_back()?.parse().ok()?;
        Some(took > has)
    };
    fault.contains(r#""reserved", "reserved""#)
        || fault.contains(r#""taken", "taken""#)
        || took_more().unwrap_or(false)
}

/// Whether a fault says that nobody went on with an order.
fn left_placed(fault: &str) -> bool {
    fault.contains("has come to no end: placed")
}

#[test]
fn the_checker_notices_each_way_to_do_it_wrong() {
    support::run(async |world| {
        // two of them each time, by the run's seed, for each takes half a minute of everything
        let first = Rng::of_run("mistakes").below(MISTAKES.len() as u64);
        let mistakes = MISTAKES
            .iter()
            .cycle()
            .skip(usize::try_from(first).unwrap());
        for (mistake, noticed) in mistakes.take(support::short_or_long(2, MISTAKES.len())) {
            let mut seen = Vec::new();
            // some show only when one of the services is killed at the right moment
            for attempt in 0..3 {
                let arguments = ["--rate", "15", "--budget", "5s", "--mistake", *mistake];
                let wrong = wild_shop(world, 10, &arguments).await;
                let faults = wrong.faults();
                let notices = faults.iter().any(|fault| noticed(fault));
                seen.push(format!("{faults:?}"));
                if notices {
                    assert!(!wrong.success, "{mistake}: {}", wrong.said);
                    say(&format!("shop, {mistake}: {} faults", faults.len()));
                    break;
                }
                assert!(attempt < 2, "{mistake} is not noticed: {seen:?}");
            }
        }
    });
}
