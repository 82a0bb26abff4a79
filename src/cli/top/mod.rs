//! `outbox-relay top`: a relay's `/status` on a terminal, live, and beside it the aggregates that wait,
//! which the relay tells nobody: they are read from the database, if one is named.

mod figures;
mod state;
mod view;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::time::{Instant, sleep, sleep_until};

use super::Exit;
use super::args::{ConfigArgs, without_password};
use crate::config::{Config, Secret};
use crate::ops::ask;
use crate::ops::signals::StopSignals;
use crate::relay::chain;
use crate::source::{AggregateReader, Aggregates};
use state::{Key, Question, State, Then};

/// Options of `top`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Where the relay answers [default: http.listen, 127.0.0.1:9464 unless the config says otherwise]
    #[arg(value_name = "HOST:PORT", value_parser = address)]
    address: Option<String>,

    /// The config file; only its database and http.listen are needed
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The relay's database, for the aggregates that wait. Prefer DATABASE_URL, since everyone on this machine
    /// can see the command line
    #[arg(long, value_name = "URL", value_parser = without_password)]
    database_url: Option<Secret>,

    /// How often to ask
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
}

impl Args {
    /// Where the database is said to be.
    #[must_use]
    pub fn config_args(&self) -> ConfigArgs {
        ConfigArgs::of_database(self.config.as_ref(), self.database_url.as_ref())
    }
}

/// How long a look for a key takes: what a stop may wait for.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Where a relay answers that nobody said anything else about.
const ADDRESS: &str = "127.0.0.1:9464";
/// The pause between two looks at the aggregates that wait.
const LOOK_PAUSE: Duration = Duration::from_secs(3);
/// How many times as long as a look took that pause is at least: a database in trouble is let alone.
const LOOK_SHARE: u32 = 10;

/// `host:port`, from that or from a URL with it.
fn address(text: &str) -> Result<String, String> {
    let takes = "it takes host:port, as in 127.0.0.1:9464";
    if text.starts_with("https://") {
        return Err(format!("a relay speaks no TLS: {takes}"));
    }
    let rest = text.strip_prefix("http://").unwrap_or(text);
    let rest = rest.split_once('/').map_or(rest, |(host, _)| host);
    match rest.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty()
                && !host.contains(char::is_whitespace)
                && port.parse::<u16>().is_ok() =>
        {
            Ok(rest.to_owned())
        }
        _ => Err(takes.to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let takes = "it takes a duration from 100ms to 1h, such as \"2s\"";
    let duration = humantime::parse_duration(text).map_err(|_| takes.to_owned())?;
    if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&duration) {
        Ok(duration)
    } else {
        Err(takes.to_owned())
    }
}

/// Shows it until the user has seen enough.
pub async fn run(args: Args, config: Config) -> Exit {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return super::fail(
            Exit::Usage,
            "`top` is for a terminal; for anything else read http://HOST:PORT/status, which is JSON",
        );
    }
    let mut signals = match StopSignals::listen() {
        Ok(signals) => signals,
        Err(error) => return super::fail(Exit::Bug, &format!("cannot take signals: {error}")),
    };
    let given = args.address.or_else(|| config.http.listen.clone());
    let address = given.unwrap_or_else(|| ADDRESS.to_owned());
    let mut aggregates = Looks::of(&config);
    let terminal = ratatui::try_init();
    let shown = match terminal {
        Ok(terminal) => tokio::select! {
            shown = show(&address, args.interval, &mut aggregates, terminal) => shown,
            () = signals.next() => Ok(()),
        },
        Err(error) => Err(error),
    };
    // whatever happened, the terminal is the user's again
    ratatui::restore();
    match shown {
        Ok(()) => Exit::Ok,
        Err(error) => super::fail(Exit::Unavailable, &format!("the terminal: {error}")),
    }
}

/// What a look at the aggregates comes back with.
type Look = (
    AggregateReader,
    Question,
    Result<Aggregates, String>,
    Duration,
);

/// Looks at the aggregates that wait, one look at a time. What else is shown does not wait for it.
struct Looks {
    /// The reader, while it rests; or why there is none.
    reader: Result<Option<AggregateReader>, String>,
    looking: Option<Pin<Box<dyn Future<Output = Look> + Send>>>,
    due: Instant,
}

impl Looks {
    /// In the database of `config`, if it names one.
    fn of(config: &Config) -> Self {
        let reader = if config.database.url.expose().is_empty() {
            Err("only the database knows them, and none is named: use --config, --database-url or DATABASE_URL"
                .to_owned())
        } else {
            AggregateReader::new(&config.database)
                .map(Some)
                .map_err(|error| chain(&error))
        };
        Self {
            reader,
            looking: None,
            due: Instant::now(),
        }
    }

    /// Begins a look, if it is time for one: at once where nothing is known of what is asked.
    fn begin(&mut self, state: &mut State) {
        let Some(question) = state.question() else {
            return;
        };
        let known = state.is_answered(&question);
        match &mut self.reader {
            Err(why) if !known => state.waiting(question, Err(why.clone())),
            Ok(rests) if !known || Instant::now() >= self.due => {
                let Some(mut reader) = rests.take() else {
                    return;
                };
                self.looking = Some(Box::pin(async move {
                    let began = Instant::now();
                    let found = reader.look(&question.outbox, question.first).await;
                    let found = found.map_err(|error| chain(&error));
                    (reader, question, found, began.elapsed())
                }));
            }
            _ => {}
        }
    }

    /// The end of the look that is under way; for ever, where none is. May be dropped.
    async fn end(&mut self) -> (Question, Result<Aggregates, String>) {
        let Some(looking) = &mut self.looking else {
            return std::future::pending().await;
        };
        let (reader, question, found, took) = looking.await;
        self.looking = None;
        self.reader = Ok(Some(reader));
        self.due = Instant::now() + LOOK_PAUSE.max(took * LOOK_SHARE);
        (question, found)
    }
}

async fn show(
    address: &str,
    interval: Duration,
    aggregates: &mut Looks,
    mut terminal: DefaultTerminal,
) -> io::Result<()> {
    let mut state = State::new(address.to_owned());
    let mut keys = tokio::task::spawn_blocking(next_key);
    let answer = |at: Instant| async move {
        sleep_until(at).await;
        ask::status(address).await
    };
    let mut asking = Box::pin(answer(Instant::now()));
    loop {
        aggregates.begin(&mut state);
        terminal.draw(|frame| view::draw(frame, &state))?;
        tokio::select! {
            (question, found) = aggregates.end() => state.waiting(question, found),
            key = &mut keys => {
                let key = key.map_err(io::Error::other)??;
                keys = tokio::task::spawn_blocking(next_key);
                if let Some(key) = key && state.pressed(key) == Then::Quit {
                    return Ok(());
                }
            }
            heard = &mut asking => {
                state.heard(heard);
                asking = Box::pin(answer(Instant::now() + interval));
            }
            // ages of a silent relay go on
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// The next key that means something, or none for a while.
fn next_key() -> io::Result<Option<Key>> {
    if !event::poll(KEY_WAIT)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => meaning(key),
        _ => None,
    })
}

fn meaning(key: KeyEvent) -> Option<Key> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c') if control => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char(' ' | 'p') => Key::Pause,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('r') => Key::Reverse,
        KeyCode::Char('a') => Key::Aggregates,
        KeyCode::Char('o') => Key::OrderAggregates,
        KeyCode::Tab | KeyCode::Right => Key::NextOutbox,
        KeyCode::BackTab | KeyCode::Left => Key::PreviousOutbox,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        _ => return None,
    })
}

const HELP: &str = "\
Keys:
  q, Esc, Ctrl-C   leave
  space, p         stand still, or go on
  s, r             sort the topics by the next column; turn the order round
  a                show the aggregates, or not
  o                sort them by their oldest row, or by how many of their rows wait
  Tab, ← →         the next outbox, the one before
  ↑ ↓              along the topics

It asks one relay and changes nothing. What a table holds (backlog, oldest, in) is the same from every
relay that serves it; what is published (out, latency, lanes held) is this relay's own.

The aggregates with the most rows waiting are read from the database, which a relay's answers never
name: every three seconds, without locks, the first 10,000 rows that wait. Where there are more they are
an estimate, which the screen says. The role needs select on the table and on outbox_relay.outbox and
outbox_relay.lane. Parked rows are not among them: see `outbox-relay parked list`.

Examples:
  outbox-relay top --config relay.toml
  outbox-relay top relay-0:9464 --interval 2s
  DATABASE_URL=postgres://… outbox-relay top relay-0:9464

Exit codes: 0, 64 not a terminal, or bad options, 69 the terminal cannot be used, 78 bad config.";
