-- What ends a period before or at its time, and what is kept of it.

alter table usage_history
    add column closed_at timestamptz,
    add column reset_type text,
    add column plan_id text collate "C",
    add constraint usage_history_reset_type check (reset_type in ('lazy', 'scheduled', 'manual'));
comment on column usage_history.closed_at is 'When a reset closed the period; late events are not counted in it any more';
comment on column usage_history.reset_type is 'What ended the period; null while nothing has';
comment on column usage_history.plan_id is 'The plan when the period was last stored while it ran';

create table resets (
    organization_id text collate "C" not null,
    meter text collate "C" not null,
    closed_start timestamptz not null,
    at timestamptz not null,
    period_end timestamptz,
    pending boolean not null default true,
    constraint resets_pkey primary key (organization_id, meter),
    constraint resets_organization_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint resets_order check (closed_start < at)
);
create index resets_pending on resets (organization_id) where pending;
comment on table resets is 'The last reset of each meter: it closed the period that began at closed_start, and the next begins where it happened';
comment on column resets.period_end is 'Where the next period ended when it began; null = not by itself';
comment on column resets.pending is 'Whether the last count of the closed period is still in Redis alone';

create table attempts (
    scope text collate "C" not null,
    key text collate "C" not null,
    fingerprint text not null,
    answer jsonb not null,
    at timestamptz not null,
    constraint attempts_pkey primary key (scope, key)
);
create index attempts_at on attempts (at);
comment on table attempts is 'Idempotency keys of what is done in Postgres; those of counting are in Redis';
comment on column attempts.scope is 'The organization, or else the API key, whose key it is';
comment on column attempts.answer is 'What a repetition is told';

comment on column organizations.pinned_start is 'Start of the period that runs because the calendar has changed';

-- In the past, so that every organization that is new is looked at once.
alter table organizations add column due_at timestamptz not null default '-infinity';
create index organizations_due on organizations (due_at) where due_at < 'infinity';
comment on column organizations.due_at is 'When the scheduler looks at the organization again: the end of its period in scheduled mode';
