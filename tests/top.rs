//! `top` on a real terminal, beside a real relay.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::operating::{SOON, ends, native};
use crate::see::{Seen, watched};
use crate::support::janitor;
use crate::support::outbox::Outbox;
use crate::support::{self, World, eventually};

const COLUMNS: usize = 110;
const LINES: usize = 40;

/// `top` on a terminal of its own.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    /// All it has written.
    written: Arc<Mutex<Vec<u8>>>,
    /// Ends with what it copies.
    _copying: tokio::task::JoinSet<()>,
}

impl Terminal {
    /// `database`: for DATABASE_URL; none is named without it.
    fn of_top(relay: &Seen, database: Option<&str>) -> Self {
        let program = env!("CARGO_BIN_EXE_outbox-relay");
        let url = format!("http://{}", relay.address());
        let line =
            format!("stty cols {COLUMNS} rows {LINES}; exec {program} top {url} --interval 100ms");
        // util-linux's `script` gives it a terminal
        let mut command = Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env(
                janitor::RUN,
                format!("{}{}", janitor::PREFIX, *janitor::RUN_ID),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let names = ["OUTBOX_RELAY", "DATABASE_URL", "PG"];
        crate::support::servers::forget(command.as_std_mut(), &names);
        if let Some(url) = database {
            command.env("DATABASE_URL", url);
        }
        let mut child = command.spawn().expect("`script` is part of every Debian");
        let (keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let written = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&written);
        let mut copying = tokio::task::JoinSet::new();
        copying.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(many @ 1..) = screen.read(&mut buffer).await {
                copy.lock().unwrap().extend_from_slice(&buffer[..many]);
            }
        });
        Self {
            child,
            keys,
            written,
            _copying: copying,
        }
    }

    fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// What a person sees: line by line.
    fn lines(&self) -> Vec<String> {
        drawn(&self.written())
    }

    /// The first line that begins with `start`, its words apart.
    fn line(&self, start: &str) -> Option<String> {
        let lines = self.lines();
        let line = lines.iter().find(|line| line.starts_with(start))?;
        Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        eventually(SOON, what, async || so(self)).await;
    }

    async fn shows(&self, part: &str) {
        let has = |it: &Self| it.lines().iter().any(|line| line.contains(part));
        self.until(&format!("{part:?} is on the screen"), has).await;
    }

    async fn press(&mut self, key: &[u8]) {
        self.keys.write_all(key).await.unwrap();
        self.keys.flush().await.unwrap();
    }

    /// Leaves it; all that it has written.
    async fn quit(mut self) -> String {
        self.press(b"q").await;
        let ended = timeout(SOON, self.child.wait()).await;
        let status = ended.expect("q ends it").unwrap();
        assert!(status.success(), "{status}");
        // its last words may still be in the pipe
        while self._copying.join_next().await.is_some() {}
        self.written()
    }
}

/// The screen that `written` makes, as far as `top` uses a terminal: text, places, and a clean screen.
fn drawn(written: &str) -> Vec<String> {
    let mut screen = vec![vec![' '; COLUMNS]; LINES];
    let (mut line, mut column) = (0, 0);
    let mut rest = written.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            if !c.is_control() && line < LINES && column < COLUMNS {
                screen[line][column] = c;
                column += 1;
            }
            continue;
        }
        if rest.next_if_eq(&'[').is_none() {
            continue;
        }
        let mut arguments = String::new();
        let end = loop {
            match rest.next() {
                Some(c @ '\u{40}'..='\u{7e}') => break c,
                Some(c) => arguments.push(c),
                None => break '\0',
            }
        };
        let mut numbers = arguments.split(';').map(|n| n.parse().unwrap_or(1));
        match end {
            'H' => {
                line = numbers.next().unwrap_or(1_usize).saturating_sub(1);
                column = numbers.next().unwrap_or(1_usize).saturating_sub(1);
            }
            'J' => screen = vec![vec![' '; COLUMNS]; LINES],
            _ => {}
        }
    }
    screen.into_iter().map(String::from_iter).collect()
}

#[test]
fn top_shows_a_relay_on_a_real_terminal_and_leaves_it_as_it_was() {
    support::run(async |world: &World| {
        let outbox = Outbox::classic();
        let (setup, _) = outbox.prepare(world).await;
        let relay = Seen::start(&watched(setup)).await;
        let mut terminal = Terminal::of_top(&relay, None);
        terminal
            .until("the outbox is on the screen", |it| {
                it.line("public.outbox")
                    .is_some_and(|line| line.contains("serving"))
            })
            .await;
        // a relay tells no aggregate
        terminal.shows("none is named").await;
        terminal.press(b" ").await;
        terminal.shows("PAUSED").await;
        let written = terminal.quit().await;
        let (enter, leave) = ("\u{1b}[?1049h", "\u{1b}[?1049l");
        assert!(written.contains(enter) && written.contains("\u{1b}[?25l"));
        let (_, end) = written.split_once(leave).expect("the screen is given back");
        assert!(
            end.contains("\u{1b}[?25h") || written.contains("\u{1b}[?25h"),
            "the cursor, too"
        );
        relay.relay.stop().await;
    });
}

#[test]
fn top_shows_the_aggregates_with_the_most_rows_waiting() {
    support::run(async |world: &World| {
        let outbox = native("outbox");
        let (setup, _) = outbox.prepare(world).await;
        ends(&setup, &["pause", "--yes"], 0).await;
        let relay = Seen::start(&watched(setup)).await;
        // the one with the most rows would like to write on the terminal
        let insert = async |id: &str, rows: u32, age: &str| {
            world
                .execute(&format!(
                    "insert into outbox (aggregate_id, aggregate_type, event_type, payload, created_at)
                     select {id}, 'Order', 'OrderChanged', '{{}}', now() - interval '{age}'
                       from generate_series(1, {rows}) i"
                ))
                .await;
        };
        insert(r"e'busy\u001b[1;1Hgone'", 57, "1 minute").await;
        insert("'calm'", 2, "3 hours").await;
        let mut terminal = Terminal::of_top(&relay, Some(&world.database_url));
        let aggregates = |it: &Terminal| {
            let lines = it.lines();
            let head = lines.iter().position(|line| line.starts_with("AGGREGATE"));
            let ids = lines.into_iter().skip(head.map_or(LINES, |head| head + 1));
            ids.filter_map(|line| line.split_whitespace().next().map(str::to_owned))
                .take(2)
                .collect::<Vec<_>>()
        };
        let busy = "busy\u{fffd}[1;1Hgone";
        terminal
            .until("the busiest comes first", |it| {
                aggregates(it) == [busy, "calm"]
            })
            .await;
        let told = |it: &Terminal, start: &str, told: &str| {
            let line = it.line(start).unwrap_or_default();
            line.starts_with(told)
        };
        let line = format!("{busy} Order 57 ");
        terminal
            .until("how many", |it| told(it, "busy", &line))
            .await;
        terminal
            .until("how old", |it| told(it, "calm", "calm Order 2 3 h "))
            .await;
        terminal.shows("aggregates: 2 wait with 59 rows").await;
        assert!(!terminal.written().contains("\u{1b}[1;1Hgone"));

        // one look at a time, on one connection, which is none of a relay's
        let connections = "select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'outbox-relay top'";
        assert_eq!(world.number(connections).await, 1);

        // more than are looked at
        insert("'many-' || i % 3000", 20_000, "1 second").await;
        terminal
            .shows("an estimate, of the oldest 10,000 rows")
            .await;
        terminal
            .until("it says that there may be more", |it| {
                told(it, "busy", &format!("{busy} Order ≥57 "))
            })
            .await;
        terminal.press(b"o").await;
        terminal
            .until("the one that has waited longest comes first", |it| {
                aggregates(it) == ["calm", busy]
            })
            .await;
        terminal.press(b"a").await;
        terminal
            .until("they are out of sight", |it| it.line("calm").is_none())
            .await;
        terminal.quit().await;
        relay.relay.stop().await;
    });
}

#[test]
fn top_shows_the_relay_also_while_the_database_does_not_answer() {
    support::run(async |world: &World| {
        let outbox = Outbox::classic();
        let (setup, _) = outbox.prepare(world).await;
        let relay = Seen::start(&watched(setup)).await;
        // it takes connections and says nothing, as a server that hangs
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://relay@{}/x", silent.local_addr().unwrap());
        let terminal = Terminal::of_top(&relay, Some(&url));
        let why = "no aggregates are shown: Postgres did not answer within 5s";
        terminal.shows(why).await;
        let written = terminal.quit().await;
        drop(silent);
        // in those five seconds the first line went on: it says how long the relay has been up
        let (_, waited) = written.split_once("aggregates: asking").unwrap();
        let (waited, _) = waited.split_once("Postgres did not").unwrap();
        assert!(waited.matches("\u{1b}[1;").count() > 1, "{waited:?}");
        // the database answers, and is another
        let (server, _) = world.database_url.rsplit_once('/').unwrap();
        let terminal = Terminal::of_top(&relay, Some(&format!("{server}/postgres")));
        terminal.shows("is no outbox of this database").await;
        terminal.quit().await;
        relay.relay.stop().await;
    });
}
