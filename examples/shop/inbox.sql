-- Beside the tables of the kit (`outbox_relay::consumer::TABLES`): what arrived and was no news, for the report.
create table noted (
  event_id uuid not null,
  what text not null,
  noted_at timestamptz not null default now()
);
