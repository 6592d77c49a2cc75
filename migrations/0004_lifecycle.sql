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
