//! `top` on a terminal that is a buffer: what is drawn, what the keys do.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::state::{Key, Question, State, Then};
use super::{KeyCode, KeyEvent, KeyModifiers, address, interval, meaning, view};
use crate::ops::facts::{
    self, Backlog, Facts, Freshness, Kafka, Outbox, Parked, ParkedRows, Quantiles, Topic,
    TopicPaused, Trouble, Workers,
};
use crate::source::{AggregateWaiting, Aggregates, First};

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
fn a_limit_that_holds_a_backlog_back_is_said_with_the_time_left() {
    let mut facts = facts();
    facts.outboxes[0].drained_in_s = Some(100.0);
    facts.outboxes[0].rows_per_second_max = Some(2000);
    let text = drawn(&shown(facts.clone()));
    assert!(
        text.contains("backlog gone in 1 min 40 s") && !text.contains("held to"),
        "{text}"
    );
    facts.outboxes[0].limited_for_s = Some(23.0);
    let text = drawn(&shown(facts));
    assert!(text.contains("held to 2,000/s: 23 s left"), "{text}");
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

fn aggregate(id: &str, rows: u64, oldest_s: u64) -> AggregateWaiting {
    AggregateWaiting {
        aggregate_id: id.to_owned(),
        aggregate_type: Some("Order".to_owned()),
        rows,
        oldest_age: Duration::from_secs(oldest_s),
    }
}

fn aggregates() -> Aggregates {
    let none = AggregateWaiting {
        aggregate_type: None,
        ..aggregate("", 3, 90)
    };
    Aggregates {
        aggregates: vec![aggregate("o-17", 1234, 41), none],
        aggregates_seen: 2,
        rows_seen: 1237,
        exact: true,
    }
}

/// With an answer to what is asked.
fn answered(mut state: State, found: Result<Aggregates, String>) -> State {
    let question = state.question().unwrap();
    state.waiting(question, found);
    state
}

/// The line that begins with `start`, its words apart.
fn line_of(state: &State, start: &str) -> String {
    let text = drawn(state);
    let line = text.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no line {start} in\n{text}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_aggregates_with_the_most_rows_are_shown_and_how_sure_that_is() {
    let state = shown(facts());
    assert!(drawn(&state).contains("aggregates: asking"));
    let mut state = answered(state, Ok(aggregates()));
    assert_eq!(line_of(&state, "o-17"), "o-17 Order 1,234 41 s");
    assert_eq!(line_of(&state, "(no id)"), "(no id) (several) 3 90 s");
    assert_eq!(
        line_of(&state, "AGGREGATE"),
        "AGGREGATE TYPE WAITING▼ OLDEST"
    );
    assert_eq!(
        line_of(&state, "aggregates:"),
        "aggregates: 2 wait with 1,237 rows"
    );
    // they take no line from the topics that there is room for
    assert_eq!(order(&state)[0], "stock-events");
    for topic in ["stock-events", "order-events", "audit-events"] {
        assert!(drawn(&state).contains(topic));
    }

    let guessed = Aggregates {
        exact: false,
        rows_seen: 10_000,
        ..aggregates()
    };
    state = answered(state, Ok(guessed));
    assert_eq!(line_of(&state, "o-17"), "o-17 Order ≥1,234 41 s");
    let told = line_of(&state, "aggregates:");
    assert!(
        told.starts_with("aggregates: an estimate, of the oldest 10,000 rows that wait")
            && told.ends_with("there are more"),
        "{told}"
    );
    state = answered(
        state,
        Ok(Aggregates {
            exact: true,
            ..Aggregates::default()
        }),
    );
    assert!(drawn(&state).contains("aggregates: none waits"));
}

#[test]
fn why_no_aggregates_are_shown_is_said_and_the_rest_is_shown_all_the_same() {
    let why = "cannot connect\u{7} to Postgres";
    let state = answered(shown(facts()), Err(why.to_owned()));
    let text = drawn(&state);
    assert!(
        text.contains("no aggregates are shown: cannot connect\u{fffd} to Postgres"),
        "{text}"
    );
    assert!(text.contains("45,678") && text.contains("stock-events"));
}

#[test]
fn an_aggregate_id_cannot_steer_the_terminal() {
    let mut hostile = aggregates();
    hostile.aggregates[0].aggregate_id = "a\u{1b}[2J\u{9b}b\r\n\u{202e}c".to_owned();
    hostile.aggregates[1].aggregate_type = Some("T\u{1b}c".to_owned());
    let text = drawn(&answered(shown(facts()), Ok(hostile)));
    assert!(
        text.contains("a\u{fffd}[2J\u{fffd}b\u{fffd}\u{fffd}\u{fffd}c"),
        "{text}"
    );
    assert!(text.contains("T\u{fffd}c"));
    assert!(!text.contains(['\u{1b}', '\u{9b}', '\r', '\u{202e}']));
}

#[test]
fn the_database_is_asked_for_what_is_looked_at_and_only_then() {
    let mut state = State::new("relay:9464".to_owned());
    assert_eq!(state.question(), None, "nobody has named an outbox yet");
    state.heard(Ok(facts()));
    let question = |outbox: &str, first| Question {
        outbox: outbox.to_owned(),
        first,
    };
    let most = question("public.outbox", First::Most);
    assert_eq!(state.question(), Some(most.clone()));
    state.waiting(most.clone(), Ok(aggregates()));
    assert!(state.is_answered(&most) && drawn(&state).contains("o-17"));

    // the answer to one question is none to another
    state.pressed(Key::OrderAggregates);
    let oldest = question("public.outbox", First::Oldest);
    assert_eq!(state.question(), Some(oldest.clone()));
    assert!(!state.is_answered(&oldest) && !drawn(&state).contains("o-17"));
    state.waiting(oldest, Ok(aggregates()));
    assert_eq!(
        line_of(&state, "AGGREGATE"),
        "AGGREGATE TYPE WAITING OLDEST▼"
    );
    state.pressed(Key::NextOutbox);
    assert!(!drawn(&state).contains("o-17"));
    state.pressed(Key::PreviousOutbox);
    assert!(drawn(&state).contains("o-17"));

    state.pressed(Key::Pause);
    assert_eq!(state.question(), None, "it stands still");
    state.waiting(most, Err("away".to_owned()));
    assert!(drawn(&state).contains("o-17"));
    state.pressed(Key::Pause);
    state.pressed(Key::Aggregates);
    assert_eq!(state.question(), None, "nobody would see it");
    assert!(!drawn(&state).contains("o-17"));
}

#[test]
fn many_aggregates_leave_the_topics_half_of_the_room() {
    let many = (0..80)
        .map(|n| aggregate(&format!("o-{n}"), 9, 1))
        .collect();
    let mut facts = facts();
    facts.outboxes[0].topics = (0..80).map(|n| topic(&format!("t-{n}"), 9, 1)).collect();
    let many = Aggregates {
        aggregates: many,
        ..aggregates()
    };
    let state = answered(shown(facts), Ok(many));
    let text = drawn(&state);
    let of = |start| text.lines().filter(|line| line.starts_with(start)).count();
    let (topics, aggregates) = (of("t-"), of("o-"));
    assert!(
        topics > 4 && aggregates > 4 && topics.abs_diff(aggregates) < 3,
        "{topics} and {aggregates} of\n{text}"
    );
}

#[test]
fn any_size_will_do() {
    let mut silent = shown(facts());
    silent.heard(Err("x".to_owned()));
    let none = shown(Facts::default());
    for state in [
        &answered(shown(facts()), Ok(aggregates())),
        &answered(shown(facts()), Err("it is away".repeat(40))),
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
    assert_eq!(key(KeyCode::Char('a')), Some(Key::Aggregates));
    assert_eq!(key(KeyCode::Char('o')), Some(Key::OrderAggregates));
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
