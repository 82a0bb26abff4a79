-- How far each lane is settled, so that claims begin there and do not read what is dead before it. A relay
-- that knows nothing of it goes on beside one that does: nothing but a person brings rows back below.

-- no row up to this number is pending, nor will be
alter table outbox_relay.lane add column if not exists settled_seq bigint;
-- the file of the sequence that drew it: another one, after a restart of the sequence, voids it
alter table outbox_relay.lane add column if not exists settled_file bigint;
