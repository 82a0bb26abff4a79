-- What the commands that act keep: where an outbox was first served, and what is paused. Additions only: a
-- relay that knows nothing of them goes on beside one that does, and heeds no pause.

-- the database and the Kafka cluster that the outbox was first served in and to: a copy has others, and
-- must not publish before somebody says so
alter table outbox_relay.outbox add column if not exists system_identifier text;
alter table outbox_relay.outbox add column if not exists database_oid bigint;
alter table outbox_relay.outbox add column if not exists database_name text;
-- as database.url had it: no reason to refuse, for a failover changes it too
alter table outbox_relay.outbox add column if not exists database_host text;
alter table outbox_relay.outbox add column if not exists kafka_cluster_id text;
alter table outbox_relay.outbox add column if not exists identified_at timestamptz;

-- What somebody paused: one row for an outbox as a whole, or for one of its topics.
create table if not exists outbox_relay.pause (
  outbox text not null references outbox_relay.outbox (name),
  -- empty: the whole outbox
  topic text not null default '',
  paused_at timestamptz not null default clock_timestamp(),
  -- who, as in the audit
  role text not null default session_user,
  os_user text,
  host text,
  reason text,
  primary key (outbox, topic)
);

-- whoever works the lanes must know of pauses: an upgrade asks for no new grant
do $outbox_relay$
declare grantee text;
begin
  for grantee in
    select distinct case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
      from pg_catalog.pg_class c cross join lateral aclexplode(c.relacl) a
     where c.oid = 'outbox_relay.lane'::regclass and a.privilege_type = 'SELECT'
       and a.grantee <> c.relowner
  loop
    execute format('grant select on outbox_relay.pause to %s', grantee);
  end loop;
end
$outbox_relay$;
