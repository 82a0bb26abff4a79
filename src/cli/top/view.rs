//! Draws the state of `top` on a terminal of any size.

use std::borrow::Cow;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table, Wrap};

use super::figures::{count, rate, span};
use super::state::{Sort, State};
use crate::ops::facts::{self, Facts, Outbox};
use crate::source::{Aggregates, First};

const GOOD: Style = Style::new().fg(Color::Green);
const HEED: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);

/// Lines for the notes at the end, at most.
const NOTES_MAX: u16 = 8;

/// Draws it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let Some(facts) = &state.facts else {
        return waiting(frame, state);
    };
    let notes = notes(facts, state);
    let [head, outboxes, rates, middle, last, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(lines(facts.outboxes.len() + 2)),
        Constraint::Length(5),
        Constraint::Min(3),
        Constraint::Length(lines(notes.len()).min(NOTES_MAX)),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(facts, state)), head);
    let width = outboxes.width;
    frame.render_widget(table_of_outboxes(facts, state, width), outboxes);
    if let Some(outbox) = state.outbox() {
        draw_rates(frame, rates, state, outbox);
        let [topics, aggregates] = Layout::vertical([
            Constraint::Min(0),
            Constraint::Length(lines_of_aggregates(state, outbox, middle.height)),
        ])
        .areas(middle);
        frame.render_widget(table_of_topics(state), topics);
        draw_aggregates(frame, aggregates, state);
    }
    frame.render_widget(Paragraph::new(notes).wrap(Wrap { trim: true }), last);
    frame.render_widget(
        Paragraph::new("q quit  space pause  s r sort  a o aggregates  tab next outbox  ↑↓ topics")
            .style(FAINT),
        keys,
    );
}

/// As many lines of a terminal.
fn lines(many: usize) -> u16 {
    u16::try_from(many).unwrap_or(u16::MAX)
}

/// Before the first answer.
fn waiting(frame: &mut Frame<'_>, state: &State) {
    let mut text = vec![Line::from(format!("asking {}", state.address))];
    if let Some(why) = &state.silent {
        text.push(Line::styled(clean(why).into_owned(), BAD));
        text.push(Line::from(
            "Does a relay run there? Its address is `[http] listen` of its config. Asking again.",
        ));
    }
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), frame.area());
}

fn heading<'a>(facts: &Facts, state: &State) -> Vec<Line<'a>> {
    let health = match (&state.silent, facts.live, facts.ready) {
        (Some(_), ..) => Span::styled("no answer", BAD),
        (None, false, _) => Span::styled("stuck", BAD),
        (None, true, false) => Span::styled("not ready", HEED),
        (None, true, true) => Span::styled("live", GOOD),
    };
    let kafka = if facts.kafka.reachable {
        Span::styled("Kafka takes records", GOOD)
    } else {
        let since = span(facts.kafka.away_s);
        Span::styled(format!("Kafka has been away for {since}"), BAD)
    };
    let mut first = vec![
        Span::styled("outbox-relay ", TITLE),
        Span::styled(clean(&facts.build.version).into_owned(), FAINT),
        "  ".into(),
        health,
        "  ".into(),
        kafka,
        Span::styled(format!("  up for {}", span(Some(facts.uptime_s))), FAINT),
    ];
    if state.paused {
        first.push("  ".into());
        first.push(Span::from(" PAUSED ").reversed());
    }
    let second = match &state.silent {
        Some(why) => Line::styled(
            format!(
                "{} does not answer: {}. What is shown is of {}",
                state.address,
                clean(why),
                clean(&facts.at)
            ),
            BAD,
        ),
        None if facts.live && facts.ready => Line::styled(state.address.clone(), FAINT),
        None => Line::styled(clean(&facts.why.join("; ")).into_owned(), BAD),
    };
    vec![Line::from(first), second]
}

/// The columns of an outbox: title, width, and whether a narrow terminal has them too.
const COLUMNS: [(&str, Constraint, bool); 11] = [
    ("OUTBOX", Constraint::Min(13), true),
    ("STATE", Constraint::Length(8), true),
    ("OLDEST", Constraint::Length(10), true),
    ("BACKLOG", Constraint::Length(9), true),
    ("IN/s", Constraint::Length(6), true),
    ("OUT/s", Constraint::Length(6), true),
    ("p50", Constraint::Length(7), false),
    ("p99", Constraint::Length(7), true),
    ("LANES", Constraint::Length(6), true),
    ("BLOCKED", Constraint::Length(7), true),
    ("PARKED", Constraint::Length(7), false),
];

/// Less is narrow.
const WIDE: u16 = 96;

fn table_of_outboxes<'a>(facts: &Facts, state: &State, width: u16) -> Table<'a> {
    let there = |at: usize| COLUMNS[at].2 || width >= WIDE;
    let chosen = state.chosen_at();
    let rows = facts.outboxes.iter().enumerate().map(|(at, outbox)| {
        let cells = row_of(outbox).into_iter().enumerate();
        let row: Row<'a> = cells
            .filter(|(at, _)| there(*at))
            .map(|(_, cell)| cell)
            .collect();
        // one alone need not be told from others
        if at == chosen && facts.outboxes.len() > 1 {
            row.style(Style::new().add_modifier(Modifier::REVERSED))
        } else {
            row
        }
    });
    let columns = COLUMNS.iter().enumerate().filter(|(at, _)| there(*at));
    let header = columns
        .clone()
        .map(|(at, (title, ..))| cell((*title).to_owned(), at > 1));
    let header: Row<'a> = header.collect();
    let widths = columns.map(|(_, (_, width, _))| *width);
    Table::new(rows, widths)
        .header(header.style(FAINT))
        .column_spacing(1)
}

/// A cell for each of [`COLUMNS`].
fn row_of<'a>(outbox: &Outbox) -> Vec<Cell<'a>> {
    let state = match outbox.state {
        facts::State::Serving => GOOD,
        facts::State::Trouble => BAD,
        facts::State::Starting | facts::State::Unknown => FAINT,
        facts::State::Waiting | facts::State::Paused | facts::State::Stopping => HEED,
    };
    let late = outbox.freshness.iter().any(|it| it.kept == Some(false));
    let estimate = if outbox.backlog.exact || outbox.backlog.events.is_none() {
        ""
    } else {
        "≈"
    };
    let blocked = outbox.parked_rows.blocked_keys;
    let parked: u64 = outbox.parked_rows.rows.iter().map(|it| it.rows).sum();
    let lanes = outbox
        .lanes
        .map_or_else(|| "–".to_owned(), |lanes| lanes.to_string());
    let heed = |on: bool, style: Style| if on { style } else { Style::new() };
    vec![
        Cell::from(clean(&outbox.outbox).into_owned()).style(TITLE),
        Cell::from(outbox.state.name()).style(state),
        cell(span(outbox.oldest_pending_age_s), true).style(heed(late, BAD)),
        cell(format!("{estimate}{}", count(outbox.backlog.events)), true),
        cell(rate(outbox.rate_in_per_s), true),
        cell(rate(Some(outbox.rate_out_per_s)), true),
        cell(span(outbox.lag.p50_s), true),
        cell(span(outbox.lag.p99_s), true),
        cell(format!("{}/{lanes}", outbox.lanes_held), true),
        cell(count(blocked), true).style(heed(blocked.is_some_and(|keys| keys > 0), HEED)),
        cell(count(Some(parked)), true),
    ]
}

/// Text in a column; numbers stand at its right.
fn cell<'a>(text: String, number: bool) -> Cell<'a> {
    let line = Line::from(text);
    Cell::from(if number { line.right_aligned() } else { line })
}

/// What came in and what went out, on one scale.
fn draw_rates(frame: &mut Frame<'_>, area: Rect, state: &State, outbox: &Outbox) {
    let [title, ins, outs] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(2),
    ])
    .areas(area);
    let mut words = vec![Span::styled(clean(&outbox.outbox).into_owned(), TITLE)];
    if let Some(text) = &outbox.state_text {
        words.push(Span::styled(format!("  {}", clean(text)), HEED));
    }
    if let (Some(max), Some(left)) = (outbox.rows_per_second_max, outbox.limited_for_s) {
        let (max, left) = (count(Some(max.into())), span(Some(left)));
        words.push(Span::styled(
            format!("  held to {max}/s: {left} left"),
            HEED,
        ));
    } else if let Some(left) = outbox.drained_in_s {
        words.push(format!("  backlog gone in {}", span(Some(left))).into());
    }
    let doing = outbox.workers.doing.iter().filter(|(_, many)| **many > 0);
    let doing: Vec<_> = doing
        .map(|(what, many)| format!("{many} {}", clean(&what.replace('_', " "))))
        .collect();
    words.push(Span::styled(
        format!("  {} workers: {}", outbox.workers.count, doing.join(", ")),
        FAINT,
    ));
    frame.render_widget(Paragraph::new(Line::from(words)), title);

    let most = state
        .rates()
        .map(|(one, other)| one.max(other))
        .fold(1.0, f64::max);
    let lines = [
        (ins, "in  ", outbox.rate_in_per_s, Color::Blue),
        (outs, "out ", Some(outbox.rate_out_per_s), Color::Green),
    ];
    for (at, (area, name, now, colour)) in lines.into_iter().enumerate() {
        let [label, line] =
            Layout::horizontal([Constraint::Length(12), Constraint::Min(1)]).areas(area);
        frame.render_widget(Paragraph::new(format!("{name}{}", rate(now))), label);
        let rates = state.rates().rev().take(usize::from(line.width));
        let mut bars: Vec<u64> = rates
            .map(|both| tenths(if at == 0 { both.0 } else { both.1 }))
            .collect();
        bars.reverse();
        let bars = Sparkline::default()
            .data(bars)
            .max(tenths(most))
            .style(Style::new().fg(colour));
        frame.render_widget(bars, line);
    }
}

/// A rate as the bars want it: slow outboxes have some, too.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and a bar is no more exact than that"
)]
fn tenths(rate: f64) -> u64 {
    (rate * 10.0).round() as u64
}

fn table_of_topics<'a>(state: &State) -> Table<'a> {
    let columns = [
        (Sort::Topic, "TOPIC"),
        (Sort::Waiting, "WAITING"),
        (Sort::Oldest, "OLDEST"),
        (Sort::Out, "OUT/s"),
        (Sort::Latency, "p99"),
        (Sort::Published, "PUBLISHED"),
    ];
    let header = columns.iter().enumerate().map(|(at, (sort, title))| {
        // names ascend, numbers descend
        let arrow = if state.reversed == (*sort == Sort::Topic) {
            "▼"
        } else {
            "▲"
        };
        let sorted = *sort == state.sort;
        let title = if sorted {
            format!("{title}{arrow}")
        } else {
            (*title).to_owned()
        };
        cell(title, at > 0).style(if sorted { TITLE } else { FAINT })
    });
    let rows = state
        .topics()
        .into_iter()
        .skip(state.scrolled)
        .map(|topic| {
            let more = if topic.pending_exact || topic.pending == 0 {
                ""
            } else {
                "≥"
            };
            Row::new([
                cell(clean(&topic.topic).into_owned(), false),
                cell(format!("{more}{}", count(Some(topic.pending))), true),
                cell(span(topic.oldest_pending_age_s), true),
                cell(rate(Some(topic.rate_out_per_s)), true),
                cell(span(topic.lag.p99_s), true),
                cell(count(Some(topic.published)), true),
            ])
        });
    let widths = [
        Constraint::Min(20),
        Constraint::Length(11),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(13),
    ];
    Table::new(rows.collect::<Vec<_>>(), widths)
        .header(Row::new(header))
        .column_spacing(1)
}

/// How many of `height` lines the aggregates get: what the topics leave, and half where they leave less.
fn lines_of_aggregates(state: &State, outbox: &Outbox, height: u16) -> u16 {
    if !state.aggregates {
        return 0;
    }
    let wanted = match state.aggregates() {
        Some(Ok(waiting)) if !waiting.aggregates.is_empty() => waiting.aggregates.len() + 2,
        Some(Ok(_)) | None => 1,
        // it may be long
        Some(Err(_)) => 3,
    };
    let left = height.saturating_sub(lines(outbox.topics.len() + 1));
    lines(wanted).min(left.max(height / 2))
}

/// The aggregates with the most rows waiting, and how much of the truth that is.
fn draw_aggregates(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let waiting = match state.aggregates() {
        None => return frame.render_widget(Line::styled("aggregates: asking", FAINT), area),
        Some(Err(why)) => {
            let text = Paragraph::new(format!("no aggregates are shown: {}", clean(why)));
            return frame.render_widget(text.style(HEED).wrap(Wrap { trim: true }), area);
        }
        Some(Ok(waiting)) => waiting,
    };
    let [title, table] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Line::from(told_of(waiting)), title);
    let sorted = |first: First| match state.first == first {
        true => (TITLE, "▼"),
        false => (FAINT, ""),
    };
    let header = |text: &str, (style, arrow): (Style, &str)| {
        cell(format!("{text}{arrow}"), true).style(style)
    };
    let header = Row::new([
        cell("AGGREGATE".to_owned(), false).style(FAINT),
        cell("TYPE".to_owned(), false).style(FAINT),
        header("WAITING", sorted(First::Most)),
        header("OLDEST", sorted(First::Oldest)),
    ]);
    let more = if waiting.exact { "" } else { "≥" };
    let rows = waiting.aggregates.iter().map(|it| {
        let id = match it.aggregate_id.as_str() {
            "" => "(no id)".to_owned(),
            id => clean(id).into_owned(),
        };
        let kind = it.aggregate_type.as_deref().unwrap_or("(several)");
        Row::new([
            cell(id, false),
            cell(clean(kind).into_owned(), false),
            cell(format!("{more}{}", count(Some(it.rows))), true),
            cell(span(Some(it.oldest_age.as_secs_f64())), true),
        ])
    });
    let widths = [
        Constraint::Min(36),
        Constraint::Max(20),
        Constraint::Length(11),
        Constraint::Length(12),
    ];
    let rows = Table::new(rows.collect::<Vec<_>>(), widths);
    frame.render_widget(rows.header(header).column_spacing(1), table);
}

/// Of which rows the aggregates are.
fn told_of<'a>(waiting: &Aggregates) -> Vec<Span<'a>> {
    let (rows, aggregates) = (
        count(Some(waiting.rows_seen)),
        count(Some(waiting.aggregates_seen)),
    );
    if waiting.rows_seen == 0 {
        return vec![Span::styled("aggregates: none waits", FAINT)];
    }
    if waiting.exact {
        let text = format!("aggregates: {aggregates} wait with {rows} rows");
        return vec![Span::styled(text, FAINT)];
    }
    vec![
        Span::styled("aggregates: an estimate", HEED),
        Span::styled(
            format!(
                ", of the oldest {rows} rows that wait, with {aggregates} aggregates; there are more"
            ),
            FAINT,
        ),
    ]
}

/// What somebody should read: budgets that are missed, topics that wait, what went wrong.
fn notes<'a>(facts: &Facts, state: &State) -> Vec<Line<'a>> {
    let mut notes = Vec::new();
    for it in state.outbox().iter().flat_map(|outbox| &outbox.freshness) {
        if it.kept == Some(false) {
            let what = it.topic.as_deref().unwrap_or("the outbox");
            let (is, may) = (span(it.staleness_s), span(Some(it.budget_s)));
            notes.push(Line::styled(
                format!(
                    "freshness of {} is missed: {is}, and may be {may}",
                    clean(what)
                ),
                BAD,
            ));
        }
    }
    for it in &facts.kafka.topics_paused {
        let text = format!(
            "{} waits: {}. {}",
            clean(&it.topic),
            clean(&it.text),
            clean(&it.next_step)
        );
        notes.push(Line::styled(text, HEED));
    }
    if let (false, Some(why)) = (facts.kafka.reachable, &facts.kafka.why) {
        notes.push(Line::styled(format!("Kafka: {}", clean(why)), BAD));
    }
    for it in facts.errors.iter().take(usize::from(NOTES_MAX)) {
        let style = if it.lasts { BAD } else { FAINT };
        let times = if it.times > 1 {
            format!(" ({} times)", it.times)
        } else {
            String::new()
        };
        notes.push(Line::styled(
            format!("{} {}{times}", clean(&it.at), clean(&it.text)),
            style,
        ));
    }
    notes
}

/// Without what would steer the terminal, or turn round what stands beside it: a text may hold what
/// somebody wrote into a row.
fn clean(text: &str) -> Cow<'_, str> {
    let turns = |c| matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let steers = |c: char| c.is_control() || turns(c);
    if text.contains(steers) {
        let seen = |c: char| if steers(c) { '\u{fffd}' } else { c };
        Cow::Owned(text.chars().map(seen).collect())
    } else {
        Cow::Borrowed(text)
    }
}
