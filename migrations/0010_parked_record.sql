-- A parked row keeps the record that it would have been. Where key or value of that are not the aggregate's id
-- and the payload as the table has them (JsonConverter's formats, CloudEvents, a blank payload that is a
-- tombstone), they are kept beside those: value stays what the row had, which its history gets.
--
-- Additions only, without a rewrite: a relay that knows nothing of them parks rows as it did. None such may
-- serve a table whose records differ: what its routing is kept as is not its own.
alter table outbox_relay.parked
  add column if not exists record_differs boolean not null default false,
  add column if not exists record_key bytea,
  -- null, where record_differs: a tombstone
  add column if not exists record_value bytea;
