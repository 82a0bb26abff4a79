//! The facts about Postgres, judged. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::is_direct;
use super::line::{Level, Line, shell};
use super::table::create;
use crate::config::{Config, OnPublished, Outbox};
use crate::finding::Fix;
use crate::route;
use crate::source::{
    Counts, Holder, Inspected, Pooler, Server, VERIFY, Verified, literal, quote, quote_table,
};

/// A clock that is off by more is worth a word.
const SKEW_MAX_S: f64 = 1.0;
/// Fewer dead rows are nobody's trouble, whatever autovacuum thinks.
const DEAD_ROWS_MIN: i64 = 10_000;
/// Fewer inserts say nothing about what the service does.
const INSERTS_MIN: i64 = 20;
/// Topics that a fix lists at most.
const TOPICS_SHOWN: usize = 50;
/// What a batch takes beyond the publish time-out.
const BATCH_SLACK: Duration = Duration::from_secs(15);

/// What the start checks look at, and what it is called where nothing is wrong.
const INSPECTED: [(&str, &str); 8] = [
    ("table", "it is a table that can be served"),
    ("schema", "the relay's own tables are there"),
    (
        "columns",
        "every column of the layout is there, with a type that fits",
    ),
    ("grants", "the role has every right that the relay needs"),
    (
        "sequence",
        "seq is drawn one by one, by nobody but Postgres",
    ),
    ("lanes", "the lanes and their index are there"),
    (
        "routing",
        "every relay of the table routes as this config does",
    ),
    (
        "numbers",
        "every pending row has its number, and none to come is lower",
    ),
];

/// The server cannot be asked, for the reason `why`.
#[must_use]
pub fn unreachable(why: &str, code: Option<&str>) -> Line {
    let line = Line::fail("database", why);
    match code {
        Some("28P01" | "28000") => line.words(
            "put the right user and password into database.url, and let pg_hba.conf admit them",
        ),
        Some("3D000") => {
            line.words("create the database, or name the right one at the end of database.url")
        }
        Some("53300") => line.words("raise max_connections, or the role's connection limit"),
        _ => line.words(
            "start Postgres, or put its host and port into database.url and let firewalls pass them",
        ),
    }
}

/// What can be said of the server and the connection to it.
#[must_use]
pub fn server(server: &Server, config: &Config) -> Vec<Line> {
    vec![
        reached(server),
        tls(server),
        pooler(server, config),
        connections(server, config),
        timeouts(server, config),
        clock(server),
    ]
}

fn reached(server: &Server) -> Line {
    let Server {
        version,
        role,
        database,
        ..
    } = server;
    if server.is_standby {
        return Line::fail(
            "database",
            format!("{database} is on a standby, which takes no writes"),
        )
        .words("put the primary's address into database.url");
    }
    let why = format!("PostgreSQL {version}, database {database}, role {role}");
    Line::ok("database", why)
}

fn tls(server: &Server) -> Line {
    match (server.tls, server.verified, server.is_local) {
        (_, _, true) => Line::ok("tls", "the connection does not leave this machine"),
        (true, Verified::Full, _) => {
            Line::ok("tls", "encrypted, and the certificate and its name are verified")
        }
        (true, Verified::Authority, _) => Line::warn(
            "tls",
            "encrypted, but nobody compares the host name: any server with a certificate of the same \
             authority can answer",
        )
        .words(VERIFY),
        (true, Verified::Nothing, _) => Line::warn(
            "tls",
            "encrypted, but nobody verifies the certificate: whoever is between can read along",
        )
        .words(VERIFY),
        (false, ..) if !is_direct(server) => Line::warn(
            "tls",
            "the pooler's connection is not encrypted; the one to the pooler cannot be seen from here",
        )
        .words(VERIFY),
        (false, ..) => {
            Line::warn("tls", "not encrypted: password and events can be read along").words(VERIFY)
        }
    }
}

fn pooler(server: &Server, config: &Config) -> Line {
    let prepared = config.database.prepared_statements;
    match (server.pooler, prepared) {
        (Pooler::Transaction { statements: false }, _) => Line::fail(
            "pooler",
            "a pooler hands each transaction to another server process, which does not know what was \
             prepared before: batches fail",
        )
        .fix(Fix::Setting {
            section: "database",
            line: "prepared_statements = false".to_owned(),
        }),
        (Pooler::Transaction { .. }, true) => Line::ok(
            "pooler",
            "a pooler hands out transactions, and keeps track of prepared statements",
        ),
        (Pooler::Transaction { .. }, false) => Line::ok(
            "pooler",
            "a pooler hands out transactions, and the relay prepares nothing that outlives one",
        ),
        (Pooler::None, true) => Line::ok("pooler", "none that hands out transactions"),
        (Pooler::None, false) => Line::ok(
            "pooler",
            "none that hands out transactions is seen: prepared_statements = true would save work",
        ),
    }
}

/// Connections that this relay makes at most.
fn connections_needed(config: &Config) -> i64 {
    let workers = i64::try_from(config.relay.workers).unwrap_or(i64::MAX);
    let needed = |outbox: &Outbox| {
        let listens = i64::from(outbox.notify && config.database.prepared_statements);
        let flushes = i64::from(outbox.flush_before_publish);
        let letters = i64::from(outbox.dead_letter_topic.is_some());
        // one more for upkeep, and for the look at the table now and then
        workers + 2 + listens + flushes + letters
    };
    config.outboxes.iter().map(needed).sum()
}

fn connections(server: &Server, config: &Config) -> Line {
    let needed = connections_needed(config);
    if !is_direct(server) {
        let why =
            format!("this relay makes up to {needed}, through the pooler, whose limits count");
        return Line::ok("connections", why);
    }
    let (role, database) = (quote(&server.role), quote(&server.database));
    // room for two relays: the next one starts before the last one ends
    let room = 2 * needed;
    let limits = [
        (
            server.role_limit,
            format!("alter role {role} connection limit {room};"),
        ),
        (
            server.database_limit,
            format!("alter database {database} connection limit {room};"),
        ),
    ];
    for (limit, sql) in limits {
        if (0..needed).contains(&limit) && !server.is_superuser {
            let why = format!("this relay makes up to {needed} connections, and may make {limit}");
            return Line::fail("connections", why).sql(sql);
        }
    }
    let free = server.connections_max - server.connections_used;
    if needed > server.connections_max {
        let why = format!(
            "this relay makes up to {needed} connections, and the server takes {}",
            server.connections_max
        );
        let sql = format!("alter system set max_connections = {};", 2 * room + 10);
        return Line::fail("connections", why).sql(sql);
    }
    if needed > free {
        let why = format!(
            "this relay makes up to {needed} connections; others have {} of the server's {} now",
            server.connections_used, server.connections_max
        );
        let sql = format!(
            "alter system set max_connections = {};",
            server.connections_max + room
        );
        return Line::warn("connections", why).sql(sql);
    }
    let why = format!("this relay makes up to {needed}, and {free} are free");
    Line::ok("connections", why)
}

fn timeouts(server: &Server, config: &Config) -> Line {
    let role = quote(&server.role);
    let batch = config.relay.publish_timeout + BATCH_SLACK;
    let batch_ms = i64::try_from(batch.as_millis()).unwrap_or(i64::MAX);
    let limit = server.transaction_timeout_ms;
    if limit > 0 && limit < batch_ms {
        let why = format!(
            "transaction_timeout is {limit} ms, and a batch may last {batch_ms}: its connection would be \
             cut, and what Kafka has would come again"
        );
        let sql = format!("alter role {role} set transaction_timeout = 0;");
        return Line::fail("timeouts", why).sql(sql);
    }
    let limit = server.idle_session_timeout_ms;
    if limit > 0 && config.outboxes.iter().any(|outbox| outbox.notify) {
        let why = format!(
            "idle_session_timeout is {limit} ms: the connection that listens for NOTIFY is cut whenever \
             it is quiet for so long"
        );
        let sql = format!("alter role {role} set idle_session_timeout = 0;");
        return Line::warn("timeouts", why).sql(sql);
    }
    Line::ok(
        "timeouts",
        "no time-out of the server's is shorter than a batch; the relay sets its own for the rest",
    )
}

fn clock(server: &Server) -> Line {
    let (ahead, doubt) = server.clock;
    if ahead.abs() <= SKEW_MAX_S + doubt {
        return Line::ok("clock", "this machine's and the server's agree");
    }
    let (by, direction) = (ahead.abs(), if ahead < 0.0 { "behind" } else { "ahead of" });
    Line::warn(
        "clock",
        format!(
            "the server's is {by:.1} s {direction} this machine's: nothing the relay decides depends on \
             it, but ages and latencies are off by so much"
        ),
    )
    .shell("timedatectl set-ntp true")
}

/// What keeps dead rows from being removed: a line for each, or one that there is nothing.
pub fn holders(holders: &[Holder], server: &Server, age_max: Duration) -> std::vec::IntoIter<Line> {
    let old = |holder: &&Holder| holder.age.is_none_or(|age| age >= age_max);
    let mut lines: Vec<Line> = holders.iter().filter(old).map(holder).collect();
    if lines.is_empty() {
        lines.push(Line::ok(
            "horizon",
            "no old transaction and no slot without a reader keeps dead rows alive",
        ));
    }
    if !server.sees_sessions {
        let sql = format!("grant pg_read_all_stats to {};", quote(&server.role));
        let why = "this role is not told what other roles' transactions do";
        lines.push(Line::skip("horizon", why).sql(sql));
    }
    lines.into_iter()
}

fn holder(holder: &Holder) -> Line {
    const COST: &str = "dead rows stay, and claims get slower while they do";
    let Holder {
        kind,
        name,
        age,
        bytes,
        who,
    } = holder;
    let age = humantime::format_duration(Duration::from_secs(age.unwrap_or_default().as_secs()));
    match kind.as_str() {
        "transaction" => Line::warn(
            "horizon",
            format!("a transaction of {who}, process {name}, is open for {age}: {COST}"),
        )
        .sql(format!("select pg_terminate_backend({name});")),
        "prepared" => Line::warn(
            "horizon",
            format!("the prepared transaction {name} of {who} is open for {age}: {COST}"),
        )
        .sql(format!("rollback prepared {};", literal(name))),
        _ => Line::warn(
            "horizon",
            format!(
                "the {who} replication slot {name} has no reader and keeps {} bytes of write-ahead log, \
                 more every hour, and maybe dead rows",
                bytes.unwrap_or(0)
            ),
        )
        .sql(format!("select pg_drop_replication_slot({});", literal(name))),
    }
}

/// What the start checks found, a line for each that they look at.
#[must_use]
pub fn inspected(outbox: &Outbox, inspected: &Inspected) -> Vec<Line> {
    let mut lines = Vec::new();
    if !inspected.exists {
        let why = "the table does not exist yet; the service's own migrations create it";
        lines.push(Line::fail("table", why).sql(create(&outbox.table, &outbox.layout)));
    }
    let mut skipped = Vec::new();
    for (item, well) in INSPECTED {
        let check = inspected.checks.iter().find(|(name, _)| *name == item);
        match check {
            _ if item == "table" && !inspected.exists => {}
            Some((_, wrong)) if wrong.is_empty() => lines.push(Line::ok(item, well)),
            Some((_, wrong)) => lines.extend(wrong.iter().map(|it| Line::found(item, it))),
            None => skipped.push(item),
        }
    }
    if let Some(lacking) = &inspected.lacking {
        let level = Level::Warn;
        lines.push(Line {
            level,
            ..Line::found("grants", lacking)
        });
    }
    if let Some(first) = skipped.first() {
        let why = format!("{}: what they rest on is not well", skipped.join(", "));
        lines.push(Line::skip(first, why));
    }
    lines
}

/// Whether the relay's own schema is as new as this build.
#[must_use]
pub fn migrated(known: Option<bool>) -> Line {
    match known {
        Some(true) => Line::ok("migrations", "the relay's own schema is as new as this build"),
        Some(false) => Line::fail(
            "migrations",
            "the relay's own schema is older than this build: `outbox-relay migrate` adds what is missing",
        )
        .fix(Fix::Relay("migrate --yes".to_owned())),
        None => Line::ok(
            "migrations",
            "another tool applies them, or this role may not read which were",
        ),
    }
}

/// What the server's counts and settings say of a table.
#[must_use]
pub fn counts(outbox: &Outbox, counts: &Counts, server: &Server) -> Vec<Line> {
    let table = quote_table(&outbox.table);
    let autovacuum = match (server.autovacuum, &counts.unvacuumed) {
        (false, _) => Line::warn(
            "autovacuum",
            "it is off on the whole server: the table only grows, and claims get slower",
        )
        .words("run `alter system set autovacuum = on`, the same for track_counts, then reload"),
        (_, Some(relation)) => Line::warn(
            "autovacuum",
            "it is off for this table, or a partition of it, which only grows, and claims get slower",
        )
        .sql(format!(
            "alter table {relation} reset (autovacuum_enabled);"
        )),
        (true, None) => Line::ok("autovacuum", "it is on"),
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "a count of rows, compared roughly"
    )]
    let dead = counts.dead as f64;
    let bloat = if counts.dead >= DEAD_ROWS_MIN && dead > 2.0 * counts.vacuum_at_rows {
        let vacuumed = match counts.vacuumed_s {
            Some(age) => format!("was vacuumed {} ago", whole_seconds(age)),
            None => "was never vacuumed".to_owned(),
        };
        Line::warn(
            "bloat",
            format!(
                "{} dead rows, more than twice what brings autovacuum, and the table {vacuumed}: claims get \
                 slower. If `horizon` has a line, that comes first",
                counts.dead
            ),
        )
        .sql(format!("vacuum (analyze) {table};"))
    } else {
        Line::ok("bloat", format!("{} dead rows", counts.dead))
    };
    let mut lines = vec![autovacuum, bloat, deleted(outbox, counts)];
    if counts.row_security {
        lines.push(
            Line::fail(
                "policies",
                "row security hides rows of the table from the relay's role: it refuses to claim",
            )
            .sql(format!("alter role {} bypassrls;", quote(&server.role))),
        );
    } else {
        lines.push(Line::ok("policies", "no row security applies to the relay"));
    }
    lines
}

/// Whether the service deletes each row right after it inserts it: nobody else ever sees one then.
fn deleted(outbox: &Outbox, counts: &Counts) -> Line {
    let by_relays = match outbox.on_published {
        // each row that a relay had was marked first
        OnPublished::Mark => counts.updated.saturating_mul(10) >= counts.inserted,
        OnPublished::Delete | OnPublished::Archive => counts.served,
    };
    let many = counts.inserted >= INSERTS_MIN
        && counts.deleted.saturating_mul(10) >= counts.inserted.saturating_mul(9);
    if by_relays || !many || !counts.is_empty {
        return Line::ok("deleted", "rows stay until the relay has published them");
    }
    let table = literal(&quote_table(&outbox.table));
    let reset = match counts.partitioned {
        true => format!(
            "select pg_stat_reset_single_table_counters(p.relid) from pg_partition_tree({table}::regclass) p;"
        ),
        false => format!("select pg_stat_reset_single_table_counters({table}::regclass);"),
    };
    Line::warn(
        "deleted",
        format!(
            "{} rows were inserted, {} deleted, and the table is empty: the service seems to delete its \
             rows in the transaction that inserts them, as Debezium's Quarkus extension does unless \
             quarkus.debezium-outbox.remove-after-insert=false, and no relay ever sees one. Once it has \
             stopped, begin to count anew",
            counts.inserted, counts.deleted
        ),
    )
    .sql(reset)
}

/// What else is at the table.
#[must_use]
pub fn rivals(rivals: &[(String, String, String)]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (kind, name, table) in rivals {
        let quoted = quote(name);
        lines.push(match kind.as_str() {
            "trigger" => Line::warn(
                "rivals",
                format!(
                    "the trigger {name} is not the relay's: one on update or delete can stop what is \
                     published from being settled, one after insert may publish too"
                ),
            )
            .sql(format!("alter table {table} disable trigger {quoted};")),
            "rule" => Line::warn(
                "rivals",
                format!("the rule {name} rewrites statements: what is published may not be settled"),
            )
            .sql(format!("drop rule {quoted} on {table};")),
            "publication" => Line::warn(
                "rivals",
                format!(
                    "the publication {name} has the table: whoever reads it, such as Debezium, publishes \
                     the same rows too"
                ),
            )
            .sql(format!("alter publication {quoted} drop table {table};")),
            _ => Line::ok(
                "rivals",
                format!("the publication {name} has all tables, this one too"),
            ),
        });
    }
    if lines.is_empty() {
        lines.push(Line::ok(
            "rivals",
            "no trigger, rule or publication of others",
        ));
    }
    lines
}

/// Whether the claim goes by the lanes' index, alone, or by those `of_partitions`, if there are any.
#[must_use]
pub fn claim(outbox: &Outbox, plan: &str, index: &str, of_partitions: &[String]) -> Line {
    let wanted: Vec<&str> = match of_partitions {
        [] => vec![index],
        some => some.iter().map(String::as_str).collect(),
    };
    let has = |index: &&str| {
        let on = |line: &str| line.contains("Index") && line.contains(*index);
        plan.lines()
            .any(|line| on(line) && !line.contains("Bitmap"))
    };
    // the condition on the lane must be the index's own, not a filter on all it has
    let by_lane = |line: &&str| line.contains("Index Cond") && line.contains("hashtext");
    let sorts = !of_partitions.is_empty() && plan.contains("->  Sort");
    if wanted.iter().all(has) && plan.lines().filter(by_lane).count() >= wanted.len() && !sorts {
        return Line::ok("claim", format!("it goes by the index {index}"));
    }
    let index = format!("{}.{}", quote(&outbox.table.schema), quote(index));
    let concurrently = match of_partitions {
        [] => " concurrently",
        _ => "",
    };
    Line::fail(
        "claim",
        format!(
            "it does not go by the index {index}, which is not the one that `outbox-relay migrate` makes: \
             each claim reads the whole backlog. Drop it, then run `outbox-relay migrate`"
        ),
    )
    .sql(format!("drop index{concurrently} {index};"))
}

/// Rows that wait for a person.
#[must_use]
pub fn parked(outbox: &Outbox, parked: &BTreeMap<String, i64>) -> Line {
    let rows = |state: &str| parked.get(state).copied().unwrap_or(0);
    let (blocked, dead, behind) = (rows("blocked"), rows("dead"), rows("behind"));
    if blocked == 0 && dead == 0 {
        return Line::ok("parked", "no row waits for a person");
    }
    let table = outbox.table.quoted();
    let command = format!("parked list --outbox {}", shell(&table));
    Line::warn(
        "parked",
        format!(
            "{blocked} rows block their aggregates, {behind} wait behind them, and {dead} were let pass: \
             look at them, mend what they were refused for, then `parked retry` or `parked skip`"
        ),
    )
    .fix(Fix::Relay(command))
}

/// Rows that no topic can have.
#[must_use]
pub fn illegal_topic(why: &str) -> Line {
    Line::fail(
        "routing",
        format!("the topic of some rows {why}: they will be parked"),
    )
    .words("change outbox.topic or outbox.topics_allowed, or what the service writes")
}

/// Whether rows that choose their topic, `own`, may choose any.
#[must_use]
pub fn own_topics(outbox: &Outbox, own: &BTreeSet<String>) -> Line {
    if own.is_empty() || !outbox.topics_allowed.is_any() {
        return Line::ok("allowed", "no row reaches a topic that it should not");
    }
    let topics: BTreeSet<String> = (own.iter())
        .filter(|topic| route::illegal(topic).is_none())
        .cloned()
        .chain([outbox.topic.pattern()])
        .collect();
    let listed = topics.iter().take(TOPICS_SHOWN);
    let listed: Vec<String> = listed.map(|topic| format!("\"{topic}\"")).collect();
    Line::warn(
        "allowed",
        "rows choose their own topic, and outbox.topics_allowed has no list: whoever may insert a row can \
         write to every topic that the relay can. Those seen and the usual ones are",
    )
    .fix(Fix::Setting {
        // one of several, as the file has it
        section: "[outbox]",
        line: format!("topics_allowed = [{}]", listed.join(", ")),
    })
}

fn whole_seconds(seconds: f64) -> humantime::FormattedDuration {
    let age = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    humantime::format_duration(Duration::from_secs(age.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, Purpose, Secret, Settings};

    fn config(relay: &str) -> Config {
        let flags = Flags {
            database_url: Some(Secret::new("postgres://relay@db.example/shop")),
            brokers: Some("localhost:9092".into()),
            table: Some("public.outbox".into()),
            ..Flags::default()
        };
        let settings = Settings::gather(None, &Environment::default(), &flags);
        let mut config = settings.config(Purpose::Run).unwrap();
        match relay {
            "notify" => config.outboxes[0].notify = true,
            "many" => config.relay.workers = 64,
            "unprepared" => config.database.prepared_statements = false,
            _ => {}
        }
        config
    }

    fn well() -> Server {
        Server {
            version: "17.2".into(),
            is_standby: false,
            role: "relay".into(),
            database: "shop".into(),
            is_superuser: false,
            tls: true,
            verified: Verified::Full,
            is_local: false,
            connections_max: 97,
            connections_used: 10,
            role_limit: -1,
            database_limit: -1,
            transaction_timeout_ms: 0,
            idle_session_timeout_ms: 0,
            autovacuum: true,
            sees_sessions: true,
            clock: (0.2, 0.01),
            pooler: Pooler::None,
        }
    }

    fn fix(line: &Line) -> String {
        line.json(&super::super::Names::default())["fix"]
            .as_str()
            .unwrap_or("none")
            .to_owned()
    }

    #[test]
    fn each_fact_about_a_server_has_its_line() {
        /// What is otherwise than it should be, under which config, and the line for it.
        type Case = (
            fn(&mut Server),
            &'static str,
            &'static str,
            Level,
            &'static str,
        );
        let cases: &[Case] = &[
            (
                |s| s.is_standby = true,
                "",
                "database",
                Level::Fail,
                "primary",
            ),
            (
                |s| s.verified = Verified::Nothing,
                "",
                "tls",
                Level::Warn,
                "sslmode=verify-full",
            ),
            (
                |s| s.verified = Verified::Authority,
                "",
                "tls",
                Level::Warn,
                "sslmode=verify-full",
            ),
            (
                |s| s.tls = false,
                "",
                "tls",
                Level::Warn,
                "sslmode=verify-full",
            ),
            (
                |s| (s.tls, s.is_local) = (false, true),
                "",
                "tls",
                Level::Ok,
                "none",
            ),
            (
                |s| s.pooler = Pooler::Transaction { statements: false },
                "",
                "pooler",
                Level::Fail,
                "prepared_statements = false in [database]",
            ),
            (
                |s| s.pooler = Pooler::Transaction { statements: true },
                "",
                "pooler",
                Level::Ok,
                "none",
            ),
            (
                |s| s.pooler = Pooler::Transaction { statements: true },
                "unprepared",
                "pooler",
                Level::Ok,
                "none",
            ),
            (
                |s| s.role_limit = 5,
                "",
                "connections",
                Level::Fail,
                "alter role \"relay\" connection limit 12;",
            ),
            (
                |s| (s.role_limit, s.is_superuser) = (5, true),
                "",
                "connections",
                Level::Ok,
                "none",
            ),
            (
                |s| s.database_limit = 0,
                "",
                "connections",
                Level::Fail,
                "alter database \"shop\" connection limit 12;",
            ),
            (
                |s| s.role_limit = 5,
                "many",
                "connections",
                Level::Fail,
                "connection limit 132;",
            ),
            (
                |s| s.connections_max = 60,
                "many",
                "connections",
                Level::Fail,
                "max_connections = 274;",
            ),
            (
                |s| s.connections_used = 93,
                "",
                "connections",
                Level::Warn,
                "max_connections = 109;",
            ),
            (
                |s| (s.connections_used, s.pooler) = (93, Pooler::Transaction { statements: true }),
                "",
                "connections",
                Level::Ok,
                "none",
            ),
            (
                |s| s.transaction_timeout_ms = 20_000,
                "",
                "timeouts",
                Level::Fail,
                "set transaction_timeout = 0;",
            ),
            (
                |s| s.transaction_timeout_ms = 60_000,
                "",
                "timeouts",
                Level::Ok,
                "none",
            ),
            (
                |s| s.idle_session_timeout_ms = 1,
                "notify",
                "timeouts",
                Level::Warn,
                "set idle_session_timeout = 0;",
            ),
            (
                |s| s.idle_session_timeout_ms = 1,
                "",
                "timeouts",
                Level::Ok,
                "none",
            ),
            (
                |s| s.clock = (-61.0, 0.1),
                "",
                "clock",
                Level::Warn,
                "timedatectl",
            ),
            (|s| s.clock = (3.0, 2.5), "", "clock", Level::Ok, "none"),
        ];
        let fine = server(&well(), &config(""));
        assert!(fine.iter().all(|line| line.level == Level::Ok), "{fine:?}");
        for (i, (change, relay, item, level, mended)) in cases.iter().enumerate() {
            let mut facts = well();
            change(&mut facts);
            let lines = server(&facts, &config(relay));
            let line = lines.iter().find(|line| line.item == *item).unwrap();
            assert_eq!(line.level, *level, "case {i}: {line:?}");
            assert!(fix(line).contains(mended), "case {i}: {line:?}");
        }
    }

    #[test]
    fn what_holds_back_vacuum_is_named_with_what_ends_it() {
        let held = |kind: &str, name: &str, age_s: Option<u64>| Holder {
            kind: kind.into(),
            name: name.into(),
            age: age_s.map(Duration::from_secs),
            bytes: Some(1),
            who: "app".into(),
        };
        let all = [
            held("transaction", "42", Some(61)),
            held("transaction", "43", Some(59)),
            held("prepared", "it's", Some(3600)),
            held("slot", "gone", None),
        ];
        let minute = Duration::from_secs(60);
        let lines: Vec<Line> = holders(&all, &well(), minute).collect();
        let fixes: Vec<String> = lines.iter().map(fix).collect();
        assert_eq!(
            fixes,
            [
                "select pg_terminate_backend(42);",
                "rollback prepared 'it''s';",
                "select pg_drop_replication_slot('gone');"
            ]
        );
        let blind = Server {
            sees_sessions: false,
            ..well()
        };
        let levels: Vec<Level> = holders(&[], &blind, minute)
            .map(|line| line.level)
            .collect();
        assert_eq!(levels, [Level::Ok, Level::Skip]);
    }

    #[test]
    fn rows_deleted_by_relays_are_not_held_against_the_service() {
        let mut outbox = config("").outboxes.remove(0);
        let counted = |inserted, updated, deleted, is_empty, served| Counts {
            partitioned: false,
            unvacuumed: None,
            vacuum_at_rows: 50.0,
            inserted,
            updated,
            deleted,
            dead: 0,
            vacuumed_s: None,
            is_empty,
            row_security: false,
            served,
        };
        let level = |outbox: &Outbox, counts: Counts| deleted(outbox, &counts).level;
        // marked rows are updated first; a purge deletes them later
        assert_eq!(
            level(&outbox, counted(1000, 1000, 1000, true, true)),
            Level::Ok
        );
        assert_eq!(
            level(&outbox, counted(1000, 0, 1000, true, true)),
            Level::Warn
        );
        assert_eq!(
            level(&outbox, counted(1000, 0, 1000, false, true)),
            Level::Ok
        );
        assert_eq!(level(&outbox, counted(1000, 0, 500, true, true)), Level::Ok);
        assert_eq!(level(&outbox, counted(19, 0, 19, true, false)), Level::Ok);
        outbox.on_published = OnPublished::Delete;
        assert_eq!(
            level(&outbox, counted(1000, 0, 1000, true, true)),
            Level::Ok
        );
        assert_eq!(
            level(&outbox, counted(1000, 0, 1000, true, false)),
            Level::Warn
        );
    }

    #[test]
    fn a_claim_must_go_by_the_lane_and_not_by_a_filter() {
        let outbox = config("").outboxes.remove(0);
        let by = |line: &str| {
            format!("Nested Loop\n  ->  Index Scan using i_16 on outbox t\n        {line}: x")
        };
        let plan = by("Index Cond: ((hashtext(y) & 15) = l.lane)");
        assert_eq!(claim(&outbox, &plan, "i_16", &[]).level, Level::Ok);
        let plan = by("Filter: ((hashtext(y) & 15) = l.lane)");
        let line = claim(&outbox, &plan, "i_16", &[]);
        assert_eq!(line.level, Level::Fail);
        assert_eq!(fix(&line), "drop index concurrently \"public\".\"i_16\";");
        let line = claim(&outbox, "Seq Scan on outbox t", "i_16", &[]);
        assert_eq!(line.level, Level::Fail);
    }

    #[test]
    fn what_could_not_be_looked_at_is_said_once() {
        let outbox = config("").outboxes.remove(0);
        let found = Inspected::default();
        let lines = inspected(&outbox, &found);
        let levels: Vec<_> = lines.iter().map(|line| (line.level, line.item)).collect();
        assert_eq!(levels, [(Level::Fail, "table"), (Level::Skip, "schema")]);
        assert!(lines[1].why.contains("columns") && lines[1].why.contains("numbers"));
    }
}
