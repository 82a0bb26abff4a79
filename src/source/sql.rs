//! Every statement of the flow, whole, rendered once for a table. What `migrate` runs is in
//! `migrate`; what the start checks ask is in `inspect`.
//!
//! All of them run inside the transaction that [`Statements::open`] began, under its pins. The
//! plans below were read with `explain` on a table of a million rows, bloated and not; the test
//! `plans` holds them.

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::archive_sql;
use super::layout::{Names, literal, names, quote_if_need_be, quote_table};
use super::partitions::{self, relations};
use super::session::{SEARCH_PATH, fixed};

use crate::config::{Layout, OnPublished, TableName};
use crate::ops::{Mistake, makes};

/// The statements that serve one outbox table.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) open: SqlStr,
    pub(super) sweep: SqlStr,
    pub(super) lanes: SqlStr,
    pub(super) claim: Filtered,
    pub(super) claim_all: Filtered,
    pub(super) count: Filtered,
    pub(super) skipped: Filtered,
    pub(super) parked_keys: SqlStr,
    pub(super) fronts: SqlStr,
    pub(super) last: SqlStr,
    pub(super) drawn: SqlStr,
    pub(super) last_number: SqlStr,
    pub(super) lockers: SqlStr,
    pub(super) below: SqlStr,
    pub(super) begin_anew: SqlStr,
    pub(super) passed: SqlStr,
    pub(super) held: SqlStr,
    pub(super) finish: SqlStr,
    /// For a partitioned table alone.
    pub(super) leaf: Option<SqlStr>,
    pub(super) archive_parked: Option<SqlStr>,
    pub(super) park: SqlStr,
    pub(super) parked_claim: SqlStr,
    pub(super) parked_settle: SqlStr,
    pub(super) parked_promote: SqlStr,
    pub(super) parked_sweep: SqlStr,
    pub(super) parked_drop: SqlStr,
    pub(super) purge: SqlStr,
    pub(super) left: SqlStr,
}

/// A statement without and with the filter that passes over rows which wait.
#[derive(Debug, Clone)]
pub(super) struct Filtered {
    pub(super) plain: SqlStr,
    pub(super) filtered: SqlStr,
}

/// What the statements are rendered from. The lanes and the payload's type are the database's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) name: &'a TableName,
    pub(super) layout: &'a Layout,
    pub(super) on_published: OnPublished,
    pub(super) lanes: u16,
    pub(super) payload_is_bytea: bool,
    /// Whether it has partitions.
    pub(super) partitioned: bool,
}

/// What a transaction is limited to, in milliseconds, as Postgres takes them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) statement_ms: u128,
    pub(super) idle_ms: u128,
    pub(super) tcp_ms: u128,
}

/// Of every transaction that reads rows which wait. A stale or impossible estimate turns the claim into a
/// sort of the whole backlog; without the first three the index gives the order, always. Their penalty would
/// switch the JIT compiler on, at 150 ms a statement. And a policy that hides rows from the relay is an error,
/// not silence.
pub(super) const PINS: &str = "set local enable_seqscan = off;
     set local enable_bitmapscan = off;
     set local enable_sort = off;
     set local row_security = off;";

/// Of how many parked rows that somebody decided about the lanes are read in front; where there are as many,
/// each lane that is not among theirs is asked for by itself.
const DECIDED_MAX: usize = 100;

/// The lane of a row: a hash of the aggregate id as text. The index has this very expression.
pub(super) fn lane_of(row: &Names, lanes: u16) -> String {
    let mask = lanes - 1;
    format!("(hashtext(coalesce({}, '')) & {mask})", row.key)
}

impl Statements {
    pub(super) fn render(table: Table<'_>, timeouts: Timeouts) -> Self {
        let Table {
            name,
            layout,
            on_published,
            lanes,
            payload_is_bytea,
            partitioned,
        } = table;
        let outbox = literal(&name.to_string());
        let rows = quote_table(name);
        let (row, moved) = (names(layout, "t."), names(layout, "o."));
        let lane = lane_of(&row, lanes);
        let mask = lanes - 1;
        // a row without a number has no place in the order: it is an alarm of the look, not a claim
        let pending = format!("{} and t.seq is not null", row.unpublished);
        let event = row.event(payload_is_bytea);
        let Names {
            key,
            aggregate_type,
            event_type,
            own_topic,
            ..
        } = &row;
        let value = if payload_is_bytea {
            moved.payload.clone()
        } else {
            format!("convert_to({}::text, 'UTF8')", moved.payload)
        };
        // $4 aggregates, $5 to $7 kinds: aggregate type, event type, own topic
        let waits = format!(
            "and coalesce({key}, '') <> all ($4::text[])
             and ({aggregate_type}, {event_type}, coalesce({own_topic}, '')) not in
                 (select * from unnest($5::text[], $6::text[], $7::text[]))"
        );
        let claim = |waits: &str, locked: &str| {
            format!(
                "select x.*,
                        (select exists (select from outbox_relay.parked p
                          where p.outbox = {outbox} and p.state <> 'dead')) as holding
                   from unnest($1::int4[], $2::int4[], $3::int8[]) as l (lane, rows_max, place)
                  cross join lateral
                        (select l.lane, t.seq, t.tableoid, t.ctid, {event}
                           from {rows} t
                          where {pending} and {lane} = l.lane and t.seq > l.place {waits}
                          order by t.seq
                          limit l.rows_max
                            for update {locked}) x"
            )
        };
        let settled = settled("l");
        // one that the tests must notice: see `ops::mistake`
        let (lock_lanes, these) = (
            if makes(Mistake::NoLaneLock) {
                ""
            } else {
                "for update of l skip locked"
            },
            if makes(Mistake::SettleByRange) {
                format!(
                    "{pending} and t.seq <= (select max(s.seq) from {rows} s
                                              where s.tableoid = $1 and s.ctid = any ($2::tid[]))"
                )
            } else {
                "t.tableoid = $1 and t.ctid = any ($2::tid[])".to_owned()
            },
        );
        let decided = format!(
            "case when l.lane = any (d.decided) then true
                  when cardinality(d.decided) < {DECIDED_MAX} then false
                  else coalesce((select true from outbox_relay.parked p
                                  where p.outbox = {outbox} and p.state in ('retry', 'skip')
                                    and (p.hash & {mask}) = l.lane limit 1), false) end"
        );
        let lanes = |wanted: &str, taken: &str| {
            format!(
                "with d as materialized (
                   select o.routing, {sequence} as sequence,
                          array(select p.hash & {mask} from outbox_relay.parked p
                                 where p.outbox = {outbox} and p.state in ('retry', 'skip')
                                 order by p.seq limit {DECIDED_MAX}) as decided
                     from outbox_relay.outbox o where o.name = {outbox})
                 select l.lane, d.routing, {decided} as decided,
                        (select count(*) from outbox_relay.lane a where a.outbox = {outbox}) as lanes,
                        array(select u.topic from outbox_relay.pause u where u.outbox = {outbox}) as paused,
                        {settled}
                   from outbox_relay.lane l
                  cross join d
                  where l.outbox = {outbox} and l.lane = any ($1::int4[]) {wanted}
                  {taken}",
                sequence = sequence(&rows),
            )
        };
        let filtered = |render: &dyn Fn(&str) -> String| Filtered {
            plain: sql(render("")),
            filtered: sql(render(&waits)),
        };

        Self {
            // One simple query, so one round trip. Read committed, stated, whatever the database's
            // default: the claim must see what the last holder of the lane committed.
            //
            // The formats: each changes the bytes that a payload or an id is printed as.
            // `tcp_user_timeout`: a relay that froze while Postgres is sending to it is `active`,
            // and neither idle nor statement time-out would free its locks.
            // Which process it is, because what is known of the table may end with it: see `settled`.
            // Generic plans: with the numbers in it the claim of a few rows looks cheaper, so it was planned
            // anew each time, 0.33 ms for a claim of 0.07 (`pg_stat_statements.track_planning`). The pins
            // leave one plan anyway.
            open: sql(begin(
                timeouts,
                &format!(
                    "{PINS}
                     set local plan_cache_mode = force_generic_plan;
                     set local datestyle = 'ISO, MDY';
                     set local intervalstyle = 'postgres';
                     set local extra_float_digits = 1;
                     set local bytea_output = 'hex';
                     select pg_backend_pid();"
                ),
            )),

            // Takes those of the lanes $1 that are free and have work. Locks the lane rows it returns and no
            // other. Counts all there are: whoever counts on another number would claim the rows of lanes it
            // does not hold. Says what somebody paused: an empty topic is the whole outbox. And how far each
            // lane is settled, which a row that waited for its lock shows as it is then.
            // What is the same for all lanes is read once, in front: this runs in each batch of few rows and in
            // most polls, where starting it costs more than running it.
            // Plan: index scan of the lanes; for `has work` one probe of the lane index a lane. Not
            // `exists`: under an `or` the planner hashes its whole subquery, the whole backlog
            // (4 s for a million rows); a scalar subquery is run as written.
            sweep: sql(lanes(
                &format!(
                    "and ({decided}
                          or (select true from {rows} t
                               where {pending} and {lane} = l.lane
                                 and t.seq > coalesce({settled}, ({least})::int8) limit 1))",
                    least = i64::MIN,
                ),
                lock_lanes,
            )),

            // Takes up to $2 of the lanes $1 that are free, the first of them first, whether they have work or
            // not. Otherwise the same.
            // Plan: index scan of the lanes, which are sorted.
            lanes: sql(lanes(
                "",
                &format!("order by array_position($1, l.lane) limit $2 {lock_lanes}"),
            )),

            // Claims the oldest pending rows of each lane $1, at most $2 of it, behind $3: the lane is
            // settled that far, or all rows up to there wait. A second statement
            // after the lanes' lock, so that its snapshot has all the last holder committed.
            // `lateral`, because `lane = any (…) order by seq` has no index that gives its order.
            // Also says whether any aggregate of this outbox waits behind a parked row.
            // Plan: one index scan a lane, no sort. Locks the rows it returns; what a foreign
            // transaction has locked is passed over, which `count` notices.
            claim: filtered(&|waits| claim(waits, "skip locked")),

            // The same, where no foreign transaction has a row locked, as a rule: it fails on one, and so
            // needs no `count`.
            claim_all: filtered(&|waits| claim(waits, "nowait")),

            // How many pending rows each lane $1 has up to seq $2, behind $3: more than were claimed means
            // that a locked one was passed over. Later than the claim's snapshot, so it may also
            // count a row that was committed since; that only makes the relay look closer.
            // Plan: one index scan a lane over the rows just read. No locks.
            count: filtered(&|waits| {
                format!(
                    "select l.lane, c.rows
                       from unnest($1::int4[], $2::int8[], $3::int8[]) as l (lane, seq_max, place)
                      cross join lateral
                            (select count(*) as rows
                               from {rows} t
                              where {pending} and {lane} = l.lane and t.seq <= l.seq_max
                                and t.seq > l.place {waits}) c"
                )
            }),

            // The rows of lane $1 up to seq $2 and behind $3 that are pending and were not claimed: the
            // ones passed over, each with its aggregate. The last argument are the claimed.
            skipped: filtered(&|waits| {
                let claimed = if waits.is_empty() { "$4" } else { "$8" };
                format!(
                    "select t.seq, coalesce({key}, '')
                       from {rows} t
                      where {pending} and {lane} = $1 and t.seq <= $2 and t.seq > $3 {waits}
                        and t.seq <> all ({claimed}::int8[])
                      order by t.seq"
                )
            }),

            // The aggregates of the first $1 parked rows that hold theirs back, one for each row.
            // Plan: index scan of `parked_holding_key`.
            parked_keys: sql(format!(
                "select coalesce(h.aggregate_id, '')
                   from outbox_relay.parked h
                  where h.outbox = {outbox} and h.state <> 'dead'
                  order by h.hash, left(coalesce(h.aggregate_id, ''), 500), h.seq, h.parked_id
                  limit $1"
            )),

            // The first $1 aggregates that wait behind a parked row, by name: of those that share a hash and the
            // first 500 characters the one in front.
            // Plan: one probe of `parked_holding_key` an aggregate, from each to the next, however many
            // rows of it are parked.
            fronts: sql(format!(
                "{fronts} select f.key from fronts f limit $1",
                fronts = fronts(&outbox)
            )),

            // The last pending row of each lane below $1. Plan: one probe a lane.
            last: sql(format!(
                "select coalesce((select t.seq from {rows} t where {pending} and {lane} = l.lane
                                   order by t.seq desc limit 1), ({least})::int8)
                   from generate_series(0, $1 - 1) as l (lane) order by l.lane",
                least = i64::MIN
            )),

            // The last number drawn, and the file of the sequence; nulls where the relay may not read
            // it. No locks that anybody waits for.
            drawn: sql(format!(
                "with {drawn} select d.sequence[1], d.sequence[2] from drawn d",
                drawn = drawn(&rows)
            )),

            // The same, in a transaction of its own.
            last_number: fixed(&format!(
                "with {drawn} select d.sequence[1], d.sequence[2] from drawn d",
                drawn = drawn(&rows)
            )),

            // Whose transactions have written to the table, or are about to, but for this one, and
            // whether they are prepared ones: those go under another name than before. An insert that names
            // a partition locks that alone.
            lockers: sql(format!(
                "select k.virtualtransaction, bool_or(k.pid is null)
                   from pg_locks k
                  where k.locktype = 'relation' and k.mode = 'RowExclusiveLock'
                    and k.relation {is_ours}
                    and k.database = (select d.oid from pg_database d where d.datname = current_database())
                    and k.pid is distinct from pg_backend_pid()
                  group by 1",
                is_ours = match partitioned {
                    true => format!("in {}", relations(&rows)),
                    false => format!("= {}::regclass", literal(&rows)),
                },
            )),

            // The lanes that have a pending row where they are said to be settled. One snapshot sees the
            // row and what is said, so it is one that somebody put back. Plan: one index scan a lane,
            // from its very beginning.
            below: sql(format!(
                "select l.lane from outbox_relay.lane l
                  where l.outbox = {outbox} and l.settled_seq is not null
                    and (select true from {rows} t
                          where {pending} and {lane} = l.lane and t.seq <= l.settled_seq limit 1)"
            )),

            // Lets the claims of the lanes $1 begin at the very beginning. Waits for whoever holds them.
            begin_anew: sql(format!(
                "update outbox_relay.lane set settled_seq = null, settled_file = null
                  where outbox = {outbox} and lane = any ($1::int4[])"
            )),

            // How far the rows of each lane $1 behind $2 and up to $3 are all of the kinds $4 to $6, as
            // far as the first $7 rows tell. No locks: a locked row of another kind counts as well.
            // Plan: one index scan a lane as far as the first row of another kind; where there is none,
            // a second one for the last row.
            passed: sql(format!(
                "select l.lane,
                        coalesce((select y.seq - 1 from ({first}) y where not y.waits order by y.seq limit 1),
                                 (select max(y.seq) from ({first}) y),
                                 l.place) as place
                   from unnest($1::int4[], $2::int8[], $3::int8[]) as l (lane, place, bound)",
                first = format_args!(
                    "select t.seq, ({aggregate_type}, {event_type}, coalesce({own_topic}, '')) in
                                   (select * from unnest($4::text[], $5::text[], $6::text[])) as waits
                       from {rows} t
                      where {pending} and {lane} = l.lane and t.seq > l.place and t.seq <= l.bound
                      order by t.seq
                      limit $7"
                ),
            )),

            // Which of the aggregates $1 wait behind a parked row.
            // Plan: one probe of `parked_holding_key` each.
            held: sql(format!(
                "select k.key
                   from unnest($1::text[]) as k (key)
                  where (select true from outbox_relay.parked p
                          where p.outbox = {outbox} and p.state <> 'dead'
                            and {of_key} limit 1)",
                of_key = of_key("p", "k.key"),
            )),

            // Marks, deletes or moves the rows at $2 of the table $1. They are locked by this transaction,
            // so nothing can have moved them. The oid, because a place is not unique in a
            // partitioned table. Plan: tid scan.
            finish: sql(match on_published {
                OnPublished::Mark => format!(
                    "update {rows} t set {marked} = clock_timestamp() where {these}",
                    marked = marked(layout),
                ),
                OnPublished::Delete => format!("delete from {rows} t where {these}"),
                OnPublished::Archive => archive_sql::finish(name, layout, &these),
            }),
            // What a partition's rows have in common, so that settling some looks into no other.
            leaf: partitioned.then(partitions::leaf),
            archive_parked: (on_published == OnPublished::Archive)
                .then(|| sql(archive_sql::parked(name))),

            // Moves the rows at $2 of the table $1 to the parked ones, with state, reason and
            // record. Plan: tid scan for the delete, then a join of two small sets.
            park: sql(format!(
                "with moved as (
                   delete from {rows} o
                    where o.tableoid = $1 and o.ctid = any ($2::text[]::tid[])
                   returning o.ctid as place, o.seq, {moved_id} as id,
                             {moved_aggregate_type} as aggregate_type, {moved_key} as aggregate_id,
                             {moved_event_type} as event_type, {moved_created_at} as created_at,
                             {value} as value, {row_headers} as row_headers,
                             {row_topic} as row_topic)
                 insert into outbox_relay.parked
                        (outbox, state, reason_class, reason, attempts, seq, event_id,
                         aggregate_type, aggregate_id, event_type, row_headers, row_topic,
                         created_at, topic, headers, value, hash,
                         record_differs, record_key, record_value)
                 select {outbox}, p.state, p.class, p.reason, (p.state <> 'behind')::int, m.seq, m.id,
                        m.aggregate_type, m.aggregate_id, m.event_type, m.row_headers, m.row_topic,
                        m.created_at, p.topic, p.headers, m.value,
                        hashtext(coalesce(m.aggregate_id, '')), p.differs, p.key, p.value
                   from moved m
                   join unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                               $8::boolean[], $9::bytea[], $10::bytea[])
                        as p (place, state, class, reason, topic, headers, differs, key, value)
                     on p.place::tid = m.place
                  order by m.seq",
                moved_id = moved.id,
                moved_aggregate_type = moved.aggregate_type,
                moved_key = moved.key,
                moved_event_type = moved.event_type,
                moved_created_at = moved.created_at,
                row_headers = moved.own_headers,
                row_topic = moved.own_topic,
            )),

            // The parked rows of the lanes $1 that may be published, oldest first, at most $2: those
            // of an aggregate somebody decided about, up to the next one that is blocked. Not those
            // to publish to the topics $3, which cannot be written now. `nowait`: somebody who is looking into
            // a parked row in a transaction must not hold up the lanes.
            // Plan: the first decided rows by `parked_decided`, then for each aggregate one probe of
            // `parked_blocked_key` and the rows before it by `parked_holding_key`.
            parked_claim: sql(format!(
                "select p.parked_id, p.state, p.seq, p.event_id, p.aggregate_type, p.aggregate_id,
                        p.event_type, p.value, p.row_headers, p.row_topic, p.topic, p.headers,
                        p.record_differs, p.record_key, p.record_value
                   from (select distinct d.key
                           from (select coalesce(d.aggregate_id, '') as key
                                   from outbox_relay.parked d
                                  where d.outbox = {outbox} and d.state in ('retry', 'skip')
                                    and (d.hash & {mask}) = any ($1::int4[])
                                    and (d.topic is null or d.state = 'skip'
                                         or d.topic <> all ($3::text[]))
                                    and not exists (
                                      select from outbox_relay.parked b
                                       where b.outbox = {outbox} and b.state = 'blocked'
                                         and {of_decided}
                                         and (b.seq, b.parked_id) < (d.seq, d.parked_id))
                                  order by d.seq
                                  limit $2) d) k
                   left join lateral
                        (select b.seq, b.parked_id
                           from outbox_relay.parked b
                          where b.outbox = {outbox} and b.state = 'blocked'
                            and {of_blocked}
                          order by b.seq, b.parked_id
                          limit 1) b on true
                  cross join lateral
                        (select h.*
                           from outbox_relay.parked h
                          where h.outbox = {outbox} and h.state <> 'dead'
                            and {of_held}
                            and (h.seq, h.parked_id) < (coalesce(b.seq, {last}), coalesce(b.parked_id, {last}))
                          order by h.seq, h.parked_id
                          limit $2
                            for update nowait) p
                  where p.topic is null or p.state = 'skip' or p.topic <> all ($3::text[])
                  limit $2",
                last = i64::MAX,
                of_decided = of_key("b", "coalesce(d.aggregate_id, '')"),
                of_blocked = of_key("b", "k.key"),
                of_held = of_key("h", "k.key"),
            )),

            // Settles parked rows $1: each gets the state $2 with class $3 and reason $4; 'done' takes
            // it away, 'skipped' is a dead row that somebody gave up.
            parked_settle: sql(
                "with verdict as (
                   select * from unnest($1::int8[], $2::text[], $3::text[], $4::text[])
                            as v (parked_id, state, class, reason)),
                 gone as (
                   delete from outbox_relay.parked p using verdict v
                    where p.parked_id = v.parked_id and v.state = 'done')
                 update outbox_relay.parked p
                    set state = case v.state when 'skipped' then 'dead' else v.state end,
                        skipped_at = case v.state when 'skipped' then clock_timestamp() end,
                        reason_class = coalesce(v.class, p.reason_class),
                        reason = coalesce(v.reason, p.reason),
                        attempts = p.attempts + (v.state in ('blocked', 'dead'))::int
                   from verdict v
                  where p.parked_id = v.parked_id and v.state <> 'done'"
                    .to_owned(),
            ),

            // The first parked row of each aggregate $1, if it only waited for one in front of it
            // that is gone now, is to be published.
            parked_promote: sql(promote(&outbox, "$1")),

            // The same for every aggregate, now and then: somebody may have deleted the row in
            // front by hand. Plan: as `fronts`.
            parked_sweep: sql(format!(
                "{fronts}
                 update outbox_relay.parked p set state = 'retry'
                   from fronts f
                  where p.parked_id = f.parked_id and f.state = 'behind'
                    and p.state = 'behind'",
                fronts = fronts(&outbox)
            )),

            // Deletes at most $2 parked rows that nothing waits for and that were given up, or let pass,
            // longer than $1 seconds ago; if $3, only what the dead-letter topic has taken. Plan:
            // index scan of `parked_dead`. Passes over what somebody has locked: a row that is being
            // retried is none of these any more.
            parked_drop: sql(format!(
                "delete from outbox_relay.parked p
                  where p.parked_id = any (array(
                        select d.parked_id from outbox_relay.parked d
                         where d.outbox = {outbox} and d.state = 'dead'
                           and coalesce(d.skipped_at, d.parked_at)
                               < clock_timestamp() - make_interval(secs => $1)
                           and (not $3 or d.dead_lettered_at is not null)
                         limit $2 for update skip locked))"
            )),

            purge: sql(purge(&rows, layout)),

            // What is left: pending rows, and parked ones by state, without those somebody gave up.
            left: sql(format!(
                "select 'pending', count(*) from {rows} t where {unpublished}
                  union all
                 select p.state, count(*) from outbox_relay.parked p
                  where p.outbox = {outbox} and not (p.state = 'dead' and p.skipped_at is not null)
                  group by 1",
                unpublished = row.unpublished,
            )),
        }
    }
}

/// The column that `mark` sets. A layout without one is refused before.
fn marked(layout: &Layout) -> String {
    quote_if_need_be(layout.published_at.as_deref().unwrap_or("published_at"))
}

/// `drawn`, to put before a statement: the last number of the sequence of `rows`, and the file of the
/// sequence; null where the relay may not read it. It is read once, however many lanes there are.
pub(super) fn drawn(rows: &str) -> String {
    format!(
        "drawn as materialized (select {} as sequence)",
        sequence(rows)
    )
}

/// Those two, as an array. The name is looked up once, which takes most of the time.
fn sequence(rows: &str) -> String {
    format!(
        "(select array[pg_sequence_last_value(s.oid), pg_relation_filenode(s.oid)::int8]
            from (select pg_get_serial_sequence({table}, 'seq')::regclass::oid as oid offset 0) s
           where has_sequence_privilege(s.oid, 'usage, select'))",
        table = literal(rows)
    )
}

/// How far the lane row `lane` says that it is settled, if that holds still, by `drawn` as `d`: a sequence
/// that was restarted or set back gives those numbers again.
pub(super) fn settled(lane: &str) -> String {
    format!(
        "case when {lane}.settled_file = d.sequence[2] and {lane}.settled_seq <= d.sequence[1]
              then {lane}.settled_seq end"
    )
}

/// The lanes of `outbox`, as `l`, each with the `place` behind which its rows are that may wait; in a statement
/// that `drawn` stands before.
pub(super) fn lanes_by_place(outbox: &str) -> String {
    format!(
        "(select l.lane, coalesce({settled}, ({least})::int8) as place
            from outbox_relay.lane l cross join drawn d where l.outbox = {outbox} offset 0) l",
        settled = settled("l"),
        least = i64::MIN,
    )
}

/// Says, behind the settling of the rows, how far each of `lanes` of `outbox` is settled, by numbers of the
/// sequence with `file`; the rest ends the transaction. One simple query, so no round trip more.
pub(super) fn settle_lanes(outbox: &str, lanes: &[(i32, i64)], file: i64) -> String {
    let values: Vec<String> = (lanes.iter())
        .map(|(lane, seq)| format!("({lane}, ({seq})::int8)"))
        .collect();
    format!(
        "update outbox_relay.lane l set settled_seq = v.seq, settled_file = {file}
           from (values {values}) as v (lane, seq)
          where l.outbox = {outbox} and l.lane = v.lane;
         commit",
        outbox = literal(outbox),
        values = values.join(", "),
    )
}

/// What begins a transaction of the relay's: under these time-outs, and further settings.
pub(super) fn begin(timeouts: Timeouts, settings: &str) -> String {
    let Timeouts {
        statement_ms,
        idle_ms,
        tcp_ms,
    } = timeouts;
    format!(
        "begin isolation level read committed read write;
         {SEARCH_PATH};
         set local statement_timeout = {statement_ms};
         set local idle_in_transaction_session_timeout = {idle_ms};
         set local tcp_user_timeout = {tcp_ms};
         set local jit = off;
         set local timezone = 'UTC';
         {settings}"
    )
}

/// Deletes at most $2 of `rows`, from place $3 on, that were marked longer than $1 seconds ago; says how
/// many, and the last place. No index on the time of publishing is wanted for this: each mark would pay
/// for it. Plan: tid range scan in the table's own order, from where the last batch ended. Passes over
/// what somebody has locked.
pub(super) fn purge(rows: &str, layout: &Layout) -> String {
    let published_at = names(layout, "o.").published_at;
    format!(
        "with old as (
           select o.ctid from {rows} o
            where o.ctid > $3::text::tid
              and {published_at} < clock_timestamp() - make_interval(secs => $1)
            limit $2 for update skip locked),
         gone as (
           delete from {rows} t where t.ctid = any (array(select ctid from old))
           returning t.ctid)
         select count(*), max(ctid)::text from gone"
    )
}

/// Lets the first parked row of each aggregate `keys` of `outbox`, both as SQL, be published, if it only
/// waits.
pub(super) fn promote(outbox: &str, keys: &str) -> String {
    format!(
        "update outbox_relay.parked p set state = 'retry'
           from unnest({keys}::text[]) as k (key)
          cross join lateral
                (select h.parked_id, h.state
                   from outbox_relay.parked h
                  where h.outbox = {outbox} and h.state <> 'dead'
                    and {of_key}
                  order by h.seq, h.parked_id
                  limit 1) f
          where p.parked_id = f.parked_id and f.state = 'behind'
            and p.state = 'behind'",
        of_key = of_key("h", "k.key"),
    )
}

/// That the parked row `row` is of the aggregate `key`, both as SQL: as the indexes have it, hash and
/// beginning, and the whole id, for two that share those.
pub(super) fn of_key(row: &str, key: &str) -> String {
    format!(
        "{row}.hash = hashtext({key})
         and left(coalesce({row}.aggregate_id, ''), 500) = left({key}, 500)
         and coalesce({row}.aggregate_id, '') = {key}"
    )
}

/// `fronts`, to put before a statement: the first parked row of each aggregate that waits. It goes from
/// one aggregate to the next by the index, and as far as the statement reads. Of aggregates that share a
/// hash and the first 500 characters it finds the one that waits in front.
fn fronts(outbox: &str) -> String {
    let front = |after: &str| {
        format!(
            "(select h.hash, left(coalesce(h.aggregate_id, ''), 500) as head,
                     coalesce(h.aggregate_id, '') as key, h.parked_id, h.state
                from outbox_relay.parked h
               where h.outbox = {outbox} and h.state <> 'dead' {after}
               order by h.hash, left(coalesce(h.aggregate_id, ''), 500), h.seq, h.parked_id
               limit 1)"
        )
    };
    format!(
        "with recursive fronts as (
           {first}
           union all
           select n.* from fronts f cross join lateral {next} n)",
        first = front(""),
        next = front("and (h.hash, left(coalesce(h.aggregate_id, ''), 500)) > (f.hash, f.head)"),
    )
}

fn sql(text: String) -> SqlStr {
    AssertSqlSafe(text).into_sql_str()
}
