-- Lists of organizations: searched by any part of an id or a name, and with what is known of their last count.

create function organization_name(metadata jsonb) returns text
language sql immutable parallel safe
as $$
    select case when jsonb_typeof(metadata -> 'name') = 'string' then metadata ->> 'name' end
$$;
comment on function organization_name is 'The display name of an organization';

create function organization_search(id text, metadata jsonb) returns text
language sql immutable parallel safe
as $$
    select lower((id collate "default") || ' ' || coalesce(
        case when jsonb_typeof(metadata -> 'name') = 'string' then metadata ->> 'name' end, ''))
$$;
comment on function organization_search is 'What a search is compared with';

-- Trigrams find any part of a text. Where the extension cannot be created, a search reads all organizations.
do $$
declare
    trigrams text;
begin
    create extension if not exists pg_trgm;
    select quote_ident(nspname) || '.gin_trgm_ops' into trigrams
    from pg_extension join pg_namespace on pg_namespace.oid = extnamespace
    where extname = 'pg_trgm';
    execute 'create index organizations_search on organizations using gin (organization_search(id, metadata) ' || trigrams || ')';
exception when others then
    raise notice 'without pg_trgm a search reads all organizations: %', sqlerrm;
end
$$;

alter table standings add column stored_at timestamptz;
comment on column standings.stored_at is 'When a count of the organization was last stored; null = none was since this column exists';
