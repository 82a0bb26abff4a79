//! `outbox-relay run`: publishes committed rows until told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Exit;
use super::args::ConfigArgs;
use crate::certificate::Trouble;
use crate::config::{Change, Config, Environment, Outbox, Purpose, Settings};
use crate::ops::log;
use crate::ops::signals::{ReloadSignal, StopSignals};
use crate::relay::{self, Counts, Drain, Ended, Prepare, Served, Until};
use crate::sink;
use crate::source::{self, Left};

/// Options of `run`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// What to relay, and where to.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Migrate the database first
    ///
    /// For a relay that runs beside its service. It never creates the service's outbox table, and
    /// never does what `migrate` wants `--yes` for: then it says so and waits.
    #[arg(long)]
    pub migrate: bool,

    /// Publish what is pending, then end
    ///
    /// Exit code 0 if nothing is left. Rows that are parked, blocked, paused or locked by others are
    /// not waited for: exit code 75, and how many there are.
    #[arg(long)]
    pub until_empty: bool,
}

/// Relays until told to stop, or until nothing is pending.
pub async fn run(args: Args, config: Config, environment: Environment) -> Exit {
    let listening = StopSignals::listen().and_then(|stop| Ok((stop, ReloadSignal::listen()?)));
    let (mut signals, mut reload) = match listening {
        Ok(signals) => signals,
        Err(error) => return super::fail(Exit::Bug, &format!("cannot take signals: {error}")),
    };
    tell_weaknesses(&config);
    let config = Arc::new(config);
    let until = if args.until_empty {
        Until::Empty
    } else {
        Until::Stopped
    };
    let prepare = if args.migrate {
        Prepare::Migrate
    } else {
        Prepare::Nothing
    };
    let drain = Drain::new();
    let (in_force, news) = watch::channel(Arc::clone(&config));
    let mut reloading = Reloading::new(&args.config, &environment, in_force);
    let mut serving = pin!(relay::run(&config, until, prepare, &drain, &news));
    let served = loop {
        tokio::select! {
            served = &mut serving => break served,
            () = reload.next() => reloading.reload(&args.config, &environment),
            () = signals.next() => {
                let timeout = config.relay.drain_timeout;
                tracing::info!(
                    drain_timeout = %humantime::format_duration(timeout),
                    "stopping: nothing more is claimed, and what is in flight is finished"
                );
                let draining = async {
                    drain.begin(timeout).await;
                    tokio::time::sleep(SETTLE_TIMEOUT).await;
                };
                tokio::select! {
                    served = &mut serving => break served,
                    () = draining => {
                        tracing::warn!("left before everything had ended: Postgres does not answer");
                        return Exit::Ok;
                    }
                    () = signals.next() => {
                        tracing::warn!("left at the second signal: what was in flight will come again");
                        return Exit::Ok;
                    }
                }
            }
        }
    };
    end(&served)
}

/// Says once in which ways the connections are weaker than they should be: somebody asked for each.
fn tell_weaknesses(config: &Config) {
    let database = source::weakness(&config.database).ok().flatten();
    for Trouble { what, next_step } in database.into_iter().chain(sink::weaknesses(&config.kafka)) {
        tracing::warn!(
            why = what,
            next_step,
            "a connection is weaker than it should be"
        );
    }
}

/// The config as it was read, for the next time it is.
struct Reloading {
    /// At the start: what needs a restart is in force from here.
    first: Settings,
    /// The last time it was right.
    last: Settings,
    in_force: watch::Sender<Arc<Config>>,
}

impl Reloading {
    fn new(
        args: &ConfigArgs,
        environment: &Environment,
        in_force: watch::Sender<Arc<Config>>,
    ) -> Self {
        let first = args.settings(environment);
        Self {
            last: first.clone(),
            first,
            in_force,
        }
    }

    /// Reads the config anew, puts in force what can be, and says what cannot.
    fn reload(&mut self, args: &ConfigArgs, environment: &Environment) {
        let newer = args.settings(environment);
        let config = match newer.config(Purpose::Run) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(
                    why = error.to_string(),
                    "the config was read anew and is wrong: the old one stays in force"
                );
                return;
            }
        };
        let changed = self.last.changes(&newer);
        let reloaded: Vec<&Change> = changed.iter().filter(|it| it.reloadable).collect();
        if reloaded.iter().any(|change| change.key == "log.filter")
            && let Err(why) = log::refilter(&config.log.filter)
        {
            tracing::warn!(why, "log.filter could not be changed");
        }
        let before = self.in_force.borrow().clone();
        let rewritten: Vec<String> = rewritten(&before, &config)
            .filter(|key| !reloaded.iter().any(|change| change.key == *key))
            .collect();
        for key in &rewritten {
            tracing::info!(key, "the config was read anew: this is in force now");
        }
        for change in &reloaded {
            tracing::info!(
                key = change.key,
                "the config was read anew: this is in force now"
            );
        }
        let waiting = self.first.changes(&newer);
        let waiting: Vec<&Change> = waiting.iter().filter(|it| !it.reloadable).collect();
        for change in &waiting {
            tracing::warn!(
                key = change.key,
                "the config was read anew: this changed and needs a restart"
            );
        }
        if reloaded.is_empty() && rewritten.is_empty() && waiting.is_empty() {
            tracing::info!("the config was read anew: nothing changed");
        }
        self.in_force.send_replace(Arc::new(config));
        self.last = newer;
    }
}

/// The outboxes whose contracts say something else now, as a change of the key would be called.
fn rewritten(before: &Config, after: &Config) -> impl Iterator<Item = String> {
    let digest = |outbox: &Outbox| Some(outbox.contracts.as_ref()?.digest().to_owned());
    after.outboxes.iter().filter_map(move |outbox| {
        let was = before.outboxes.iter().find(|it| it.table == outbox.table)?;
        (digest(was) != digest(outbox)).then(|| format!("outbox.contracts of {}", outbox.table))
    })
}

/// How long withdrawing and settling what was in flight may take after the drain's deadline.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Says how it ended, and turns that into an exit code: the worst of all outboxes.
fn end(served: &[Served]) -> Exit {
    let mut exit = Exit::Ok;
    for Served {
        outbox,
        ended,
        counts,
        left,
    } in served
    {
        let Counts {
            published,
            parked,
            behind,
        } = counts;
        tracing::info!(outbox, published, parked, behind, "served the outbox");
        let this = match ended {
            Ended::Stopped => Exit::Ok,
            Ended::Empty => match left.as_ref().filter(|left| !left.is_nothing()) {
                None => Exit::Ok,
                Some(left) => {
                    super::fail(Exit::LeftBehind, &format!("{outbox}: {}", leftover(left)))
                }
            },
            Ended::Wrong(problems) => {
                for problem in problems {
                    tracing::error!(outbox, "{problem}");
                }
                Exit::Config
            }
            Ended::Unavailable(what) => {
                tracing::error!(outbox, "{what}");
                Exit::Unavailable
            }
        };
        if severity(this) > severity(exit) {
            exit = this;
        }
    }
    exit
}

fn severity(exit: Exit) -> u8 {
    match exit {
        Exit::Ok => 0,
        Exit::LeftBehind => 1,
        Exit::Unavailable => 2,
        _ => 3,
    }
}

/// `12 pending, 3 blocked, 40 behind are left`.
fn leftover(left: &Left) -> String {
    let parked = left
        .parked
        .iter()
        .map(|(state, rows)| (*rows, state.as_str()));
    let counts: Vec<String> = std::iter::once((left.pending, "pending"))
        .chain(parked)
        .filter(|(rows, _)| *rows > 0)
        .map(|(rows, state)| format!("{rows} {state}"))
        .collect();
    format!("{} left", counts.join(", "))
}

const HELP: &str = "\
Examples:
  outbox-relay run --config relay.toml
  DATABASE_URL=postgres://… KAFKA_BROKERS=localhost:9092 outbox-relay run --table public.outbox
  outbox-relay run --config relay.toml --until-empty

Any number of relays may serve one table at once. The first SIGTERM or SIGINT stops claiming and
finishes what is in flight, for drain_timeout at most; the second leaves. SIGHUP reads the config anew:
log.filter, rows_per_second_max, the contracts and the poll intervals are put in force, and a line names each other key
that changed and needs a restart; a config that is wrong changes nothing.

Exit codes: 0 stopped or empty, 70 a bug, 75 --until-empty left rows behind, 78 bad config, or a table
that is not as the config says.";
