-- Plans, which organizations share, and limits that end by themselves.

-- A drawn version leaves room for those that nobody draws: a policy becomes newer by one with each of its temporary
-- limits that ends, of which an organization has 32 at most.
alter sequence policy_version increment by 64;

create table plans (
    id text collate "C" not null,
    name text not null,
    limits jsonb not null default '{}',
    features jsonb not null default '{}',
    version bigint not null,
    constraint plans_pkey primary key (id)
);
create index plans_version on plans (version);
comment on table plans is 'Named sets of limits and features; the default plan always has a row';
comment on column plans.limits is 'By meter; of the default plan they lie over those of the settings';
comment on column plans.version is 'Policy version of the last change; what an organization on the plan was resolved to below it is out of date';

insert into plans (id, name, version)
select id, id, nextval('policy_version')
from (
    select settings->>'planId' as id from defaults
    union
    select plan_id from organizations where plan_id is not null
) as named;

alter table organizations add
    constraint organizations_plan_fkey foreign key (plan_id) references plans (id);
create index organizations_plan on organizations (plan_id) where plan_id is not null;

create table temporary_limits (
    organization_id text collate "C" not null,
    meter text collate "C" not null,
    units bigint,
    until timestamptz not null,
    constraint temporary_limits_pkey primary key (organization_id, meter),
    constraint temporary_limits_organization_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint temporary_limits_units check (units between 0 and 9007199254740991)
);
create index temporary_limits_until on temporary_limits (until);
comment on table temporary_limits is 'What lies on top of the limits of organizations, until a sweep has noted that it ended';
comment on column temporary_limits.units is 'Null is unlimited';
