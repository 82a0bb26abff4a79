//! `top` on a terminal that is a buffer: what is drawn, what the keys do.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::state::{Key, State, Then};
use super::{KeyCode, KeyEvent, KeyModifiers, address, interval, meaning, view};
use crate::ops::facts::{
    self, Backlog, Facts, Freshness, Kafka, Outbox, Parked, ParkedRows, Quantiles, Topic,
    TopicPaused, Trouble, Workers,
};

fn topic(name: &str, pending: u64, published: u64) -> Topic {
    Topic {
        topic: name.to_owned(),
        pending,
        pending_exact: true,
        published,
        rate_out_per_s: 7.25,
        ..Topic::default()
    }
}

fn outbox(name: &str) -> Outbox {
    Outbox {
        outbox: name.to_owned(),
        state: facts::State::Serving,
        rate_in_per_s: Some(1234.0),
        rate_out_per_s: 1200.0,
        lanes: Some(16),
        lanes_held: 3,
        oldest_pending_age_s: Some(0.25),
        backlog: Backlog {
            events: Some(45_678),
            exact: false,
            counted_max: 10_000,
        },
        lag: Quantiles {
            count: 9,
            p50_s: Some(0.0034),
            p90_s: Some(0.005),
            p99_s: Some(0.0091),
            max_s: Some(0.01),
        },
        workers: Workers {
            count: 4,
            doing: [("waiting_for_kafka".to_owned(), 3)].into(),
            stuck: 0,
        },
        topics: vec![
            topic("stock-events", 40, 1),
            topic("order-events", 2, 999_999),
            topic("audit-events", 7, 500),
        ],
        ..Outbox::default()
    }
}

fn facts() -> Facts {
    Facts {
        at: "2026-11-21T17:00:00Z".to_owned(),
        live: true,
        ready: true,
        uptime_s: 7_500.0,
        kafka: Kafka {
            reachable: true,
            ..Kafka::default()
        },
        outboxes: vec![outbox("public.outbox"), outbox("billing.outbox")],
        ..Facts::default()
    }
}

fn shown(facts: Facts) -> State {
    let mut state = State::new("relay:9464".to_owned());
    state.heard(Ok(facts));
    state
}

/// The lines of a terminal of that size.
fn drawn_on(state: &State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        (0..width)
            .map(|x| buffer[(x, y)].symbol())
            .collect::<String>()
    };
    (0..height).map(line).collect()
}

fn drawn(state: &State) -> String {
    drawn_on(state, 110, 30).join("\n")
}

/// Where the topics stand, from the first line down.
fn order(state: &State) -> Vec<&'static str> {
    let text = drawn(state);
    let mut names = ["stock-events", "order-events", "audit-events"];
    names.sort_by_key(|name| text.find(name));
    names.to_vec()
}

#[test]
fn an_outbox_is_a_line_with_its_numbers() {
    let text = drawn(&shown(facts()));
    let line = text
        .lines()
        .find(|line| line.starts_with("public.outbox"))
        .unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        words.join(" "),
        "public.outbox serving 250 ms ≈45,678 1,234 1,200 3.4 ms 9.1 ms 3/16 – 0"
    );
    for part in [
        "live",
        "Kafka takes records",
        "2 h 5 min",
        "relay:9464",
        "4 workers: 3 waiting for kafka",
        "q quit",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(text.contains('█'), "the rates are drawn:\n{text}");
}

#[test]
fn a_narrow_terminal_has_fewer_columns_and_whole_ones() {
    let lines = drawn_on(&shown(facts()), 80, 24);
    let titles = lines
        .iter()
        .find(|line| line.starts_with("OUTBOX"))
        .unwrap();
    let titles: Vec<_> = titles.split_whitespace().collect();
    assert_eq!(
        titles.join(" "),
        "OUTBOX STATE OLDEST BACKLOG IN/s OUT/s p99 LANES BLOCKED"
    );
    let line = lines
        .iter()
        .find(|line| line.starts_with("public"))
        .unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        words.join(" "),
        "public.outbox serving 250 ms ≈45,678 1,234 1,200 9.1 ms 3/16 –"
    );
}

#[test]
fn topics_are_sorted_as_the_keys_say() {
    let mut state = shown(facts());
    assert_eq!(
        order(&state),
        ["stock-events", "audit-events", "order-events"]
    );
    assert!(drawn(&state).contains("WAITING▼"));
    state.pressed(Key::Reverse);
    assert_eq!(
        order(&state),
        ["order-events", "audit-events", "stock-events"]
    );
    assert!(drawn(&state).contains("WAITING▲"));
    state.pressed(Key::Reverse);
    for _ in 0..4 {
        state.pressed(Key::Sort);
    }
    assert!(drawn(&state).contains("PUBLISHED▼"));
    assert_eq!(
        order(&state),
        ["order-events", "audit-events", "stock-events"]
    );
    state.pressed(Key::Sort);
    assert!(drawn(&state).contains("TOPIC▲"));
    assert_eq!(
        order(&state),
        ["audit-events", "order-events", "stock-events"]
    );
    // round, and a list that was scrolled begins at its top again
    state.pressed(Key::Down);
    assert!(!drawn(&state).contains("audit-events"));
    state.pressed(Key::Sort);
    assert_eq!(
        order(&state),
        ["stock-events", "audit-events", "order-events"]
    );
}

#[test]
fn paused_it_stands_still_and_then_goes_on() {
    let mut state = shown(facts());
    state.pressed(Key::Pause);
    let mut later = facts();
    later.outboxes[0].backlog.events = Some(77);
    state.heard(Ok(later.clone()));
    state.heard(Err("away".to_owned()));
    let text = drawn(&state);
    assert!(
        text.contains("PAUSED") && text.contains("45,678") && text.contains("live"),
        "{text}"
    );
    state.pressed(Key::Pause);
    state.heard(Ok(later));
    let text = drawn(&state);
    assert!(!text.contains("PAUSED") && text.contains("≈77"), "{text}");
}

#[test]
fn another_outbox_is_chosen_and_stays_when_the_first_goes() {
    let mut state = shown(facts());
    state.pressed(Key::NextOutbox);
    assert_eq!(state.outbox().unwrap().outbox, "billing.outbox");
    let mut fewer = facts();
    fewer.outboxes.remove(0);
    state.heard(Ok(fewer));
    assert_eq!(state.outbox().unwrap().outbox, "billing.outbox");
    state.heard(Ok(facts()));
    state.pressed(Key::NextOutbox);
    assert_eq!(state.outbox().unwrap().outbox, "public.outbox");
    state.pressed(Key::PreviousOutbox);
    assert_eq!(state.outbox().unwrap().outbox, "billing.outbox");
}

#[test]
fn a_relay_that_is_gone_is_said_to_be() {
    let mut state = State::new("relay:9464".to_owned());
    state.heard(Err("connection refused".to_owned()));
    let text = drawn(&state);
    assert!(
        text.contains("asking relay:9464") && text.contains("connection refused"),
        "{text}"
    );
    state.heard(Ok(facts()));
    state.heard(Err("connection refused".to_owned()));
    let text = drawn(&state);
    assert!(
        text.contains("no answer")
            && text.contains("is of 2026-11-21T17:00:00Z")
            && text.contains("45,678"),
        "{text}"
    );
    state.heard(Ok(facts()));
    assert!(!drawn(&state).contains("no answer"));
}

#[test]
fn what_is_wrong_is_said_and_nothing_steers_the_terminal() {
    let mut facts = facts();
    facts.kafka.reachable = false;
    facts.kafka.away_s = Some(90.0);
    facts.kafka.topics_paused = vec![TopicPaused {
        topic: "gone\u{1b}[31m-events".to_owned(),
        text: "does not exist".to_owned(),
        next_step: "create it".to_owned(),
        ..TopicPaused::default()
    }];
    facts.errors = vec![Trouble {
        text: "no\u{7} route".to_owned(),
        times: 3,
        lasts: true,
        ..Trouble::default()
    }];
    facts.outboxes[0].parked_rows = Parked {
        exact: true,
        rows: vec![ParkedRows {
            state: "blocked".to_owned(),
            reason: Some("too_large".to_owned()),
            rows: 12,
        }],
        blocked_keys: Some(2),
        oldest_blocked_age_s: Some(5.0),
    };
    facts.outboxes[0].freshness = vec![Freshness {
        topic: None,
        budget_s: 30.0,
        staleness_s: Some(45.0),
        kept: Some(false),
        late: 1,
    }];
    let text = drawn(&shown(facts));
    for part in [
        "Kafka has been away for 90 s",
        "gone\u{fffd}[31m-events waits: does not exist. create it",
        "no\u{fffd} route (3 times)",
        "freshness of the outbox is missed: 45 s, and may be 30 s",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains(['\u{1b}', '\u{7}']));
    let line = text
        .lines()
        .find(|line| line.starts_with("public.outbox"))
        .unwrap();
    assert!(line.trim_end().ends_with("2      12"), "{line}");
}

#[test]
fn any_size_will_do() {
    let mut silent = shown(facts());
    silent.heard(Err("x".to_owned()));
    let none = shown(Facts::default());
    for state in [
        &State::new("a:1".to_owned()),
        &shown(facts()),
        &silent,
        &none,
    ] {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100), (5, 200)] {
            drawn_on(state, width, height);
        }
    }
}

#[test]
fn keys_mean_what_the_help_says() {
    let key = |code| meaning(KeyEvent::new(code, KeyModifiers::NONE));
    assert_eq!(key(KeyCode::Char('q')), Some(Key::Quit));
    assert_eq!(key(KeyCode::Char(' ')), Some(Key::Pause));
    assert_eq!(key(KeyCode::Tab), Some(Key::NextOutbox));
    assert_eq!(key(KeyCode::Char('x')), None);
    assert_eq!(key(KeyCode::Char('c')), None);
    let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(meaning(control), Some(Key::Quit));
    let mut state = shown(facts());
    assert_eq!(state.pressed(Key::Quit), Then::Quit);
    assert_eq!(state.pressed(Key::Up), Then::GoOn);
    assert!(interval("2s").is_ok() && interval("1ms").is_err() && interval("soon").is_err());
}

#[test]
fn an_address_is_a_host_and_a_port() {
    for text in [
        "relay:9464",
        "http://relay:9464",
        "http://relay:9464/status",
    ] {
        assert_eq!(address(text).unwrap(), "relay:9464");
    }
    assert_eq!(address("[::1]:9464").unwrap(), "[::1]:9464");
    for text in [
        "relay",
        ":9464",
        "relay:http",
        "https://relay:9464",
        "a b:1",
        "",
    ] {
        assert!(address(text).is_err(), "{text}");
    }
    let error = address("https://relay:9464").unwrap_err();
    assert!(error.contains("no TLS"), "{error}");
}
