//! `outbox-relay top`: a relay's `/status` on a terminal, live.

mod figures;
mod state;
mod view;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::time::{Instant, sleep, sleep_until};

use super::Exit;
use crate::ops::ask;
use crate::ops::signals::StopSignals;
use state::{Key, State, Then};

/// Options of `top`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Where the relay answers: `[http] listen` of its config
    #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9464", value_parser = address)]
    pub address: String,

    /// How often to ask
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
}

/// How long a look for a key takes: what a stop may wait for.
const KEY_WAIT: Duration = Duration::from_millis(100);

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
pub async fn run(args: Args) -> Exit {
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
    let terminal = ratatui::try_init();
    let shown = match terminal {
        Ok(terminal) => tokio::select! {
            shown = show(args, terminal) => shown,
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

async fn show(args: Args, mut terminal: DefaultTerminal) -> io::Result<()> {
    let mut state = State::new(args.address.clone());
    let mut keys = tokio::task::spawn_blocking(next_key);
    let answer = |at: Instant| {
        let address = args.address.clone();
        async move {
            sleep_until(at).await;
            ask::status(&address).await
        }
    };
    let mut asking = Box::pin(answer(Instant::now()));
    loop {
        terminal.draw(|frame| view::draw(frame, &state))?;
        tokio::select! {
            key = &mut keys => {
                let key = key.map_err(io::Error::other)??;
                keys = tokio::task::spawn_blocking(next_key);
                if let Some(key) = key && state.pressed(key) == Then::Quit {
                    return Ok(());
                }
            }
            heard = &mut asking => {
                state.heard(heard);
                asking = Box::pin(answer(Instant::now() + args.interval));
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
  Tab, ← →         the next outbox, the one before
  ↑ ↓              along the topics

It asks one relay and changes nothing. What a table holds (backlog, oldest, in) is the same from every
relay that serves it; what is published (out, latency, lanes held) is this relay's own.

Examples:
  outbox-relay top
  outbox-relay top relay-0:9464 --interval 2s

Exit codes: 0, 64 not a terminal, or bad options, 69 the terminal cannot be used.";
