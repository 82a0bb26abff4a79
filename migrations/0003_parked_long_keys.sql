-- Parked rows are found by their aggregate's hash and the beginning of its id. The whole id was in these
-- indexes before, and Postgres takes no index entry above 2,704 bytes: a row with a longer id that does
-- not compress could not be parked, and stopped its lane. 500 characters are 2,000 bytes at the most; the
-- hash tells apart what begins alike, and every statement compares the whole id as well.
--
-- A relay of an older version goes on beside this; it only finds what it looks for more slowly.

-- what holds an aggregate back, and its rows in order
create index if not exists parked_holding_key on outbox_relay.parked
  (outbox, hash, (left(coalesce(aggregate_id, ''), 500)), seq, parked_id) where state <> 'dead';

-- the row that its aggregate waits for; few, whatever waits behind them
create index if not exists parked_blocked_key on outbox_relay.parked
  (outbox, hash, (left(coalesce(aggregate_id, ''), 500)), seq, parked_id) where state = 'blocked';

drop index if exists outbox_relay.parked_holding;

drop index if exists outbox_relay.parked_blocked;
