-- Who runs out first.

alter table standings
    add column paces jsonb not null default '{}',
    add column paces_at timestamptz,
    add column exhausted_at bigint,
    add column exhausted_meter text collate "C";
create index standings_exhausted on standings (exhausted_at, organization_id) where exhausted_at is not null;
comment on column standings.paces is 'How fast the meters have been used lately, by meter';
comment on column standings.paces_at is 'When the paces were computed; null = never';
comment on column standings.exhausted_at is 'When the first meter is expected to reach its limit, in Unix seconds; null = none is before its period ends';
comment on column standings.exhausted_meter is 'Which meter that is';
