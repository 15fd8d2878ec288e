-- Refusals: what is known of each store's calls, so that blame needs evidence (see esl.blame).

-- refusals: refused calls since the last accepted one, without what was some label's own known fault. pauses: since
-- then, in a row. until: nothing is pushed before. reason: the label server's words.
create table if not exists esl.store_health (
    store_code  text primary key,
    accepted_at timestamptz,
    refusals    integer not null default 0,
    refused_at  timestamptz,
    pauses      integer not null default 0,
    until       timestamptz,
    reason      text
);
alter table esl.store_health enable row level security;
drop view if exists esl.pushable;
insert into esl.store_health (store_code, refusals, pauses, until, reason)
select store_code, 1, 1, until, reason from esl.store_pauses
on conflict (store_code) do nothing;
drop table if exists esl.store_pauses;
insert into esl.store_health (store_code, accepted_at)
select store_code, max(accepted_at) from esl.hipoink_products group by store_code
on conflict (store_code) do update set accepted_at = coalesce(store_health.accepted_at, excluded.accepted_at);

-- refused_at: when a call with this label was refused first. refusals: how often it was refused for its own fault.
alter table esl.sync_queue
    add column if not exists refused_at timestamptz,
    add column if not exists refusals   integer not null default 0;

-- The heads of all (mapping, store, priority) are found by skipping, and each is walked in its order.
create index if not exists sync_queue_turns
    on esl.sync_queue (mapping_id, store_code, priority, next_attempt_at, created_at, code collate "C")
    where state = 'ready';
drop index if exists esl.sync_queue_ready;
