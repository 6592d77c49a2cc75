-- What happened that is worth telling.

alter table usage_history
    add column told text;
comment on column usage_history.told is 'Of the count''s thresholds, per cent:exceeded:policy version since which the limit holds:refused before; null = nothing';

create table events (
    id text collate "C" not null,
    at timestamptz not null,
    type text not null,
    organization_id text collate "C",
    meter text collate "C",
    period_start timestamptz,
    threshold smallint,
    limit_version bigint,
    data json not null,
    constraint events_pkey primary key (id),
    constraint events_type check (type in ('usage.warning', 'usage.limit_exceeded', 'usage.reset', 'limits.updated', 'organization.deleted', 'webhook.test')),
    constraint events_once unique (organization_id, meter, period_start, type, threshold, limit_version)
);
create index events_organization on events (organization_id, id);
comment on table events is 'Outbox: each row is written in the transaction that makes it true, and never changed';
comment on column events.id is 'Begins with the time, so that the order of ids is that of events';
comment on column events.organization_id is 'Whoever it is about, deleted or not; null in a test';
comment on column events.threshold is 'Per cent of the limit. Null, as the meter, the period and the limit''s version are, where a type has no such thing; it is then recorded as often as it happens';
comment on column events.limit_version is 'The policy version since which the limit holds; 0 = since the period began';
comment on column events.data is 'json and not jsonb: it is sent as it was written';
