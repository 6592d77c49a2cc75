-- Instances share the walk over all organizations.

create table organization_walk (
    singleton boolean not null default true,
    position text collate "C" not null default '',
    claimed_at timestamptz not null default '-infinity',
    constraint organization_walk_pkey primary key (singleton),
    constraint organization_walk_singleton check (singleton)
);
insert into organization_walk default values;
comment on table organization_walk is 'How far the walk over all organizations is, which repairs usage summaries and starts over at the end';
comment on column organization_walk.position is 'The last organization that was claimed; empty at the start of a round';
comment on column organization_walk.claimed_at is 'When an instance last claimed some, by its own clock';
