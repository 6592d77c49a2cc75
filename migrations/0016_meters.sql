-- How meters are shown to people.

alter table plans add column meters jsonb not null default '{}';
comment on column plans.meters is 'Label and unit by meter';
alter table organizations add column meters jsonb not null default '{}';
comment on column organizations.meters is 'Label and unit by meter, over the plan''s';
