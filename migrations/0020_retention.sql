-- Old hours of usage are dropped, a month at a time.

create table kept_hours (
    singleton boolean not null default true,
    since timestamptz not null default '-infinity',
    constraint kept_hours_pkey primary key (singleton),
    constraint kept_hours_singleton check (singleton)
);
insert into kept_hours default values;
comment on table kept_hours is 'Which slots are kept in usage_hourly';
comment on column kept_hours.since is 'Slots that begin before this were dropped, and are not stored any more; written by the transaction that drops their partition';

create or replace view analytics.usage_by_day as
select h.organization_id,
       h.meter,
       (h.start at time zone o.time_zone)::date as day,
       sum(h.used)::bigint as used,
       sum(h.refunded)::bigint as refunded,
       sum(h.denied)::bigint as denied
from analytics.usage_by_hour as h
join analytics.organizations as o using (organization_id)
-- A day whose first hours were dropped is not complete.
where (h.start at time zone o.time_zone)::date::timestamp at time zone o.time_zone >= (select since from kept_hours)
group by h.organization_id, h.meter, day;
