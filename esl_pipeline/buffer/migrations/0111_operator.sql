-- What operators do, and the stores that they pause and remove.

-- Audit, append-only: what was done on somebody's word. action_id: of one wish; said again it is not done again. by: as
-- the caller said it; verified: the caller has checked who that is (a token); db_user: the login that the database saw.
-- asked: what was asked for, answer: what came of it, how_many: labels, deliveries, changes or stores.
create table if not exists esl.operator_actions (
    id         bigint generated always as identity primary key,
    action_id  uuid not null unique,
    at         timestamptz not null default clock_timestamp(),
    by         text not null,
    verified   boolean not null default false,
    db_user    text not null default session_user,
    run_id     text,
    action     text not null,
    store_code text,
    asked      jsonb not null,
    answer     jsonb not null,
    how_many   bigint not null
);
create index if not exists operator_actions_by_store on esl.operator_actions (store_code, id);
create or replace trigger operator_actions_append_only before update or delete or truncate on esl.operator_actions
    for each statement execute function esl.refuse_change();

-- Stores that somebody has paused: nothing is pushed to them. until: when that ends by itself; null: when somebody says
-- so (ended_at, ended_by). One of a store may hold at a time; what is said otherwise is another row. Nothing of a row
-- changes but its end, once.
create table if not exists esl.store_pauses (
    id         bigint generated always as identity primary key,
    store_code text not null,
    since      timestamptz not null default clock_timestamp(),
    until      timestamptz,
    reason     text not null,
    by         text not null,
    verified   boolean not null default false,
    db_user    text not null default session_user,
    run_id     text,
    ended_at   timestamptz,
    ended_by   text
);
create unique index if not exists store_pauses_open on esl.store_pauses (store_code) where ended_at is null;
create index if not exists store_pauses_by_store on esl.store_pauses (store_code, id);
create or replace trigger store_pauses_stay before delete or truncate on esl.store_pauses
    for each statement execute function esl.refuse_change();
create or replace trigger store_pauses_only_end before update on esl.store_pauses
    for each row when (old.ended_at is not null
        or to_jsonb(old) - '{ended_at,ended_by}'::text[] <> to_jsonb(new) - '{ended_at,ended_by}'::text[])
    execute function esl.refuse_change();

-- rejected_at: somebody wants the label to stay as it is, until something else is wanted of it; then rejected_by says
-- who, and rejection why.
alter table esl.sync_queue
    add column if not exists rejected_at timestamptz,
    add column if not exists rejected_by text,
    add column if not exists rejection text;

-- codes: the changes that were approved one by one; null: all that waited.
alter table esl.approvals add column if not exists codes text[];

-- leaving: the mapping is being removed, and what becomes of its labels meanwhile: they stay (keep, while any is on its
-- way), become blank, or are removed at the label server. removed_at: it is; its row is for what names it.
alter table esl.store_mappings
    add column if not exists leaving text check (leaving in ('keep', 'blank', 'remove')),
    add column if not exists removed_at timestamptz;
create index if not exists store_mappings_leaving on esl.store_mappings (hipoink_store_code) where leaving is not null;
