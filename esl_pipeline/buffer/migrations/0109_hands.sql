-- What people do to physical labels by hand, and what a probe label has told of its label server.

-- Audit, append-only: who bound, replaced, flashed or looked at a label. An action that calls the label server has a
-- row when it begins (outcome begun) and one when it has ended. answer: the server's, or why there is none; of a look
-- the price that was seen in place of the right one.
create table if not exists esl.label_actions (
    id         bigint generated always as identity primary key,
    action_id  uuid not null,
    at         timestamptz not null default clock_timestamp(),
    by         text not null,
    db_user    text not null default session_user,
    store_code text not null,
    action     text not null check (action in ('bind', 'unbind', 'flash', 'seen')),
    esl_code   text,
    code       text,
    outcome    text not null,
    answer     text
);
create unique index if not exists label_actions_by_action on esl.label_actions (action_id, outcome);
create index if not exists label_actions_by_store on esl.label_actions (store_code, action);
create or replace trigger label_actions_append_only before update or delete or truncate on esl.label_actions
    for each statement execute function esl.refuse_change();

-- Measurements with a label that somebody dedicates to them (functions/probe.sql). until: nobody else probes the store
-- before. outcome: open; moves: the label's row moves when the label is refreshed, after so many seconds; itself: it
-- moves without that; silent: it does not move; failed: nothing was found out. is_full: enough was tried to tell from
-- one measurement. rounds: how often it was tried.
create table if not exists esl.probes (
    id            uuid primary key,
    store_code    text not null,
    label_server  text not null,
    esl_code      text not null,
    code          text not null,
    by            text not null,
    db_user       text not null default session_user,
    run_id        text,
    started_at    timestamptz not null default clock_timestamp(),
    until         timestamptz not null,
    finished_at   timestamptz,
    outcome       text not null default 'open' check (outcome in ('open', 'moves', 'itself', 'silent', 'failed')),
    is_full       boolean not null default false,
    auto_triggers boolean,
    seconds       numeric,
    rounds        integer not null default 0,
    reason        text
);
create index if not exists probes_by_store on esl.probes (store_code, started_at);
create index if not exists probes_by_server on esl.probes (label_server, finished_at);
