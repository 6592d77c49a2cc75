-- What counting needs: who is counted under which policy, and what was counted.

-- One number for every change of any policy, taken and committed under one advisory lock, so that
-- whoever has seen version n has seen everything below it.
create sequence policy_version;

-- One number for every data set that Redis ever held; see lua/generation.lua.
create sequence generation;

create table defaults (
    singleton boolean not null default true,
    settings jsonb not null,
    version bigint not null,
    constraint defaults_pkey primary key (singleton),
    constraint defaults_singleton check (singleton)
);
comment on table defaults is 'What applies where nobody said otherwise: the settings that the service was last started with';

create table organizations (
    id text collate "C" not null,
    plan_id text collate "C",
    features jsonb not null default '{}',
    reset_mode text,
    reset_period text,
    reset_day smallint,
    reset_month smallint,
    anchor timestamptz,
    time_zone text,
    metadata jsonb not null default '{}',
    pinned_start timestamptz,
    pinned_end timestamptz,
    version bigint not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint organizations_pkey primary key (id),
    constraint organizations_reset_mode check (reset_mode in ('lazy', 'scheduled', 'manual')),
    constraint organizations_reset_period check (reset_period in ('hourly', 'daily', 'weekly', 'monthly', 'yearly')),
    constraint organizations_pinned check (pinned_start < pinned_end)
);
create index organizations_version on organizations (version) where version > 0;
create index organizations_time_zone on organizations (time_zone) where time_zone is not null;
comment on table organizations is 'Everyone who was ever counted or configured; the flusher creates the rows of the former';
comment on column organizations.version is 'Policy version of the last change by a person; 0 = everything is the default';
comment on column organizations.pinned_start is 'Start of the period that runs because of a reset or a change of calendar';

create table limits (
    organization_id text collate "C" not null,
    meter text collate "C" not null,
    limited boolean not null,
    units bigint,
    enforcement text,
    warn_at smallint[],
    constraint limits_pkey primary key (organization_id, meter),
    constraint limits_organization_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint limits_units check (units between 0 and 9007199254740991),
    constraint limits_units_named check (limited or units is null),
    constraint limits_enforcement check (enforcement in ('hard', 'soft'))
);
comment on table limits is 'What organizations override; a null column is inherited';
comment on column limits.limited is 'Whether this override names a limit; if so, units null means unlimited';

create table usage_history (
    organization_id text collate "C" not null,
    meter text collate "C" not null,
    period_start timestamptz not null,
    period_end timestamptz,
    used bigint not null,
    denied bigint not null,
    refunded bigint not null,
    limit_units bigint,
    enforcement text not null,
    policy_version bigint not null,
    epoch bigint not null,
    seq bigint not null,
    stored_at timestamptz not null,
    constraint usage_history_pkey primary key (organization_id, meter, period_start),
    constraint usage_history_organization_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint usage_history_used check (used between 0 and 9007199254740991),
    constraint usage_history_denied check (denied >= 0),
    constraint usage_history_refunded check (refunded >= 0),
    constraint usage_history_limit check (limit_units between 0 and 9007199254740991),
    constraint usage_history_enforcement check (enforcement in ('hard', 'soft'))
-- Room in every page for the next version of a row: a running period is stored again and again.
) with (fillfactor = 70);
create index usage_history_start on usage_history (period_start, organization_id, meter);
comment on table usage_history is 'The newest snapshot of every count, one row per organization, meter and period, the running period included';
comment on column usage_history.epoch is 'The data set of Redis that the count comes from; (epoch, seq) only ever grows';
comment on column usage_history.used is 'What remains of the count after refunds; gross is used + refunded';
comment on column usage_history.period_end is 'Null while the period does not end by itself';

create table standings (
    organization_id text collate "C" not null,
    plan_id text collate "C",
    state smallint not null default 0,
    fullness bigint not null default 0,
    current bigint not null default 0,
    period_end timestamptz not null default '-infinity',
    constraint standings_pkey primary key (organization_id),
    constraint standings_organization_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint standings_state check (state in (0, 1, 2))
);
create index standings_fullness on standings (state, fullness, organization_id) where period_end > '-infinity';
create index standings_current on standings (state, current, organization_id) where period_end > '-infinity';
create index standings_plan on standings (plan_id, organization_id) where plan_id is not null;
create index standings_period_end on standings (period_end);
comment on table standings is 'How full every organization was when its counts were last looked through: what lists of organizations are sorted by';
comment on column standings.plan_id is 'The organization''s own, repeated here to filter by';
comment on column standings.state is '0 ok, 1 warning, 2 exceeded; by the worst meter';
comment on column standings.fullness is 'Used of limit of the fullest meter, in hundredths of a per cent';
comment on column standings.current is 'Units of the meter api';
comment on column standings.period_end is 'From then on the row counts as blank, whatever it holds; -infinity in a blank row, infinity where no period ends by itself';

create table usage_hourly (
    organization_id text collate "C" not null,
    meter text collate "C" not null,
    period_start timestamptz not null,
    hour timestamptz not null,
    used bigint not null,
    denied bigint not null,
    refunded bigint not null,
    -- In this order, so that one organization's hours are read in the order of time.
    constraint usage_hourly_pkey primary key (organization_id, hour, meter, period_start)
) partition by range (hour);
create index usage_hourly_hour on usage_hourly (hour, organization_id, meter);
comment on table usage_hourly is 'Absolute counts by hour of the organization''s wall clock; one partition a month, so that retention is a DROP';

-- One number for every change of any API key, taken and committed under one advisory lock, so that
-- whoever has seen revision n has seen everything below it.
create sequence api_key_revision;

create table api_keys (
    id text collate "C" not null,
    name text not null,
    hash bytea not null,
    scopes text[] not null,
    organization_id text collate "C",
    expires_at timestamptz,
    revision bigint not null,
    created_at timestamptz not null default date_trunc('milliseconds', now()),
    last_used_at timestamptz,
    revoked_at timestamptz,
    constraint api_keys_pkey primary key (id),
    constraint api_keys_revision_key unique (revision),
    constraint api_keys_hash check (octet_length(hash) = 32),
    constraint api_keys_scopes check (cardinality(scopes) > 0 and scopes <@ array['ingest', 'refund', 'read', 'reset', 'admin']),
    constraint api_keys_bound check (organization_id is null or scopes <@ array['ingest', 'refund', 'read'])
);
create index api_keys_created on api_keys (created_at, id);
comment on table api_keys is 'Who may call; a revoked key stays, so that the audit log has something to point at';
comment on column api_keys.hash is 'SHA-256 of the secret, which has 244 random bits and needs no slow hash';
comment on column api_keys.organization_id is 'The only organization that the key reaches, counted yet or not; null = all';
comment on column api_keys.revision is 'Of the last change by a person; the mirror in Redis follows it';
comment on column api_keys.last_used_at is 'To the minute, so that one write a minute says it all';

create table audit_log (
    id bigint generated always as identity,
    at timestamptz not null default now(),
    actor text not null,
    action text not null,
    organization_id text collate "C",
    before jsonb,
    after jsonb,
    request_id text,
    constraint audit_log_pkey primary key (id)
);
create index audit_log_organization on audit_log (organization_id, id);
comment on table audit_log is 'Who changed what from what to what; rows are only ever added';
