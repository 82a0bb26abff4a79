//! Nothing of a run outlives it: not a container, a server, a relay or a directory.
//!
//! libtest offers no hook for the end of a run, and a killed run could not use one. So a second
//! process of this very binary, the janitor, holds the reading end of a pipe whose writing end
//! only the run has: when the run ends, however it ends, the pipe closes and the janitor removes
//! whatever bears the run's id. Should the janitor die too, the next run's start removes it.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use testcontainers::bollard::Docker;
use testcontainers::bollard::query_parameters::{
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use testcontainers::core::client::docker_client_instance;

/// The label that our containers carry; its value is the id of the run that started them.
pub(crate) const LABEL: &str = "outbox-relay.test";
/// What the names of a run's directory, databases and topics begin with, the run's id behind it.
pub(crate) const PREFIX: &str = "outbox-relay-test-";
/// Set for every relay: its processes are known by it, whatever their arguments are.
pub(crate) const RUN: &str = "OUTBOX_TEST_RUN";
/// Set for the janitor alone: the id of the run it looks after.
const JANITOR: &str = "OUTBOX_TEST_JANITOR";

/// `<pid>-<start time>-<pid namespace>` of this process: no other run ever has the same.
pub(crate) static RUN_ID: LazyLock<String> = LazyLock::new(|| {
    let pid = std::process::id();
    format!(
        "{pid}-{}-{}",
        start_time(pid).unwrap_or_default(),
        pid_namespace()
    )
});

/// This run's own directory, made when first asked for. The servers' unprivileged user may enter.
pub(crate) fn directory() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = std::env::temp_dir().join(format!("{PREFIX}{}", *RUN_ID));
        fs::create_dir_all(&path).expect("the run's directory can be made");
        path
    });
    &DIRECTORY
}

/// Starts the janitor of this run and removes what runs that are no more have left.
pub(crate) async fn start() {
    /// Its end of the pipe is open as long as this process lives.
    static JANITOR_PROCESS: Mutex<Option<Child>> = Mutex::new(None);
    let janitor = Command::new(std::env::current_exe().expect("a test binary has a path"))
        .args(["--exact", "support::janitor::looks_after_its_run"])
        .env(JANITOR, &*RUN_ID)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for the run, not for who cleans up behind it.
        .process_group(0)
        .spawn()
        .expect("this binary can be started again");
    *JANITOR_PROCESS.lock().unwrap() = Some(janitor);
    sweep(&abandoned).await;
}

#[test]
fn looks_after_its_run() {
    life();
}

/// The janitor's own life. In every other process it is over at once, and false.
pub(crate) fn life() -> bool {
    let Ok(id) = std::env::var(JANITOR) else {
        return false;
    };
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).unwrap();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(sweep(&|found| found == id));
    true
}

/// Removes what belongs to the runs that `is_over` picks by their id.
async fn sweep(is_over: &dyn Fn(&str) -> bool) {
    if let Some(docker) = docker().await {
        sweep_containers(&docker, is_over).await.ok();
    }
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten() {
        let Ok(path) = entry.map(|entry| entry.path()) else {
            continue;
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.strip_prefix(PREFIX).is_some_and(is_over) {
            end_processes(&path).await;
            fs::remove_dir_all(&path).ok();
        }
    }
}

/// The daemon, if one answers.
pub(crate) async fn docker() -> Option<Docker> {
    let docker = docker_client_instance().await.ok()?;
    let ping = tokio::time::timeout(Duration::from_secs(5), docker.ping()).await;
    matches!(ping, Ok(Ok(_))).then_some(docker)
}

async fn sweep_containers(
    docker: &Docker,
    is_over: &dyn Fn(&str) -> bool,
) -> Result<(), testcontainers::bollard::errors::Error> {
    let ours = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&HashMap::from([("label", vec![LABEL])]))
        .build();
    for container in docker.list_containers(Some(ours)).await? {
        let run = container.labels.as_ref().and_then(|all| all.get(LABEL));
        if let (Some(id), true) = (&container.id, run.is_some_and(|run| is_over(run))) {
            let remove = RemoveContainerOptionsBuilder::new()
                .force(true)
                .v(true)
                .build();
            // Another run may be sweeping the same container.
            docker.remove_container(id, Some(remove)).await.ok();
        }
    }
    Ok(())
}

/// Ends the processes of the run whose directory is `path`: servers name it in their arguments,
/// relays bear its name in their environment. The bare name is no mark: it begins the names of
/// databases, which Postgres shows in the titles of the processes that serve them.
async fn end_processes(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let marks = [
        ("cmdline", format!("{}/", path.display())),
        ("environ", format!("{RUN}={name}")),
    ];
    let marked = || {
        processes().filter(|pid| {
            marks.iter().any(|(file, mark)| {
                let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let mut windows = text.windows(mark.len());
                *pid != std::process::id() && windows.any(|window| window == mark.as_bytes())
            })
        })
    };
    for pid in marked() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // Postgres stops at once on SIGQUIT and frees its shared memory; on SIGKILL it cannot.
        let postgres = name.trim() == "postgres";
        signal(pid, if postgres { Signal::QUIT } else { Signal::KILL });
    }
    for _ in 0..50 {
        if marked().next().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    marked().for_each(|pid| signal(pid, Signal::KILL));
}

/// Sends `signal` to a process that may be gone already.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = pid_of(pid) {
        kill_process(pid, signal).ok();
    }
}

/// Every process there is, as far as `/proc` shows.
pub(crate) fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether the run with this id is over, as far as can be seen from here.
pub(crate) fn abandoned(id: &str) -> bool {
    let mut parts = id.split('-');
    let (Some(Ok(pid)), Some(start), Some(namespace)) =
        (parts.next().map(str::parse), parts.next(), parts.next())
    else {
        return false;
    };
    // From another namespace, a living process would look dead.
    if namespace != pid_namespace() {
        return false;
    }
    match start_time(pid) {
        Some(now) => now.to_string() != start,
        None => pid_of(pid).is_none_or(|pid| test_kill_process(pid).is_err()),
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// When a process started, in ticks since the machine did.
fn start_time(pid: u32) -> Option<u64> {
    field_of_stat(pid, 22)
}

/// The parent of a process.
pub(crate) fn parent(pid: u32) -> Option<u64> {
    field_of_stat(pid, 4)
}

/// Whether a process is there and has not ended.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// A field of `/proc/<pid>/stat`, counted from 1 as its manual does.
pub(crate) fn field_of_stat(pid: u32, number: usize) -> Option<u64> {
    field_in(
        &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?,
        number,
    )
}

/// The same in the text of such a file.
pub(crate) fn field_in(stat: &str, number: usize) -> Option<u64> {
    // The second field is the command in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

fn pid_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let digits = |c: &char| c.is_ascii_digit();
    link.to_string_lossy().chars().filter(digits).collect()
}

#[test]
fn a_run_is_abandoned_only_when_its_very_process_is_gone() {
    assert!(!abandoned(&RUN_ID), "this run is alive");
    let (pid, namespace) = (std::process::id(), pid_namespace());
    assert!(
        abandoned(&format!("{pid}-1-{namespace}")),
        "the pid is another's now"
    );
    assert!(
        abandoned(&format!("4194305-1-{namespace}")),
        "no such process"
    );
    assert!(
        !abandoned("4194305-1-7"),
        "another namespace is not ours to judge"
    );
    assert!(!abandoned("something else"));
}
