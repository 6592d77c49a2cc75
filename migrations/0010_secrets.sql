-- What the service keeps from everybody else, Redis above all. Drawn here, once; never shown.
create table secrets (
    name text collate "C" not null,
    value bytea not null,
    constraint secrets_pkey primary key (name),
    constraint secrets_value_check check (length(value) = 32)
);
comment on table secrets is 'secrets of the service itself; none is ever written anywhere else';

-- Seals the records of API keys in Redis.
insert into secrets (name, value)
select 'key_mirror', sha256(convert_to(string_agg(gen_random_uuid()::text, ''), 'UTF8'))
from generate_series(1, 4);
