-- Calendars that remember: which one was in force when.

alter table organizations
    add column timeline jsonb,
    drop column pinned_start,
    drop column pinned_end;
comment on column organizations.timeline is 'All calendars up to the last change of its own, and the version of the default calendar that they take into account; null = it never had one of its own';

alter table defaults add column calendars jsonb not null default '[]';
update defaults set calendars = jsonb_build_array(jsonb_build_object(
    'version', version, 'resetMode', settings -> 'resetMode', 'resetPeriod', settings -> 'resetPeriod',
    'timeZone', settings -> 'timeZone'
));
comment on column defaults.calendars is 'Every calendar that was the default, oldest first, and since when; the last one is that of settings';

create table time_zones (
    name text collate "C" not null,
    constraint time_zones_pkey primary key (name)
);
comment on table time_zones is 'Every zone that an organization, or the defaults, ever had: those whose days and hours history may be asked for';
insert into time_zones (name)
select time_zone from organizations where time_zone is not null
union
select settings ->> 'timeZone' from defaults;

comment on table usage_hourly is 'Absolute counts by slot: an hour of the organization''s wall clock, or the part of one between two instants at which days begin in some zone; one partition a month, so that retention is a DROP';
comment on column usage_hourly.hour is 'When the slot begins';
