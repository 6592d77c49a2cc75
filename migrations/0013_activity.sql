-- What the overview of the service shows.

create table call_minutes (
    minute timestamptz not null,
    instance text collate "C" not null,
    calls bigint not null,
    constraint call_minutes_pkey primary key (minute, instance),
    constraint call_minutes_calls check (calls >= 0)
);
comment on table call_minutes is 'Counting calls of each instance in each of the last 60 minutes; absolute, so that a repeated write changes nothing';

create table last_flush (
    singleton boolean not null default true,
    at timestamptz not null,
    constraint last_flush_pkey primary key (singleton),
    constraint last_flush_singleton check (singleton)
);
comment on table last_flush is 'When any instance last stored a snapshot of a counter, with a delay of some seconds';

create index organizations_created on organizations (created_at) where deleted_at is null;

alter table standings add column denies boolean not null default false;
comment on column standings.denies is 'Whether a meter is at or above a hard limit, so that it denies';
update standings set denies = true
where state = 2 and exists (
    select from usage_history
    where usage_history.organization_id = standings.organization_id
      and (usage_history.period_end is null or usage_history.period_end >= standings.period_end)
      and usage_history.enforcement = 'hard' and usage_history.used >= usage_history.limit_units
);
