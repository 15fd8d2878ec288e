-- What people ask for is found without walking what is done.

-- Deliveries that could not be used, or were given up.
create index if not exists webhook_inbox_not_used on esl.webhook_inbox (id) where state in ('unusable', 'dead');
-- What was pushed in a night: the audit is in the order of its times.
create index if not exists sync_log_at on esl.sync_log using brin (at);
create index if not exists drift_at on esl.drift using brin (at);
