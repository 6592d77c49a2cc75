-- A scope for auth servers, which create organizations, and count and read, but change nothing that exists.

alter table api_keys drop constraint api_keys_scopes;
alter table api_keys add
    constraint api_keys_scopes check (cardinality(scopes) > 0 and scopes <@ array['ingest', 'refund', 'read', 'reset', 'provision', 'admin']);
