-- Numbers for people and for Prometheus, kept where things happen, so that nobody has to count the past.

-- What has happened so often, or for so long, of all time (hour -infinity) and in each hour. name: what (functions/
-- numbers.sql); party: of which store, or shop (system:shop); server: at which label server; kind: of which kind. n:
-- how often. Of what is measured, total: seconds in all; buckets: how many within each bound of esl.bucket_bounds.
create table if not exists esl.measures (
    name    text not null,
    party   text not null,
    server  text not null default '',
    kind    text not null default '',
    hour    timestamptz not null,
    n       bigint not null,
    total   float8,
    buckets bigint[],
    primary key (party, name, kind, server, hour)
) with (fillfactor = 50);
create index if not exists measures_by_hour on esl.measures (hour);

-- How accurate the labels of each mapping were when that was counted last (see esl_accuracy).
create table if not exists esl.accuracies (
    mapping_id  uuid primary key,
    at          timestamptz not null,
    publishable bigint not null,
    accurate    bigint not null,
    unsettled   bigint not null,
    due         bigint not null
) with (fillfactor = 50);

-- The last answer of esl_numbers, and how many seconds it took. A server that crashes forgets it.
create unlogged table if not exists esl.number_answers (
    is_only boolean primary key default true check (is_only),
    at      timestamptz not null,
    took    float8 not null,
    answer  jsonb not null
);

-- What is held back is counted without reading all other labels.
create index if not exists labels_held on esl.labels (mapping_id) where state = 'held' or collides;
