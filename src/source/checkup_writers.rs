//! The facts that `check` judges the writers of an outbox by, and the partitions of one that has any. It reads,
//! within bounds, and takes no lock that a writer would notice.

use sqlx::postgres::PgRow;

use super::checkup::{Checkup, get};
use super::checkup_sql::PENDING_ROWS_MAX;
use super::error::Error;
use super::layout::{literal, names, quote_table};
use super::partitions::{condition, relations};
use super::sql::lane_of;
use crate::config::{Outbox, TableName};

/// Writers that are named at most.
const WRITERS_MAX: u32 = 20;

/// A transaction that has written to the outbox and is open still.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenWriter {
    /// Its process.
    pub pid: i32,
    /// What it calls itself.
    pub application: String,
    /// Its role.
    pub role: String,
    /// For how many seconds it has been open; `None`: this role is not told.
    pub age_s: Option<f64>,
}

/// How the last pending rows were written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Written {
    /// Rows that were looked at.
    pub rows: i64,
    /// Whether the server keeps the time of each commit.
    pub commits_known: bool,
    /// Neighbours of one aggregate, by number, that two transactions wrote.
    pub pairs: i64,
    /// Of these, where the later number was committed first.
    pub committed_first: i64,
    /// Of these, where the transaction of the later number was the first to write anything.
    pub wrote_first: i64,
    /// The later number of one such pair: of the first kind, if there is any.
    pub example: Option<i64>,
    /// Rows that were committed long after they say that they were created.
    pub late: i64,
    /// The longest of those times, in seconds.
    pub late_most_s: f64,
}

/// The partitions of an outbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Partitions {
    /// Those that hold rows.
    pub leaves: i64,
    /// Their indexes.
    pub indexes: i64,
    /// Locks on tables that all transactions together may hold.
    pub locks_max: i64,
    /// `max_locks_per_transaction`.
    pub locks_each: i64,
    /// Rows that go there by name would get no number of the outbox's sequence: which partition, and the
    /// statement that mends it.
    pub unnumbered: Vec<(String, String)>,
    /// Those that a plan cannot tell from their siblings.
    pub alike: i64,
}

impl Checkup {
    /// Who has written to `table` and has not committed for longer than `age_s`, relays left out.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn open_writers(
        &mut self,
        table: &TableName,
        age_s: f64,
    ) -> Result<Vec<OpenWriter>, Error> {
        let doing = "look for writers that do not commit";
        // Plan: functions that list locks and sessions; what one's own role may not see of a session is null.
        let sql = format!(
            "select a.pid, a.application_name::text as application, coalesce(a.usename::text, '') as role,
                    extract(epoch from clock_timestamp() - a.xact_start)::float8 as age_s
               from pg_stat_activity a
              where a.datname = current_database() and a.pid <> pg_backend_pid()
                and a.application_name is distinct from 'outbox-relay'
                and (a.xact_start is null or a.xact_start < clock_timestamp() - make_interval(secs => {age_s}))
                and exists (select from pg_locks k
                             where k.pid = a.pid and k.locktype = 'relation' and k.granted
                               and k.mode = 'RowExclusiveLock'
                               and k.database = (select d.oid from pg_database d
                                                  where d.datname = current_database())
                               and k.relation in {})
              order by a.xact_start, a.pid
              limit {WRITERS_MAX}",
            relations(&quote_table(table))
        );
        let rows = self.rows(doing, sql).await?;
        let writer = |row: &PgRow| {
            Ok(OpenWriter {
                pid: get(doing, row, "pid")?,
                application: get(doing, row, "application")?,
                role: get(doing, row, "role")?,
                age_s: get(doing, row, "age_s")?,
            })
        };
        rows.iter().map(writer).collect()
    }

    /// How the last pending rows of `outbox` were written, which has `lanes` lanes; `late_s` seconds from
    /// creation to commit are long.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn written(
        &mut self,
        outbox: &Outbox,
        lanes: u16,
        late_s: f64,
    ) -> Result<Written, Error> {
        let doing = "look at how rows were written";
        let row = names(&outbox.layout, "t.");
        // Rows that `migrate` numbered have the transaction that did. A transaction's first write gives it its
        // number; where the server keeps no time of commits, asking for one is an error.
        // Plan: the end of each lane, by its index, and a window over what came.
        let sql = format!(
            "with seen as materialized (
               select x.key, x.seq, x.xid, age(x.xid) as age, x.created_s,
                      case when current_setting('track_commit_timestamp')::bool and x.xid::text::int8 > 2
                           then pg_xact_commit_timestamp(x.xid) end as committed_at
                 from generate_series(0, {last_lane}) as l (lane)
                cross join lateral
                      (select coalesce({key}, '') as key, t.seq, t.xmin as xid,
                              extract(epoch from {created_at})::float8 as created_s
                         from {rows} t
                        where {unpublished} and {lane} = l.lane and t.seq > 0
                        order by t.seq desc limit {each}) x),
             paired as (
               select s.*, lag(s.seq) over w as seq_before, lag(s.xid::text) over w as xid_before,
                      lag(s.age) over w as age_before, lag(s.committed_at) over w as committed_before
                 from seen s window w as (partition by s.key order by s.seq)),
             judged as (
               select p.*, p.xid_before <> p.xid::text as is_pair,
                      p.committed_before > p.committed_at as committed_first, p.age_before < p.age as wrote_first,
                      extract(epoch from p.committed_at)::float8 - p.created_s as late_s
                 from paired p)
             select count(*) as rows, current_setting('track_commit_timestamp')::bool as commits_known,
                    count(*) filter (where is_pair) as pairs,
                    count(*) filter (where is_pair and committed_first) as committed_first,
                    count(*) filter (where is_pair and wrote_first) as wrote_first,
                    coalesce(min(seq) filter (where is_pair and committed_first),
                             min(seq) filter (where is_pair and wrote_first)) as example,
                    count(*) filter (where late_s > {late_s}) as late,
                    coalesce(max(late_s) filter (where late_s < 'infinity'), 0) as late_most_s
               from judged",
            last_lane = i32::from(lanes) - 1,
            key = row.key,
            created_at = row.created_at,
            rows = quote_table(&outbox.table),
            unpublished = row.unpublished,
            lane = lane_of(&row, lanes),
            each = (PENDING_ROWS_MAX / u32::from(lanes.max(1))).max(1),
        );
        let rows = self.rows(doing, sql).await?;
        let Some(row) = rows.first() else {
            return Ok(Written::default());
        };
        Ok(Written {
            rows: get(doing, row, "rows")?,
            commits_known: get(doing, row, "commits_known")?,
            pairs: get(doing, row, "pairs")?,
            committed_first: get(doing, row, "committed_first")?,
            wrote_first: get(doing, row, "wrote_first")?,
            example: get(doing, row, "example")?,
            late: get(doing, row, "late")?,
            late_most_s: get(doing, row, "late_most_s")?,
        })
    }

    /// The partitions of `table`, which has some.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn partitions(&mut self, table: &TableName) -> Result<Partitions, Error> {
        let doing = "look at the table's partitions";
        let quoted = literal(&quote_table(table));
        // Plan: catalogues.
        let sql = format!(
            "select count(*) as leaves,
                    coalesce(sum((select count(*) from pg_catalog.pg_index i where i.indrelid = p.relid)), 0)::int8
                      as indexes,
                    current_setting('max_locks_per_transaction')::int8
                      * (current_setting('max_connections')::int8
                         + current_setting('max_prepared_transactions')::int8) as locks_max,
                    current_setting('max_locks_per_transaction')::int8 as locks_each,
                    count(*) filter (where pg_get_partition_constraintdef(p.relid)
                                             ~ 'satisfies_hash_partition\\(') as alike
               from pg_partition_tree({quoted}::regclass) p where p.isleaf"
        );
        let rows = self.rows(doing, sql).await?;
        let Some(row) = rows.first() else {
            return Ok(Partitions::default());
        };
        let mut found = Partitions {
            leaves: get(doing, row, "leaves")?,
            indexes: get(doing, row, "indexes")?,
            locks_max: get(doing, row, "locks_max")?,
            locks_each: get(doing, row, "locks_each")?,
            alike: get(doing, row, "alike")?,
            unnumbered: Vec::new(),
        };
        // A partition has a default of its own, which an insert that names it goes by. Where there is none, and
        // null is refused, the insert is, too: nothing is lost.
        let sql = format!(
            "select p.relid::regclass::text as relation,
                    format('alter table %s alter column seq %s;', p.relid::regclass,
                           case when a.attidentity <> '' then 'drop identity'
                                when t.attidentity <> '' then 'drop default'
                                else 'set default ' || pg_get_expr(td.adbin, td.adrelid) end) as fix
               from pg_partition_tree({quoted}::regclass) p
               join pg_catalog.pg_attribute a on a.attrelid = p.relid and a.attname = 'seq' and not a.attisdropped
               join pg_catalog.pg_attribute t
                 on t.attrelid = {quoted}::regclass and t.attname = 'seq' and not t.attisdropped
               left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
               left join pg_catalog.pg_attrdef td on td.adrelid = t.attrelid and td.adnum = t.attnum
              where p.relid <> {quoted}::regclass
                and (a.attidentity <> '' and t.attidentity = ''
                     or a.attidentity = ''
                        and pg_get_expr(d.adbin, d.adrelid) is distinct from pg_get_expr(td.adbin, td.adrelid)
                        and not (d.adbin is null and a.attnotnull))
              order by 1
              limit 20"
        );
        for row in &self.rows(doing, sql).await? {
            let relation = get(doing, row, "relation")?;
            found.unnumbered.push((relation, get(doing, row, "fix")?));
        }
        Ok(found)
    }

    /// Where the last rows that came to a partitioned table are, as conditions on `t`: the last pages, `pages`
    /// of them, of the three partitions that were made last and are not empty.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub(super) async fn recent(
        &mut self,
        table: &TableName,
        pages: u32,
    ) -> Result<Vec<String>, Error> {
        let doing = "look for the last partitions";
        let sql = format!(
            "select format('t.tableoid = %s and t.ctid >= ''(%s,0)''::tid and %s', p.relid::oid,
                           greatest(x.pages - {pages}, 0), coalesce({condition}, 'true')) as condition
               from pg_partition_tree({table}::regclass) p
              cross join lateral
                    (select pg_relation_size(p.relid) / current_setting('block_size')::int8 as pages) x
              where p.isleaf and x.pages > 0
              order by p.relid::oid desc limit 3",
            condition = condition("p.relid"),
            table = literal(&quote_table(table)),
        );
        let rows = self.rows(doing, sql).await?;
        rows.iter()
            .map(|row| get(doing, row, "condition"))
            .collect()
    }
}
