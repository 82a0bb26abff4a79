//! The SQL that makes one outbox table ready, as `migrate` runs and prints it.

use super::archive_sql;
use super::emit_sql;
use super::layout::{Names, index_name, literal, names, own_name, quote, quote_table};
use super::sql::lane_of;
use crate::config::{Layout, Outbox, TableName};
use crate::route::Router;

/// What tells the order of rows that were inserted before they had numbers. Without a time the numbers of
/// the transactions that wrote them do, and in each the number of the statement: `age`, because
/// those of transactions go round; a row's place alone would tell nothing where space was used again.
pub(super) fn order(layout: &Layout, row: &Names) -> String {
    match layout.created_at {
        Some(_) => format!("{}, {}", row.created_at, row.id),
        None => "age(xmin) desc, cmin::text::int8, ctid".to_owned(),
    }
}

/// The SQL that changes one table, each statement safe to run twice.
pub(super) struct Ddl<'a> {
    outbox: &'a Outbox,
    lanes: u16,
    table: String,
}

impl<'a> Ddl<'a> {
    pub(super) fn of(outbox: &'a Outbox, lanes: u16) -> Self {
        Self {
            outbox,
            lanes,
            table: quote_table(&outbox.table),
        }
    }

    /// An empty table gets an identity column, which nobody can write to. One with rows gets a
    /// column and a sequence; everybody may draw from it, because whoever may insert must. So does one with
    /// partitions: before PostgreSQL 17 an identity column can neither be added to it nor does a partition that
    /// an insert names have it.
    pub(super) fn seq(&self) -> String {
        let table = &self.table;
        let name = literal(table);
        let sequence = format!(
            "{}.{}",
            quote(&self.outbox.table.schema),
            quote(&own_name(&self.outbox.table, "_outbox_relay_seq"))
        );
        format!(
            "do $outbox_relay$
begin
  if exists (select from pg_catalog.pg_attribute
              where attrelid = {name}::regclass and attname = 'seq' and not attisdropped) then
    return;
  end if;
  lock table {table} in access exclusive mode;
  if not exists (select from {table})
     and (select relkind from pg_catalog.pg_class where oid = {name}::regclass) = 'r' then
    alter table {table} add column seq bigint generated always as identity;
  else
    alter table {table} add column seq bigint;
    create sequence {sequence} as bigint owned by {table}.seq;
    alter table {table} alter column seq set default nextval({regclass});
    grant usage on sequence {sequence} to public;
  end if;
end
$outbox_relay$;",
            regclass = literal(&sequence)
        )
    }

    /// Zero and below for what waits already; above for what is inserted from now on. Those are below what
    /// lanes may be settled to, which therefore begin anew. It asks first,
    /// because Postgres refuses to as much as plan an update of an identity column, which an empty
    /// table gets and needs no numbers for. A partitioned table's rows are told apart by their places: its id is
    /// unique with what it is partitioned by alone. One that is marked meanwhile has another place, and needs no
    /// number.
    pub(super) fn number(&self) -> String {
        let table = &self.table;
        let (plain, row) = (
            names(&self.outbox.layout, ""),
            names(&self.outbox.layout, "t."),
        );
        let pending = format!("{} and seq is null", plain.unpublished);
        let (id, order) = (&plain.id, order(&self.outbox.layout, &plain));
        let outbox = literal(&self.outbox.table.to_string());
        format!(
            "do $outbox_relay$
begin
  if exists (select from {table} where {pending}) then
    if (select relkind from pg_catalog.pg_class where oid = {name}::regclass) = 'p' then
      update {table} t set seq = n.seq
        from (select tableoid as leaf, ctid as place,
                     row_number() over (order by {order}) - count(*) over () as seq
                from {table} where {pending}) n
       where t.tableoid = n.leaf and t.ctid = n.place and t.seq is null and {unpublished};
    else
      update {table} t set seq = n.seq
        from (select {id} as id, row_number() over (order by {order}) - count(*) over () as seq
                from {table} where {pending}) n
       where {t_id} = n.id and t.seq is null and {unpublished};
    end if;
    if found then
      update outbox_relay.lane set settled_seq = null, settled_file = null where outbox = {outbox};
    end if;
  end if;
end
$outbox_relay$;",
            name = literal(table),
            t_id = row.id,
            unpublished = row.unpublished,
        )
    }

    pub(super) fn index(&self) -> String {
        let table = &self.outbox.table;
        self.index_concurrently(table, &index_name(table, self.lanes))
    }

    /// The same of `table`, a partition.
    pub(super) fn index_concurrently(&self, table: &TableName, index: &str) -> String {
        let table = quote_table(table);
        self.index_on(&format!(
            "concurrently if not exists {} on {table}",
            quote(index)
        ))
    }

    /// An index of `table`, which is partitioned, without those of its partitions: not valid until these are
    /// attached.
    pub(super) fn index_only(&self, table: &TableName, index: &str) -> String {
        let table = quote_table(table);
        self.index_on(&format!("if not exists {} on only {table}", quote(index)))
    }

    fn index_on(&self, what: &str) -> String {
        let row = names(&self.outbox.layout, "");
        let lane = lane_of(&row, self.lanes);
        let waiting = match self.outbox.layout.published_at {
            Some(_) => format!(" where {}", row.unpublished),
            None => String::new(),
        };
        format!("create index {what}\n  ({lane}, seq){waiting};")
    }

    /// For whoever applies the printed form: what stands in place of `index` where the table has partitions.
    pub(super) fn index_of_partitioned(&self) -> String {
        let table = &self.outbox.table;
        let index = quote(&index_name(table, self.lanes));
        let sql = self.index_on(&format!("if not exists {index} on {}", quote_table(table)));
        format!(
            "-- A partitioned table takes no index concurrently. `outbox-relay migrate` makes it partition by \
             partition,\n-- and holds nobody up; by hand, in place of the next statement, and with the writers \
             waiting for it:\n-- {}",
            sql.replace('\n', "\n-- ")
        )
    }

    pub(super) fn lanes(&self) -> String {
        let outbox = literal(&self.outbox.table.to_string());
        format!(
            "insert into outbox_relay.outbox (name) values ({outbox}) on conflict do nothing;
insert into outbox_relay.lane (outbox, lane)
select {outbox}, generate_series(0, {}) as lane
 where not exists (select from outbox_relay.lane where outbox = {outbox})
on conflict do nothing;",
            self.lanes - 1
        )
    }

    pub(super) fn routing(&self) -> String {
        let routing = Router::of(self.outbox).fingerprint(&self.outbox.layout);
        format!(
            "update outbox_relay.outbox set routing = {}, columns = {} where name = {};",
            literal(&routing),
            (self.outbox.layout.kept())
                .map_or_else(|| "null".to_owned(), |kept| literal(&kept.to_string())),
            literal(&self.outbox.table.to_string())
        )
    }

    /// The history that published rows are moved to, and its first partitions.
    pub(super) fn history(&self) -> String {
        archive_sql::make(self.outbox)
    }

    /// The functions that a service may write events by.
    pub(super) fn emit(&self) -> String {
        emit_sql::make(self.outbox)
    }

    pub(super) fn notify(&self) -> String {
        let table = &self.table;
        format!(
            "create or replace function outbox_relay.notify() returns trigger
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $outbox_relay$
begin
  perform pg_notify('outbox_relay', tg_table_schema || '.' || tg_table_name);
  return null;
end
$outbox_relay$;
do $outbox_relay$
begin
  if not exists (select from pg_catalog.pg_trigger
                  where tgrelid = {}::regclass and tgname = 'outbox_relay_notify') then
    create trigger outbox_relay_notify after insert on {table}
      for each statement execute function outbox_relay.notify();
  end if;
end
$outbox_relay$;",
            literal(table)
        )
    }
}
