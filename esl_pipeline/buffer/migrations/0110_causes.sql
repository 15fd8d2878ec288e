-- Why each label is pushed, and since when that is wanted; and what `trace` looks up.

-- Why a variant was to be evaluated last, and why its label is what it is (as event_ids say by which webhooks).
-- stock_event_ids: the webhooks behind its stock.
alter table esl.products add column if not exists cause text;
alter table esl.products add column if not exists stock_event_ids bigint[] not null default '{}';
alter table esl.labels add column if not exists cause text;

-- cause: why this is to be pushed; event_ids say whose words it carries.
--   new version    the shop has said something new in webhooks (event_ids)
--   read           the same, as a read of the shop has found (or what it says is no longer heard)
--   first fill     the first label of a code, as a read of the shop or a new mapping brought it
--   policy         a mapping or its policy was changed
--   plan           its time had come: a period of the policy is over
--   other variant  the code is another variant's now
--   drift          the label server held something else than it had accepted
--   correction     a push of which it is not known whether it was taken, or a late one, is put right
--   moved          the store is at another label server
--   redrive        somebody has sent again what was refused or had died
--   push again     the same in the nightly run, or somebody wanted it pushed again as it is
--   replay         somebody has had deliveries read again
--   approval       somebody has approved it
--   removal        somebody has removed the store
-- queued_at: since when this is what is to be pushed (created_at: since when anything is).
alter table esl.sync_queue add column if not exists cause text;
alter table esl.sync_queue add column if not exists queued_at timestamptz;
alter table esl.sync_queue alter column queued_at set default clock_timestamp();
alter table esl.sync_queue drop constraint if exists sync_queue_cause_check;
alter table esl.sync_queue add constraint sync_queue_cause_check check (cause in (
    'new version', 'read', 'first fill', 'policy', 'plan', 'other variant', 'drift', 'correction', 'moved', 'redrive',
    'push again', 'replay', 'approval', 'removal'));

-- As the queue had them when the push was claimed; rows from before have none.
alter table esl.sync_log add column if not exists cause text;
alter table esl.sync_log add column if not exists queued_at timestamptz;

-- Looked up by `trace` alone. Intents only: each has its result beside it. A run's rows stand together in its index.
create index if not exists sync_log_by_run on esl.sync_log (run_id, id) where kind = 'intent';
create index if not exists sync_log_by_variant on esl.sync_log (variant_id) where kind = 'intent';
create index if not exists webhook_inbox_by_webhook on esl.webhook_inbox (webhook_id);
create index if not exists products_by_sku on esl.products (sku) where sku is not null;
create index if not exists drift_by_run on esl.drift (run_id);
create index if not exists mapping_changes_by_mapping on esl.mapping_changes (mapping_id, id);

-- Functions that have other arguments, or other columns, from now on.
drop function if exists esl.decisions(text[], text[]);
drop function if exists esl.requeue(text[], text[]);
drop function if exists esl.evaluate_again(text, text);
drop function if exists esl.merge_levels(jsonb);
