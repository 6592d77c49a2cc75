-- The audit log is only ever added to, and read by whom, what, where and when.

alter table audit_log alter column at set default date_trunc('milliseconds', now());

create function audit_log_append_only() returns trigger
language plpgsql
as $$
begin
    raise exception 'rows of the audit log are only ever added' using errcode = 'restrict_violation';
end
$$;
create trigger audit_log_append_only
before update or delete or truncate on audit_log
for each statement execute function audit_log_append_only();
comment on trigger audit_log_append_only on audit_log is 'Whoever must remove rows, by law perhaps, disables it first, and so does it knowingly';

drop index audit_log_organization;
create index audit_log_at on audit_log (at, id);
create index audit_log_organization on audit_log (organization_id, at, id);
create index audit_log_actor on audit_log (actor, at, id);
create index audit_log_action on audit_log (action, at, id);

-- An organization that was deleted leaves its id, and the version of its deletion: its incarnation. Whatever was
-- decided by an older policy than that belongs to the former life, and is stored no more.
alter table organizations add column incarnation bigint not null default 0;
alter table organizations add column deleted_at timestamptz;
create index organizations_incarnation on organizations (id) where incarnation > 0;
comment on column organizations.incarnation is 'Policy version of the last deletion; 0 = never deleted';
comment on column organizations.deleted_at is 'Null where there is an organization: never deleted, or counted or configured since';

create table erasures (
    organization_id text collate "C" not null,
    incarnation bigint not null,
    hours_before timestamptz not null,
    due_at timestamptz not null,
    constraint erasures_pkey primary key (organization_id),
    constraint erasures_organization_fkey foreign key (organization_id) references organizations (id)
);
create index erasures_due on erasures (due_at);
comment on table erasures is 'Deleted organizations of which something may still be left: old history here, idempotency records in Redis';
comment on column erasures.hours_before is 'Older hours are of the former life; all others of it went with the deletion';
comment on column erasures.due_at is 'Who takes this on moves it ahead, so that nobody else does it at the same time';
