-- Who is told of events, and what became of it.

create table webhooks (
    id text collate "C" not null,
    url text not null,
    events text[],
    organization_id text collate "C",
    secret bytea not null,
    previous_secret bytea,
    previous_secret_until timestamptz,
    failing_since timestamptz,
    disabled_at timestamptz,
    disabled_reason text,
    created_at timestamptz not null,
    constraint webhooks_pkey primary key (id),
    constraint webhooks_events check (cardinality(events) > 0),
    constraint webhooks_secret check (octet_length(secret) = 32 and octet_length(previous_secret) = 32),
    constraint webhooks_previous check ((previous_secret is null) = (previous_secret_until is null)),
    constraint webhooks_disabled check ((disabled_at is null) = (disabled_reason is null)),
    constraint webhooks_disabled_reason check (disabled_reason in ('asked', 'gone', 'failing'))
);
create index webhooks_organization on webhooks (organization_id) where organization_id is not null;
comment on table webhooks is 'Where events are sent to';
comment on column webhooks.id is 'Begins with the time';
comment on column webhooks.events is 'Types that are sent; null = all';
comment on column webhooks.organization_id is 'Whose events are sent; null = everybody''s';
comment on column webhooks.secret is 'As it is, because it is needed to sign: whoever reads this table can sign as the service';
comment on column webhooks.previous_secret is 'Signs beside the other one for a while after a rotation';
comment on column webhooks.failing_since is 'The first failure since something last arrived';

create table webhook_deliveries (
    webhook_id text collate "C" not null,
    event_id text collate "C" not null,
    status text not null default 'pending',
    attempts smallint not null default 0,
    next_at timestamptz,
    attempted_at timestamptz,
    response_status smallint,
    latency_ms integer,
    response_body text,
    error text,
    constraint webhook_deliveries_pkey primary key (webhook_id, event_id),
    constraint webhook_deliveries_webhook_fkey foreign key (webhook_id) references webhooks (id) on delete cascade,
    constraint webhook_deliveries_event_fkey foreign key (event_id) references events (id) on delete cascade,
    constraint webhook_deliveries_status check (status in ('pending', 'succeeded', 'failed')),
    constraint webhook_deliveries_next check ((status = 'pending') = (next_at is not null))
);
create index webhook_deliveries_next on webhook_deliveries (webhook_id, next_at) where next_at is not null;
create index webhook_deliveries_event on webhook_deliveries (event_id);
comment on table webhook_deliveries is 'Each event for each webhook that wants it, written together with the event';
comment on column webhook_deliveries.attempts is 'Since it was recorded, or last asked for again';
comment on column webhook_deliveries.next_at is 'When to try; whoever tries moves it ahead, so that another one tries when they have died';
comment on column webhook_deliveries.response_body is 'The first KiB of what was answered last';
comment on column webhook_deliveries.error is 'Why there was no answer';
