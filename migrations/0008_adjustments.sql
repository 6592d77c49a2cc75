-- Corrections of counts by people.

alter table usage_history
    add column adjusted text;
comment on column usage_history.adjusted is 'The last adjustment that the count contains, id:applied:used:hour; null = none';

create table adjustments (
    id bigint generated always as identity,
    organization_id text collate "C" not null,
    meter text collate "C" not null,
    period_start timestamptz not null,
    at timestamptz not null,
    amount bigint not null,
    reason text not null,
    actor text not null,
    request_id text not null,
    applied bigint,
    used bigint,
    hour timestamptz,
    limit_units bigint,
    period_end timestamptz,
    constraint adjustments_pkey primary key (id),
    constraint adjustments_organization_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint adjustments_amount check (amount <> 0),
    constraint adjustments_used check (used between 0 and 9007199254740991),
    constraint adjustments_outcome check ((applied is null) = (used is null) and (applied is null) = (hour is null))
);
create unique index adjustments_pending on adjustments (organization_id) where applied is null;
create index adjustments_hour on adjustments (organization_id, meter, hour);
comment on table adjustments is 'Corrections of counts; each is committed here, then applied in Redis, and pending until a snapshot that contains it is stored';
comment on column adjustments.id is 'Grows within an organization; a counter takes an adjustment if its id is greater than the last one''s';
comment on column adjustments.applied is 'What the count changed by, which is less than the amount where it stopped at 0; null while pending';
comment on column adjustments.used is 'The count right afterwards; the limit and the end of the period are those of then';
comment on column adjustments.hour is 'The hour that it is counted in';
