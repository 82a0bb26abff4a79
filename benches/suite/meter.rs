//! What a case cost: processor time from `/proc`, the write-ahead log, statements.

use sqlx::PgConnection;

use crate::relays::Relay;
use crate::report::Row;
use crate::stand::{Place, Stand};
use crate::support::janitor::{field_in, field_of_stat, parent, processes};

/// Of the values in `/proc/<pid>/stat`.
const TICK_US: f64 = 10_000.0;
/// The fields of `/proc/<pid>/stat` with what a process used, and with what its ended children did.
const OWN: [usize; 2] = [14, 15];
const CHILDREN: [usize; 2] = [16, 17];

/// Fewer say little of what one costs librdkafka: its threads wake for other reasons as well.
const LIBRDKAFKA_EVENTS_MIN: u64 = 50_000;

/// Microseconds of processor time that a process has used, user and system.
pub(crate) fn used_us(pid: u32) -> f64 {
    ticks(pid, &OWN) * TICK_US
}

/// The same with its children, of which those that ended are counted with their parent.
fn family_us(head: u32) -> f64 {
    let children = processes().filter(|pid| parent(*pid) == Some(head.into()));
    let living: f64 = children.map(|pid| ticks(pid, &OWN)).sum();
    (ticks(head, &OWN) + ticks(head, &CHILDREN) + living) * TICK_US
}

fn ticks(pid: u32, fields: &[usize]) -> f64 {
    let of = |field: &usize| field_of_stat(pid, *field).unwrap_or(0) as f64;
    fields.iter().map(of).sum()
}

/// The same of those threads of a process that are librdkafka's own: it names them `rdk:…`.
fn librdkafka_us(pid: u32) -> f64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0.0;
    };
    let of_task = |task: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let task = task.ok()?.path();
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        name.starts_with("rdk:")
            .then(|| OWN.iter().filter_map(|field| field_in(&stat, *field)))
            .map(|ticks| ticks.sum::<u64>() as f64 * TICK_US)
    };
    tasks.filter_map(of_task).sum()
}

/// The most memory that a process has held, in MiB.
pub(crate) fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// What was used before.
pub(crate) struct Meter {
    postgres_us: f64,
    kafka_us: f64,
    wal_bytes: f64,
    statements: Statements,
    relays_us: f64,
    librdkafka_us: f64,
}

/// What the relays' role has executed.
#[derive(Debug, Clone, Copy, Default)]
struct Statements {
    /// All but those that begin, configure and end a transaction.
    all: f64,
    transactions: f64,
}

impl Meter {
    pub(crate) async fn start(stand: &Stand, place: &mut Place) -> Result<Self, String> {
        Self::read(stand, place, &[]).await
    }

    /// Reads it with what `relays` have used already.
    pub(crate) async fn read(
        stand: &Stand,
        place: &mut Place,
        relays: &[Relay],
    ) -> Result<Self, String> {
        if stand.counts_statements && stand.dearest > 0 {
            let forget = "select pg_stat_statements_reset(0, d.oid, 0) from pg_database d
                           where d.datname = current_database()";
            let forgotten = sqlx::raw_sql(forget).execute(&mut place.connection).await;
            forgotten.map_err(|error| error.to_string())?;
        }
        Self::now(stand, place, relays).await
    }

    async fn now(stand: &Stand, place: &mut Place, relays: &[Relay]) -> Result<Self, String> {
        Ok(Self {
            statements: statements(stand, &mut place.connection).await?,
            wal_bytes: wal_bytes(&mut place.connection).await?,
            postgres_us: stand.postgres.pid().map_or(0.0, family_us),
            kafka_us: stand.kafka.pid().map_or(0.0, used_us),
            relays_us: relays.iter().map(|relay| used_us(relay.pid())).sum(),
            librdkafka_us: (relays.iter().map(|relay| librdkafka_us(relay.pid()))).sum(),
        })
    }

    /// Puts what was used since into `row`, for each of `events`.
    pub(crate) async fn stop(
        self,
        stand: &Stand,
        place: &mut Place,
        relays: &[Relay],
        events: u64,
        row: &mut Row,
    ) -> Result<(), String> {
        let now = Self::now(stand, place, relays).await?;
        let each = |used: f64| Some(used / events.max(1) as f64);
        row.postgres_us = each(now.postgres_us - self.postgres_us);
        row.kafka_us = each(now.kafka_us - self.kafka_us);
        row.wal_bytes = each(now.wal_bytes - self.wal_bytes);
        if !relays.is_empty() {
            row.relay_us = each(now.relays_us - self.relays_us);
            let peaks = relays.iter().map(|relay| peak_mib(relay.pid()));
            row.peak_mib = peaks.reduce(f64::max);
            if events >= LIBRDKAFKA_EVENTS_MIN {
                let own = (now.librdkafka_us - self.librdkafka_us) / events as f64;
                row.note(format!(
                    "{own:.2} of the relay's µs are librdkafka's threads"
                ));
            }
        }
        let transactions = now.statements.transactions - self.statements.transactions;
        if stand.counts_statements && transactions > 0.0 {
            let all = now.statements.all - self.statements.all;
            row.statements = Some(all / transactions);
            row.rows_per_transaction = Some(events as f64 / transactions);
            tell_dearest(place, stand.dearest, events).await?;
        }
        Ok(())
    }
}

async fn wal_bytes(connection: &mut PgConnection) -> Result<f64, String> {
    let sql = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8";
    let bytes = sqlx::query_scalar(sql).fetch_one(connection).await;
    bytes.map_err(|error| error.to_string())
}

async fn statements(stand: &Stand, connection: &mut PgConnection) -> Result<Statements, String> {
    if !stand.counts_statements {
        return Ok(Statements::default());
    }
    let sql = "select coalesce(sum(s.calls) filter (where s.query !~* '^\\s*(begin|set|commit|rollback|start)\\M'), 0)::float8,
                      coalesce(sum(s.calls) filter (where s.query ~* '^\\s*commit\\M'), 0)::float8
                 from pg_stat_statements s
                where s.userid = 'relay'::regrole
                  and s.dbid = (select d.oid from pg_database d where d.datname = current_database())";
    let counted: Result<(f64, f64), _> = sqlx::query_as(sql).fetch_one(connection).await;
    let (all, transactions) = counted.map_err(|error| error.to_string())?;
    Ok(Statements { all, transactions })
}

/// Tells whoever watches which of the relay's statements since the meter's start were executed the longest,
/// each for one of `events`.
async fn tell_dearest(place: &mut Place, wanted: u16, events: u64) -> Result<(), String> {
    let sql = "select s.calls, s.total_exec_time * 1000,
                      left(regexp_replace(s.query, '\\s+', ' ', 'g'), 100)
                 from pg_stat_statements s
                where s.userid = 'relay'::regrole
                  and s.dbid = (select d.oid from pg_database d where d.datname = current_database())
                order by 2 desc limit $1";
    let dearest = sqlx::query_as(sql).bind(i64::from(wanted));
    let dearest: Result<Vec<(i64, f64, String)>, _> =
        dearest.fetch_all(&mut place.connection).await;
    for (calls, us, query) in dearest.map_err(|error| error.to_string())? {
        let (of_event, of_call) = (us / events.max(1) as f64, us / calls.max(1) as f64);
        eprintln!("  {of_event:8.3} us an event, {calls:7} times {of_call:8.0} us: {query}");
    }
    Ok(())
}
