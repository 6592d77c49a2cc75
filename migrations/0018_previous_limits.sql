-- Events of changed limits tell the limits before, so that a period in which a limit changed is known from its start.
create or replace view analytics.limits_over_time as
with changes as not materialized (
    select e.organization_id, changed.key as meter, e.at as since, (changed.value ->> 'limit')::bigint as limit_units,
           changed.value ->> 'enforcement' as enforcement, e.data -> 'previousLimits' -> changed.key as previous
    from events as e
    cross join lateral json_each(e.data -> 'limits') as changed
    where e.type = 'limits.updated'
), known as (
    select organization_id, meter, since, limit_units, enforcement from changes
    union all
    -- The stored limit of a period is its last: until the first change in the period, the one before that was effective.
    select u.organization_id, u.meter, u.period_start,
           case when first.since is null then u.limit_units else (first.previous ->> 'limit')::bigint end,
           case when first.since is null then u.enforcement else first.previous ->> 'enforcement' end
    from analytics.usage_by_period as u
    left join lateral (
        select since, previous from changes
        where changes.organization_id = u.organization_id and changes.meter = u.meter
          and changes.since >= u.period_start and changes.since < coalesce(u.closed_at, u.period_end, 'infinity')
        order by since limit 1
    ) as first on true
    where first.since is null or first.previous is not null
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
