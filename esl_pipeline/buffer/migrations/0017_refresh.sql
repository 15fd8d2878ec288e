-- The refresh trigger: on a label server without auto-trigger, what it has accepted reaches the physical labels only
-- after esl/bind_task (functions/refresh.sql).

-- Per store, whether it waits for a trigger. since: the first push accepted that no trigger was begun for; null: none.
-- not_before: so that triggers of a store keep a gap. next_at: after failures, until the next accepted push.
-- claim_id to lease_until: the trigger under way; claimed_since is the `since` that it takes care of.
create table if not exists esl.refresh_marks (
    store_code    text primary key,
    since         timestamptz,
    not_before    timestamptz not null default now(),
    next_at       timestamptz not null default now(),
    attempts      integer not null default 0,
    last_error    text,
    claim_id      uuid,
    run_id        text,
    claimed_at    timestamptz,
    claimed_since timestamptz,
    lease_until   timestamptz
) with (fillfactor = 50);
alter table esl.refresh_marks enable row level security;

-- Audit, append-only: one row per trigger, written when it has ended; `lost` when its worker was not heard of again.
create table if not exists esl.refreshes (
    id           bigint generated always as identity primary key,
    at           timestamptz not null default clock_timestamp(),
    claim_id     uuid not null,
    store_code   text not null,
    wanted_since timestamptz,
    begun_at     timestamptz not null,
    run_id       text,
    outcome      text not null check (outcome in ('accepted', 'transient', 'unknown', 'rejected', 'authentication',
                                                  'not_known', 'lost')),
    http_status  integer,
    error_code   numeric,
    message      text,
    answer       text,
    duration_ms  integer
);
create unique index if not exists refreshes_by_claim on esl.refreshes (claim_id) where outcome <> 'lost';
create index if not exists refreshes_by_store on esl.refreshes (store_code, begun_at);
alter table esl.refreshes enable row level security;
create or replace trigger refreshes_append_only before update or delete or truncate on esl.refreshes
    for each statement execute function esl.refuse_change();

-- knows_refresh_since: when this label server accepted its first trigger. refresh_refusals, refresh_again_at: how often
-- it said that there is no such action, and when it is asked again.
alter table esl.label_servers add column if not exists knows_refresh_since timestamptz;
alter table esl.label_servers add column if not exists refresh_refusals integer not null default 0;
alter table esl.label_servers add column if not exists refresh_again_at timestamptz;

-- Nothing that was accepted until now has been triggered.
insert into esl.refresh_marks (store_code, since)
select distinct store_code, now() from esl.hipoink_products on conflict do nothing;
