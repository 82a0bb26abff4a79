//! How the service writes, judged: what breaks an outbox without a word, because every statement succeeds. Pure.

use std::time::Duration;

use super::line::Line;
use crate::source::{OpenWriter, Partitions, Server, Written, quote};

/// An event that is committed so many seconds after its transaction began, or that long after it says that it
/// was created, is late.
pub const LATE_S: f64 = 5.0;
/// With more partitions than this, to look into each takes longer than all else of a small batch.
const LEAVES_MAX: i64 = 100;

/// Whether events wait long for their commit: a line for each transaction that is open, and one for what was
/// committed.
#[must_use]
pub fn late(open: &[OpenWriter], written: &Written, server: &Server) -> Vec<Line> {
    const HABIT: &str = "let the service write its events last in a transaction, wait for nobody else in it, and commit";
    let mut lines = Vec::new();
    for writer in open {
        let Some(age_s) = writer.age_s else {
            continue;
        };
        let (pid, role) = (writer.pid, &writer.role);
        let application = match writer.application.as_str() {
            "" => String::new(),
            name => format!(" ({name})"),
        };
        lines.push(
            Line::warn(
                "late",
                format!(
                    "a transaction of {role}{application}, process {pid}, wrote to the outbox and is open for \
                     {}: its events come that late, newer ones of other aggregates before them, and claims \
                     read what is dead behind them",
                    seconds(age_s)
                ),
            )
            .words(format!(
                "{HABIT}. This one ends with: select pg_terminate_backend({pid});"
            )),
        );
    }
    if written.late > 0 {
        lines.push(
            Line::warn(
                "late",
                format!(
                    "{} of the last {} pending events were committed more than {} after their time of creation, \
                     up to {}",
                    written.late,
                    written.rows,
                    seconds(LATE_S),
                    seconds(written.late_most_s)
                ),
            )
            .words(HABIT),
        );
    }
    if lines.is_empty() {
        lines.push(Line::ok(
            "late",
            "no transaction that wrote to it has been open for long",
        ));
    }
    if open.iter().any(|writer| writer.age_s.is_none()) && !server.sees_sessions {
        let sql = format!("grant pg_read_all_stats to {};", quote(&server.role));
        let why = "transactions write to the outbox, and this role is not told for how long they are open";
        lines.push(Line::skip("late", why).sql(sql));
    }
    lines
}

/// Whether transactions that write events of one aggregate come one after the other.
#[must_use]
pub fn order(written: &Written) -> Line {
    let pairs = written.pairs;
    let example = written
        .example
        .map(|seq| format!(", number {seq} and the one before it for instance"))
        .unwrap_or_default();
    if written.commits_known && written.committed_first > 0 {
        return Line::warn(
            "order",
            format!(
                "{} of {pairs} pairs of pending events, neighbours in one aggregate, were committed in another \
                 order than they were numbered{example}: their transactions ran at once, and nothing keeps such \
                 events in order, or a consumer from seeing the later one alone",
                written.committed_first
            ),
        )
        .words(
            "let every transaction lock the aggregate's row, or check its version, before it inserts an event of it",
        );
    }
    if !written.commits_known && written.wrote_first > 0 {
        return Line::warn(
            "order",
            format!(
                "{} of {pairs} pairs of pending events, neighbours in one aggregate, have numbers in another \
                 order than their transactions began to write{example}: either these run at once, and nothing \
                 keeps their events in order, or they write something else before they lock the aggregate. With \
                 the times of commits (after a restart) this check tells which",
                written.wrote_first
            ),
        )
        .sql("alter system set track_commit_timestamp = on;");
    }
    Line::ok(
        "order",
        format!(
            "{pairs} pairs of pending events, neighbours in one aggregate, speak of no transactions that ran at once"
        ),
    )
}

/// What the partitions cost, and whether an insert that names one is numbered.
#[must_use]
pub fn partitions(found: &Partitions, workers: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for (relation, fix) in &found.unnumbered {
        lines.push(
            Line::warn(
                "partitions",
                format!(
                    "an insert that names the partition {relation} draws no number from the outbox's sequence: \
                     its events are not published, or out of order. Those through the table are well"
                ),
            )
            .sql(fix),
        );
    }
    let workers = i64::try_from(workers).unwrap_or(i64::MAX);
    // planning locks every index, too; half is left for the service
    let locks = (found.leaves + found.indexes).saturating_mul(workers);
    if locks > found.locks_max / 2 {
        let each = (found.locks_each * 2).saturating_mul(locks / found.locks_max.max(1) + 1);
        lines.push(
            Line::warn(
                "partitions",
                format!(
                    "the relay's {workers} workers may lock {locks} partitions and indexes at once, and the server \
                     has room for {} of all sessions: a claim, or the service, may fail with `out of shared memory`",
                    found.locks_max
                ),
            )
            .sql(format!(
                "alter system set max_locks_per_transaction = {each};"
            )),
        );
    }
    if found.leaves > LEAVES_MAX {
        lines.push(
            Line::warn(
                "partitions",
                format!(
                    "{} partitions: each claim looks into each of them, for every lane",
                    found.leaves
                ),
            )
            .words("make partitions longer, or drop or detach those whose events are published"),
        );
    }
    if found.alike > 1 {
        let why = format!(
            "{} hash partitions: rows are settled by a look into each of their siblings, too; by range or list \
             they would not be",
            found.alike
        );
        lines.push(Line::ok("partitions", why));
    }
    if lines.is_empty() {
        let why = format!("{}, which claims read in the order of seq", found.leaves);
        lines.push(Line::ok("partitions", why));
    }
    lines
}

fn seconds(seconds: f64) -> humantime::FormattedDuration {
    let age = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    humantime::format_duration(Duration::from_secs(age.as_secs()))
}
