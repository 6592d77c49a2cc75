-- What happens while Redis is away: the policy of each meter, and the calls that were admitted.

alter table limits
    add column on_outage text,
    add constraint limits_on_outage check (on_outage in ('deny', 'allow'));

alter table usage_history
    add column drained bigint not null default 0;
comment on column usage_history.drained is 'The last operation of pending_increments that the count contains; 0 = none';

create sequence pending_operation;

create table pending_increments (
    organization_id text collate "C" not null,
    operation bigint not null,
    meter text collate "C" not null,
    period_start timestamptz not null,
    hour timestamptz not null,
    amount bigint not null,
    idempotency_key text,
    fingerprint text,
    created_at timestamptz not null,
    constraint pending_increments_pkey primary key (organization_id, operation, meter),
    constraint pending_increments_organization_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint pending_increments_amount check (amount between 0 and 9007199254740991),
    constraint pending_increments_fingerprint check ((idempotency_key is null) = (fingerprint is null))
);
create unique index pending_increments_key on pending_increments (organization_id, idempotency_key, meter)
    where idempotency_key is not null;
create index pending_increments_age on pending_increments (created_at);
comment on table pending_increments is 'Calls that were admitted while Redis was away; drained into the counters when it is back, and deleted once a snapshot that contains them is stored';
comment on column pending_increments.operation is 'Grows within an organization, because it is drawn under the lock of its row; a counter takes an operation if it is greater than the last one drained into it';
comment on column pending_increments.hour is 'The hour that the units are counted in';
comment on column pending_increments.amount is 'Units; 0 where a call with an idempotency key only required the meter';
