//! What `check` asks Postgres. Everything here reads, and takes no lock that a writer would notice. Each
//! is a simple query of one statement: a pooler may hand the next one to another server process.

use super::layout::{literal, names, quote, quote_table};
use super::partitions::relations;
use super::sql::lane_of;
use crate::config::{Layout, TableName};

/// Pending rows that are looked at for their kinds and sizes.
pub(super) const PENDING_ROWS_MAX: u32 = 2_000;
/// Pages at the end of the table that are looked at for kinds of rows that were published.
pub(super) const RECENT_PAGES: u32 = 50;
/// Kinds of rows that are told apart.
const KINDS_MAX: u32 = 100;
/// Payloads whose length is measured: those that take the most room on disk.
const PAYLOADS_MAX: u32 = 20;
/// Pending rows that are held against contracts: each is read whole.
const CONTRACT_ROWS_MAX: u32 = 500;

/// The server, the role and the connection. Plan: constants and small catalogues.
pub(super) const SERVER: &str = "
    select current_setting('server_version') as version,
           pg_is_in_recovery() as is_standby,
           current_user::text as role,
           current_database()::text as database,
           r.rolsuper as is_superuser,
           coalesce((select s.ssl from pg_stat_ssl s where s.pid = pg_backend_pid()), false) as tls,
           current_setting('max_connections')::int8
             - current_setting('superuser_reserved_connections')::int8
             - coalesce(current_setting('reserved_connections', true)::int8, 0) as connections_max,
           (select count(*) from pg_stat_activity a
             where a.datid is not null and a.application_name <> 'outbox-relay') as connections_used,
           r.rolconnlimit::int8 as role_limit,
           (select d.datconnlimit::int8 from pg_database d where d.datname = current_database())
             as database_limit,
           (select s.setting::int8 from pg_settings s where s.name = 'transaction_timeout')
             as transaction_timeout_ms,
           (select s.setting::int8 from pg_settings s where s.name = 'idle_session_timeout')
             as idle_session_timeout_ms,
           current_setting('autovacuum')::bool and current_setting('track_counts')::bool
             as autovacuum,
           pg_has_role('pg_read_all_stats', 'usage') as sees_sessions
      from pg_roles r where r.rolname = current_user";

/// The server's clock, in seconds since 1970.
pub(super) const CLOCK: &str = "select extract(epoch from clock_timestamp())::float8";

/// Which server process answers.
pub(super) const PROCESS: &str = "select pg_backend_pid()::int8";

/// What keeps dead rows of this database from being removed: kind, name, seconds, bytes. Plan:
/// functions that list sessions, slots and prepared transactions; each has a handful of rows.
pub(super) const HOLDERS: &str = "
    select 'transaction' as kind, a.pid::text as name,
           extract(epoch from clock_timestamp() - a.xact_start)::float8 as age_s,
           null::int8 as bytes, coalesce(a.usename::text, '') as who
      from pg_stat_activity a
     where a.datname = current_database() and a.pid <> pg_backend_pid()
       and a.xact_start is not null and (a.backend_xmin is not null or a.backend_xid is not null)
       and a.backend_type = 'client backend'
     union all
    select 'prepared', p.gid, extract(epoch from clock_timestamp() - p.prepared)::float8, null,
           p.owner::text
      from pg_prepared_xacts p where p.database = current_database()
     union all
    select 'slot', s.slot_name::text, null,
           pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::int8, s.slot_type
      from pg_replication_slots s
     where not s.active and not s.temporary
       and (s.restart_lsn is not null or s.xmin is not null or s.catalog_xmin is not null)
     order by 1, 3 desc nulls last
     limit 50";

/// What the server counts and keeps of the table. Plan: catalogues by oid, and one row of the table.
pub(super) fn table(name: &TableName) -> String {
    let (table, quoted) = (literal(&quote_table(name)), quote_table(name));
    let relations = relations(&quoted);
    format!(
        "select (array_agg(x.relation order by x.relation) filter (where not x.autovacuum))[1] as unvacuumed,
                (select c.relkind = 'p' from pg_catalog.pg_class c where c.oid = {table}::regclass)
                  as partitioned,
                sum(x.vacuum_at_rows) as vacuum_at_rows,
                sum(x.inserted)::int8 as inserted, sum(x.updated)::int8 as updated,
                sum(x.deleted)::int8 as deleted, sum(x.dead)::int8 as dead,
                -- of the one with the most to vacuum
                (array_agg(x.vacuumed_s order by x.dead desc))[1] as vacuumed_s,
                not exists (select from {quoted}) as is_empty,
                row_security_active({table}::regclass) as row_security
           from (select c.oid::regclass::text as relation,
                        coalesce((select o.option_value::bool from pg_options_to_table(c.reloptions) o
                                   where o.option_name = 'autovacuum_enabled'), true) as autovacuum,
                        coalesce((select o.option_value::float8 from pg_options_to_table(c.reloptions) o
                                   where o.option_name = 'autovacuum_vacuum_threshold'),
                                 current_setting('autovacuum_vacuum_threshold')::float8)
                          + greatest(c.reltuples, 0)
                          * coalesce((select o.option_value::float8 from pg_options_to_table(c.reloptions) o
                                       where o.option_name = 'autovacuum_vacuum_scale_factor'),
                                     current_setting('autovacuum_vacuum_scale_factor')::float8)
                          as vacuum_at_rows,
                        coalesce(s.n_tup_ins, 0) as inserted, coalesce(s.n_tup_upd, 0) as updated,
                        coalesce(s.n_tup_del, 0) as deleted, coalesce(s.n_dead_tup, 0) as dead,
                        extract(epoch from clock_timestamp()
                                           - greatest(s.last_autovacuum, s.last_vacuum))::float8 as vacuumed_s
                   from pg_catalog.pg_class c
                   left join pg_catalog.pg_stat_all_tables s on s.relid = c.oid
                  where c.oid in {relations} and c.relkind = 'r') x"
    )
}

/// Whether a relay has served the table.
pub(super) fn served(name: &TableName) -> String {
    let outbox = literal(&name.to_string());
    format!(
        "select exists (select from outbox_relay.outbox o
                         where o.name = {outbox} and o.adopted_at is not null)"
    )
}

/// The indexes of partitions that are parts of `index`, in `schema`.
pub(super) fn leaf_indexes(schema: &str, index: &str) -> String {
    let index = literal(&format!("{}.{}", quote(schema), quote(index)));
    format!(
        "select c.relname::text as name from pg_partition_tree({index}::regclass) p
           join pg_catalog.pg_class c on c.oid = p.relid and c.relkind = 'i'"
    )
}

/// What else has its hands on the table: kind and name. Plan: catalogues by oid.
pub(super) fn rivals(name: &TableName) -> String {
    let quoted = quote_table(name);
    let (table, relations) = (literal(&quoted), relations(&quoted));
    format!(
        "select 'trigger' as kind, t.tgname::text as name, t.tgrelid::regclass::text as relation
           from pg_catalog.pg_trigger t
          where t.tgrelid in {relations} and not t.tgisinternal and t.tgenabled <> 'D'
            -- a partition has its table's own again
            and t.tgparentid = 0
            and t.tgname <> 'outbox_relay_notify'
            -- on delete (8) or update (16), or after (not 2) insert (4)
            and ((t.tgtype & 24) <> 0 or (t.tgtype & 6) = 4)
          union all
         select 'rule', r.rulename::text, r.ev_class::regclass::text from pg_catalog.pg_rewrite r
          where r.ev_class in {relations} and r.ev_enabled <> 'D'
          union all
         select case when x.puballtables then 'publication_all' else 'publication' end, x.pubname::text,
                -- the one that it names: a partition may be seen through the table
                coalesce((select r.prrelid::regclass::text from pg_catalog.pg_publication_rel r
                           where r.prpubid = x.oid and r.prrelid in {relations} order by 1 limit 1),
                         {table}::regclass::text)
           from pg_catalog.pg_publication x
          where x.pubname in (select p.pubname from pg_catalog.pg_publication_tables p
                                join pg_catalog.pg_namespace n on n.nspname = p.schemaname
                                join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
                               where c.oid in {relations})
          order by 1, 2, 3
          limit 50"
    )
}

/// Which kinds of rows there are: aggregate type, event type, own topic. Of the pending ones the first
/// that the lanes' index has, and the last published by their place; no index on that is wanted.
/// Plan: a bounded scan of each, and a group of what came.
/// `recent` says where the latter are.
pub(super) fn kinds(name: &TableName, layout: &Layout, lanes: u16, recent: &[String]) -> String {
    let rows = quote_table(name);
    let row = names(layout, "t.");
    let lane = lane_of(&row, lanes);
    let (aggregate_type, event_type, topic) =
        (&row.aggregate_type, &row.event_type, &row.own_topic);
    let unpublished = &row.unpublished;
    let published: Vec<String> = (recent.iter())
        .map(|recent| {
            format!(
                "union all
                 (select {aggregate_type}, {event_type}, {topic}
                    from {rows} t
                   where {recent}
                   limit {PENDING_ROWS_MAX})"
            )
        })
        .collect();
    format!(
        "select k.aggregate_type, k.event_type, k.topic
           from ((select {aggregate_type} as aggregate_type, {event_type} as event_type, {topic} as topic
                    from generate_series(0, {last_lane}) as l (lane)
                   cross join lateral
                         (select t.* from {rows} t
                           where {unpublished} and t.seq is not null and {lane} = l.lane
                           order by t.seq limit {each}) t)
                 {published}) k
          group by 1, 2, 3
          order by count(*) desc
          limit {KINDS_MAX}",
        published = published.join(" "),
        last_lane = lanes - 1,
        each = (PENDING_ROWS_MAX / u32::from(lanes)).max(1),
    )
}

/// The last pages of the table, as a condition on `t`.
pub(super) fn recent(name: &TableName) -> String {
    format!(
        "t.ctid >= format('(%s,0)', greatest(
           pg_relation_size({}::regclass) / current_setting('block_size')::int8 - {RECENT_PAGES}, 0))::tid",
        literal(&quote_table(name))
    )
}

/// The largest pending rows: aggregate type, event type, own topic, and the bytes of payload, key and
/// headers. Of a bounded number the few that take the most room on disk, which costs no unpacking.
pub(super) fn largest(name: &TableName, layout: &Layout, lanes: u16, bytea: bool) -> String {
    let rows = quote_table(name);
    let row = names(layout, "t.");
    let lane = lane_of(&row, lanes);
    let (aggregate_type, event_type, topic) =
        (&row.aggregate_type, &row.event_type, &row.own_topic);
    let unpublished = &row.unpublished;
    let payload = row.printed(bytea);
    let headers = &row.own_headers;
    format!(
        "select {aggregate_type} as aggregate_type, {event_type} as event_type, {topic} as topic,
                (coalesce(octet_length({payload}), 0) + coalesce(octet_length({headers}), 0)
                 + coalesce(octet_length({key}), 0))::int8 as bytes
           from (select t.* from generate_series(0, {last_lane}) as l (lane)
                  cross join lateral
                        (select t.* from {rows} t
                          where {unpublished} and t.seq is not null and {lane} = l.lane
                          order by t.seq limit {each}) t
                  order by pg_column_size({stored}) desc nulls last
                  limit {PAYLOADS_MAX}) t",
        last_lane = lanes - 1,
        key = row.key,
        stored = row.payload,
        each = (PENDING_ROWS_MAX / u32::from(lanes)).max(1),
    )
}

/// Some pending rows, with what a contract is held against: event type, headers, and the payload as bytes in
/// base64. Plan: a bounded scan of the lanes' index; no row is locked.
pub(super) fn pending(name: &TableName, layout: &Layout, lanes: u16, bytea: bool) -> String {
    let rows = quote_table(name);
    let row = names(layout, "t.");
    let lane = lane_of(&row, lanes);
    let unpublished = &row.unpublished;
    let payload = match bytea {
        true => row.payload.clone(),
        false => format!("convert_to({}, 'UTF8')", row.printed(bytea)),
    };
    format!(
        "select {event_type} as event_type, {headers} as headers, encode({payload}, 'base64') as payload
           from generate_series(0, {last_lane}) as l (lane)
          cross join lateral
                (select t.* from {rows} t
                  where {unpublished} and t.seq is not null and {lane} = l.lane
                  order by t.seq limit {each}) t",
        event_type = row.event_type,
        headers = row.own_headers,
        last_lane = lanes - 1,
        each = (CONTRACT_ROWS_MAX / u32::from(lanes)).max(1),
    )
}

/// Parked rows by state. Plan: index-only scan of `parked_holding_key` and `parked_dead`.
pub(super) fn parked(name: &TableName) -> String {
    let outbox = literal(&name.to_string());
    format!(
        "select p.state, count(*) from outbox_relay.parked p
          where p.outbox = {outbox} and not (p.state = 'dead' and p.skipped_at is not null)
          group by 1"
    )
}

/// Whether the role may read which migrations are recorded; another tool may have applied them, too.
pub(super) const MIGRATIONS_READABLE: &str =
    "select coalesce((select has_table_privilege(c.oid, 'select')
                            and has_schema_privilege(c.relnamespace, 'usage')
                       from pg_catalog.pg_class c
                       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                      where n.nspname = 'outbox_relay' and c.relname = 'migrations'), false)";
