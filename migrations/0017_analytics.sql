-- Views for those who bring their own tool. docs/sql.md documents them: columns may be added, and none is renamed or removed.

create schema analytics;
comment on schema analytics is 'Stable views; tallyman migrate --reader makes a role that can read these and nothing else';

create view analytics.organizations as
select id as organization_id,
       metadata ->> 'name' as name,
       coalesce(plan_id, (select settings ->> 'planId' from defaults)) as plan_id,
       coalesce(time_zone, (select settings ->> 'timeZone' from defaults), 'UTC') as time_zone,
       created_at
from organizations
where deleted_at is null;
comment on view analytics.organizations is 'Organizations that were counted or configured, and not deleted';

create view analytics.usage_by_period as
select u.organization_id,
       coalesce(u.plan_id, (select settings ->> 'planId' from defaults)) as plan_id,
       u.meter,
       u.period_start,
       u.period_end,
       u.used,
       u.refunded,
       u.denied,
       u.limit_units,
       u.enforcement,
       u.reset_type,
       u.closed_at,
       u.stored_at
from usage_history as u
join organizations as existing on existing.id = u.organization_id and existing.deleted_at is null;
comment on view analytics.usage_by_period is 'Each meter in each of its periods, the running one included, as last stored';

create view analytics.usage_by_hour as
select h.organization_id,
       h.meter,
       h.hour as start,
       h.used,
       h.refunded,
       h.denied
from usage_hourly as h
join organizations as existing on existing.id = h.organization_id and existing.deleted_at is null
-- What a deleted organization of the same id has left is not of this one.
where not exists (
    select from erasures where erasures.organization_id = h.organization_id and h.hour < erasures.hours_before
);
comment on view analytics.usage_by_hour is 'Each meter in each hour with a count; an hour may have several rows, which add up';

create view analytics.usage_by_day as
select h.organization_id,
       h.meter,
       (h.start at time zone o.time_zone)::date as day,
       sum(h.used)::bigint as used,
       sum(h.refunded)::bigint as refunded,
       sum(h.denied)::bigint as denied
from analytics.usage_by_hour as h
join analytics.organizations as o using (organization_id)
group by h.organization_id, h.meter, day;
comment on view analytics.usage_by_day is 'Each meter on each day with a count; days are of the time zone that the organization has now';

create view analytics.events as
select id as event_id,
       at,
       type,
       organization_id,
       meter,
       threshold,
       (data ->> 'current')::bigint as current,
       (data ->> 'limit')::bigint as limit_units,
       data::jsonb as data
from events
where organization_id is not null;
comment on view analytics.events is 'What happened to organizations, deleted ones included';

create view analytics.limits_over_time as
with changes as not materialized (
    select e.organization_id, changed.key as meter, e.at as since, (changed.value ->> 'limit')::bigint as limit_units,
           changed.value ->> 'enforcement' as enforcement
    from events as e
    cross join lateral json_each(e.data -> 'limits') as changed
    where e.type = 'limits.updated'
), known as (
    select organization_id, meter, since, limit_units, enforcement from changes
    union all
    -- The stored limit of a period is its last: it was effective from the start only if it did not change meanwhile.
    select u.organization_id, u.meter, u.period_start, u.limit_units, u.enforcement
    from analytics.usage_by_period as u
    where not exists (
        select from changes
        where changes.organization_id = u.organization_id and changes.meter = u.meter
          and changes.since >= u.period_start and changes.since < coalesce(u.closed_at, u.period_end, 'infinity')
    )
), compared as (
    select known.*, row_number() over meters as place,
           (lag(limit_units) over meters, lag(enforcement) over meters) is distinct from (limit_units, enforcement) as differs
    from known
    window meters as (partition by organization_id, meter order by since)
)
select organization_id,
       meter,
       since,
       lead(since) over (partition by organization_id, meter order by since) as until,
       limit_units,
       enforcement
from compared
where differs or place = 1;
comment on view analytics.limits_over_time is 'Which limit each meter has had since when; null is unlimited';
