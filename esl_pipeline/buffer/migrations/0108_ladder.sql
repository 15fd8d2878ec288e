-- The ladder of evidence (functions/ladder.sql): who has seen what on the shelf, and how fast batteries run down.

-- Audit, append-only: who has looked at the labels of a product. label_hash: of what the ledger said and was seen
-- there; null: something else was seen.
create table if not exists esl.seen_labels (
    id         bigint generated always as identity primary key,
    store_code text not null,
    code       text not null,
    label_hash text,
    by         text not null,
    at         timestamptz not null default clock_timestamp(),
    db_user    text default session_user
);
create index if not exists seen_labels_by_code on esl.seen_labels (code, store_code, at);
create or replace trigger seen_labels_append_only before update or delete or truncate on esl.seen_labels
    for each statement execute function esl.refuse_change();

create index if not exists device_changes_of_batteries
    on esl.device_changes (esl_code, store_code, at) where what = 'battery';

-- What is answered by functions/ladder.sql now.
drop function if exists public.esl_device_report(jsonb);
drop function if exists esl.offline_by_ap(text, text[]);
