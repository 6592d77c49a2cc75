-- When a webhook last received something.

alter table webhooks add column last_success_at timestamptz;
comment on column webhooks.last_success_at is 'When a delivery last succeeded; null = none has';
