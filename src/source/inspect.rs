//! The look before the start, and now and then after it: is the table what the config says, may the
//! relay do what it must, is the order safe? Every finding says what to do.

use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgConnection, PgRow};

use super::barrier::Barrier;
use super::error::Error;
use super::layout::{
    columns, index_name, literal, names, own_name, quote, quote_if_need_be, quote_table,
};
use super::polling::{Polling, Settings};
use super::session::{Session, answer, committed, fixed};
use super::sql::{Statements, Table, Timeouts, lane_of};
use crate::config::{Config, Outbox};
use crate::finding::Finding;
use crate::route::Router;

/// What a look found.
#[derive(Debug)]
pub enum Inspection {
    /// All is well: the outbox can be served.
    Ready(Arc<Polling>),
    /// Not yet, and time or somebody else will help. The line to log.
    Waiting(String),
    /// Not as it is: each problem with its remedy.
    Wrong(Vec<String>),
}

/// Looks at one outbox.
#[derive(Debug)]
pub struct Inspector {
    pub(super) session: Session,
    pub(super) outbox: Outbox,
    pub(super) database: crate::config::Database,
    relay: crate::config::Relay,
    pub(super) timeouts: Timeouts,
    until_empty: bool,
}

/// Whatever anything takes beyond its own limit: withdrawing a batch, settling it.
const SLACK_MS: u128 = 15_000;

impl Inspector {
    /// For `outbox`, which `config` has. `until_empty`: the run ends when nothing is left to claim.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(config: &Config, outbox: &Outbox, until_empty: bool) -> Result<Self, Error> {
        let idle_ms = config.relay.publish_timeout.as_millis() + SLACK_MS;
        let statement_ms = config.database.statement_timeout.as_millis();
        Ok(Self {
            session: Session::new(&config.database)?,
            outbox: outbox.clone(),
            database: config.database.clone(),
            relay: config.relay.clone(),
            timeouts: Timeouts {
                statement_ms,
                idle_ms,
                tcp_ms: idle_ms,
            },
            until_empty,
        })
    }

    /// Looks.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn look(&mut self) -> Result<Inspection, Error> {
        let found = self.find().await;
        // a look is rare: no connection is kept for it
        self.session.discard();
        found
    }

    async fn find(&mut self) -> Result<Inspection, Error> {
        let limit = self.session.answer_timeout();
        let mut look = Look {
            connection: self.session.connect().await?,
            limit,
            outbox: &self.outbox,
            wrong: Vec::new(),
        };
        let Some(table) = look.table().await? else {
            return Ok(Inspection::Waiting(format!(
                "the table {} does not exist yet; the service's own migrations create it. Waiting",
                self.outbox.table
            )));
        };
        let payload_is_bytea = look.columns(table).await?;
        let encoding = look.encoding(table).await?;
        look.schema().await?;
        if look.wrong.is_empty() {
            look.grants().await?;
        }
        if look.wrong.is_empty() {
            look.sequence().await?;
        }
        let mut lanes = 0;
        if look.wrong.is_empty() {
            lanes = look.lanes(table).await?;
        }
        if look.wrong.is_empty() {
            look.numbered(lanes).await?;
        }
        if look.wrong.is_empty() {
            look.set_back(lanes).await?;
        }
        let routing = Router::of(&self.outbox).fingerprint(&self.outbox.layout);
        if look.wrong.is_empty() {
            look.routing(&routing).await?;
        }
        if !look.wrong.is_empty() {
            let wrong = look.wrong.iter().map(ToString::to_string).collect();
            return Ok(Inspection::Wrong(wrong));
        }
        let name = &self.outbox.table;
        let statements = Statements::render(
            Table {
                name,
                layout: &self.outbox.layout,
                on_published: self.outbox.on_published,
                lanes,
                payload_is_bytea,
                partitioned: table.partitioned,
            },
            self.timeouts,
        );
        let flush = self.outbox.flush_before_publish;
        let session = flush.then(|| Session::new(&self.database)).transpose()?;
        let barrier = session.map(|session| Barrier::new(&name.to_string(), session));
        let settings = Settings {
            outbox: name.to_string(),
            routing,
            until_empty: self.until_empty,
            lanes,
            encoding,
            barrier,
            relay: &self.relay,
        };
        Ok(Inspection::Ready(Arc::new(Polling::new(
            settings, statements,
        ))))
    }
}

/// One look, gathering what is wrong. [`Inspector::find`] ends at the first thing that others rest
/// on; `checkup` goes on.
pub(super) struct Look<'a> {
    pub(super) connection: &'a mut PgConnection,
    pub(super) limit: std::time::Duration,
    pub(super) outbox: &'a Outbox,
    pub(super) wrong: Vec<Finding>,
}

/// The table, as far as the catalogue knows it.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) oid: Oid,
    pub(super) partitioned: bool,
}

impl Look<'_> {
    pub(super) async fn rows(
        &mut self,
        doing: &'static str,
        sql: String,
    ) -> Result<Vec<PgRow>, Error> {
        // simple queries: a pooler may give each message of a prepared one to another server process
        let rows = sqlx::raw_sql(fixed(&sql)).fetch_all(&mut *self.connection);
        answer(self.limit, doing, rows).await
    }

    pub(super) async fn truth(&mut self, doing: &'static str, sql: String) -> Result<bool, Error> {
        let rows = self.rows(doing, sql).await?;
        Ok(rows
            .first()
            .is_some_and(|row| row.try_get::<bool, _>(0).unwrap_or(false)))
    }

    pub(super) async fn table(&mut self) -> Result<Option<Found>, Error> {
        let name = &self.outbox.table;
        let (schema, table) = (literal(&name.schema), literal(&name.table));
        let rows = self
            .rows(
                "look for the table",
                format!(
                    "select c.oid, c.relkind::text from pg_catalog.pg_class c
                       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                      where n.nspname = {schema} and c.relname = {table}"
                ),
            )
            .await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let read =
            || -> Result<(Oid, String), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
        let (oid, kind) = read().map_err(|e| Error::statement("look for the table", e))?;
        Ok(Some(self.servable(oid, &kind).await?))
    }

    /// Whether the payload is bytea; what is missing or of a wrong type goes to the problems.
    pub(super) async fn columns(&mut self, table: Found) -> Result<bool, Error> {
        let rows = self
            .rows(
                "read the table's columns",
                format!(
                    "select attname::text, format_type(atttypid, null), attnotnull
                       from pg_catalog.pg_attribute
                      where attrelid = {} and attnum > 0 and not attisdropped",
                    table.oid.0
                ),
            )
            .await?;
        let read = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        let found: Vec<(String, String, bool)> =
            (rows.iter().map(read).collect::<Result<_, sqlx::Error>>())
                .map_err(|error| Error::statement("read the table's columns", error))?;
        let type_of = |name: &str| {
            found
                .iter()
                .find(|(n, ..)| n == name)
                .map(|(_, t, _)| t.as_str())
        };
        let nullable = |name: &str| found.iter().any(|(n, _, not_null)| n == name && !not_null);
        let name = &self.outbox.table;
        for column in columns(&self.outbox.layout) {
            let wanted = match column.types {
                [] => "of any type".to_owned(),
                types => types.join(", "),
            };
            let quoted = quote_if_need_be(&column.name);
            match type_of(&column.name) {
                None => {
                    let why = format!(
                        "{name} has no column {} ({wanted}), which its layout has: add it, or name \
                         the right layout in the config. `outbox-relay migrate` does not add it",
                        column.name
                    );
                    let table = quote_table(name);
                    self.wrong.push(match column.types.first() {
                        Some(first) if !column.not_null => Finding::sql(
                            why,
                            format!("alter table {table} add column {quoted} {first};"),
                        ),
                        // nobody but the service can fill it
                        _ => Finding::words(why),
                    });
                }
                Some(t) if !column.types.is_empty() && !column.types.contains(&t) => {
                    self.wrong.push(Finding::words(format!(
                        "the column {} of {name} is {t}; its layout takes {wanted}. \
                     `outbox-relay migrate` does not change it",
                        column.name
                    )));
                }
                Some(_) if column.not_null && nullable(&column.name) => {
                    self.wrong.push(Finding::sql(
                        format!(
                            "the column {} of {name} may be null, and a row without it cannot be \
                         published",
                            column.name
                        ),
                        format!(
                            "alter table {} alter column {quoted} set not null;",
                            quote_table(name),
                        ),
                    ));
                }
                Some(_) => {}
            }
        }
        match type_of("seq") {
            None => self.wrong.push(Finding::migrate(format!(
                "{name} has no column seq, which keeps its order: `outbox-relay migrate` adds it, \
                 without a rewrite, and numbers the rows that are not published yet"
            ))),
            Some("bigint") => {}
            Some(t) => self.wrong.push(Finding::words(format!(
                "the column seq of {name} is {t}; it must be bigint. `outbox-relay migrate` does not \
                 change it"
            ))),
        }
        Ok(type_of(&self.outbox.layout.payload) == Some("bytea"))
    }

    /// Whether `seq` keeps order: numbers drawn one by one, never again, by nobody but Postgres.
    pub(super) async fn sequence(&mut self) -> Result<(), Error> {
        let name = &self.outbox.table;
        let table = literal(&quote_table(name));
        let rows = self
            .rows(
                "read the sequence of seq",
                format!(
                    "select s.seqcache, s.seqincrement, s.seqcycle, s.seqrelid::regclass::text,
                            a.attidentity = 'a' or (a.attidentity = '' and a.atthasdef),
                            a.attidentity <> ''
                       from pg_catalog.pg_sequence s, pg_catalog.pg_attribute a
                      where s.seqrelid = pg_get_serial_sequence({table}, 'seq')::regclass
                        and a.attrelid = {table}::regclass and a.attname = 'seq'"
                ),
            )
            .await?;
        let Some(row) = rows.first() else {
            let (table, own) = (quote_table(name), own_name(name, "_outbox_relay_seq"));
            let sequence = format!("{}.{}", quote(&name.schema), quote(&own));
            let drawn = literal(&sequence);
            self.wrong.push(Finding::sql(
                format!(
                    "the column seq of {name} draws from no sequence of its own, so nothing numbers \
                     the rows in order"
                ),
                format!(
                    "create sequence {sequence} as bigint owned by {table}.seq; \
                     select setval({drawn}, greatest((select max(seq) from {table}), 0) + 1, false); \
                     alter table {table} alter column seq set default nextval({drawn}); \
                     grant usage on sequence {sequence} to public;"
                ),
            ));
            return Ok(());
        };
        let read = || -> Result<(i64, i64, bool, String, bool, bool), sqlx::Error> {
            Ok((
                row.try_get(0)?,
                row.try_get(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
                row.try_get(4)?,
                row.try_get(5)?,
            ))
        };
        let (cache, increment, cycle, sequence, draws, identity) =
            read().map_err(|error| Error::statement("read the sequence of seq", error))?;
        if !draws {
            let how = match identity {
                true => "set generated always".to_owned(),
                false => format!("set default nextval({})", literal(&sequence)),
            };
            self.wrong.push(Finding::sql(
                format!(
                    "writers of {name} can choose seq themselves, or must: then it keeps no order"
                ),
                format!("alter table {} alter column seq {how};", quote_table(name)),
            ));
        }
        if cache != 1 || increment != 1 || cycle {
            self.wrong.push(Finding::sql(
                format!(
                    "the sequence {sequence} of {name} caches {cache}, steps by {increment}{}: events \
                     of one aggregate would get numbers out of order",
                    if cycle { " and cycles" } else { "" }
                ),
                format!("alter sequence {sequence} cache 1 increment by 1 no cycle;"),
            ));
        }
        Ok(())
    }

    /// The number of lanes in force, which the lane rows and the index must agree on.
    pub(super) async fn lanes(&mut self, table: Found) -> Result<u16, Error> {
        let name = &self.outbox.table;
        let outbox = literal(&name.to_string());
        let rows = self
            .rows(
                "count the lanes",
                format!(
                    "select count(*), coalesce(max(lane) + 1, 0)::int8
                       from outbox_relay.lane where outbox = {outbox}"
                ),
            )
            .await?;
        let read = |row: &PgRow| -> Result<(i64, i64), sqlx::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?))
        };
        let (count, past_last) = match rows.first().map(read) {
            Some(counted) => counted.map_err(|error| Error::statement("count the lanes", error))?,
            None => (0, 0),
        };
        let lanes = u16::try_from(count).unwrap_or(0);
        if count == 0 {
            self.wrong.push(Finding::migrate(format!(
                "{name} has no lanes yet: `outbox-relay migrate` makes them"
            )));
            return Ok(0);
        }
        if count != past_last || !lanes.is_power_of_two() {
            self.wrong.push(Finding::words(format!(
                "{name} has {count} lane rows, the last of them {}: somebody changed \
                 outbox_relay.lane by hand. The lanes must be 0 to a power of two less one",
                past_last - 1
            )));
            return Ok(0);
        }
        let index = index_name(name, lanes);
        let valid = self
            .truth(
                "look for the lane index",
                format!(
                    "select i.indisvalid and i.indisready from pg_catalog.pg_index i
                       join pg_catalog.pg_class c on c.oid = i.indexrelid
                      where i.indrelid = {} and c.relname = {}",
                    table.oid.0,
                    literal(&index)
                ),
            )
            .await?;
        if !valid {
            self.wrong.push(Finding::migrate(format!(
                "{name} lacks the index {index}, or it is not valid: `outbox-relay migrate` makes \
                 it, concurrently"
            )));
        }
        Ok(lanes)
    }

    /// Whether every pending row has its number.
    pub(super) async fn numbered(&mut self, lanes: u16) -> Result<(), Error> {
        let name = &self.outbox.table;
        let row = names(&self.outbox.layout, "t.");
        let (table, lane) = (quote_table(name), lane_of(&row, lanes));
        let unpublished = &row.unpublished;
        let unnumbered = self
            .truth(
                "look for rows without a number",
                format!(
                    "select exists (select from generate_series(0, {}) as l (lane)
                       cross join lateral (select from {table} t
                        where {unpublished} and {lane} = l.lane and t.seq is null
                        limit 1) x)",
                    lanes - 1
                ),
            )
            .await?;
        if unnumbered {
            self.wrong.push(Finding::migrate(format!(
                "{name} has rows that are not published and have no seq: `outbox-relay migrate` \
                 numbers them, in the order they were created"
            )));
        }
        Ok(())
    }

    /// Whether the sequence will give numbers below those that wait: new rows would pass old ones.
    pub(super) async fn set_back(&mut self, lanes: u16) -> Result<(), Error> {
        let name = &self.outbox.table;
        let row = names(&self.outbox.layout, "t.");
        let (table, lane) = (quote_table(name), lane_of(&row, lanes));
        let unpublished = &row.unpublished;
        let outbox = literal(&name.to_string());
        // The rows are read as of the statement's begin and the sequence as of now, so that no row is
        // newer than the sequence. A role that may not look at it learns nothing.
        let rows = self
            .rows(
                "compare the sequence with the rows",
                format!(
                    "select s.seqrelid::regclass::text, w.seq
                       from pg_catalog.pg_sequence s
                      cross join (select max(x.seq) as seq
                         from (select y.seq from generate_series(0, {}) as l (lane)
                                cross join lateral (select t.seq from {table} t
                                 where {unpublished} and {lane} = l.lane and t.seq is not null
                                 order by t.seq desc limit 1) y
                                union all
                               select max(p.seq) from outbox_relay.parked p
                                where p.outbox = {outbox} and p.state <> 'dead') x) w
                      where s.seqrelid = pg_get_serial_sequence({}, 'seq')::regclass
                        and has_sequence_privilege(s.seqrelid, 'select, usage')
                        and w.seq > coalesce(pg_sequence_last_value(s.seqrelid), 0)",
                    lanes - 1,
                    literal(&table)
                ),
            )
            .await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let read =
            || -> Result<(String, i64), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
        let (sequence, last) = read()
            .map_err(|error| Error::statement("compare the sequence with the rows", error))?;
        self.wrong.push(Finding::sql(
            format!(
                "the sequence {sequence} of {name} was set back: rows up to number {last} wait, and \
                 new rows would get lower ones and pass them"
            ),
            format!("select setval({}, {last});", literal(&sequence)),
        ));
        Ok(())
    }

    /// Whether all relays of the table route alike; the first says how.
    async fn routing(&mut self, ours: &str) -> Result<(), Error> {
        let name = self.outbox.table.to_string();
        let outbox = literal(&name);
        let set = format!(
            "update outbox_relay.outbox set routing = {} where name = {outbox} and routing is null",
            literal(ours)
        );
        committed(self.connection, self.limit, "keep the routing", &set).await?;
        self.routing_kept(ours).await
    }

    /// Whether the table is served with another routing than `ours`. Changes nothing.
    pub(super) async fn routing_kept(&mut self, ours: &str) -> Result<(), Error> {
        let name = self.outbox.table.to_string();
        let outbox = literal(&name);
        let rows = self
            .rows(
                "read the routing",
                format!("select routing from outbox_relay.outbox where name = {outbox}"),
            )
            .await?;
        let theirs = rows
            .first()
            .and_then(|row| row.try_get::<String, _>(0).ok());
        match theirs {
            None => {}
            Some(theirs) if theirs == ours => {}
            Some(theirs) => {
                let ours = ours.to_owned();
                let error = Error::Routing {
                    outbox: name,
                    ours,
                    theirs,
                };
                self.wrong.push(Finding::migrate(error.to_string()));
            }
        }
        Ok(())
    }
}
