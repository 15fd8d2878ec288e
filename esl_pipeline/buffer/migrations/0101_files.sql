-- Sources that are read from files: which were read, and what is wrong with single rows.

-- A file as it was found in a shop's folder: by name, size and time, and by how its columns were called then.
-- version_at: its time as a statement, of which no two files of a shop have the same: esl.products.source_updated_at
-- names the file that a variant's content is from. key: what it tells products by; fields: what it says of them.
-- listed, held, deleted: products in it. complaints: [{line, says}], the first of them.
create table if not exists esl.source_files (
    id              bigint generated always as identity primary key,
    source_system   text not null,
    source_store_id text not null,
    name            text not null,
    size            bigint not null,
    modified_at     timestamptz not null,
    columns         text not null,
    sha256          text not null,
    version_at      timestamptz not null,
    kind            text check (kind in ('full', 'changes')),
    key             text,
    fields          jsonb not null default '[]',
    state           text not null check (state in ('ready', 'waiting', 'approved', 'applied', 'refused')),
    reason          text,
    rows            bigint not null default 0,
    listed          bigint not null default 0,
    held            bigint not null default 0,
    deleted         bigint not null default 0,
    complaints      jsonb not null default '[]',
    run_id          text,
    found_at        timestamptz not null default clock_timestamp(),
    applied_at      timestamptz,
    approved_at     timestamptz,
    approved_by     text,
    db_user         text,
    unique (source_store_id, source_system, name, size, modified_at, columns),
    unique (source_store_id, source_system, version_at)
);
create index if not exists source_files_by_hash on esl.source_files (sha256, source_store_id, source_system);

-- What is wrong with what a source said of a variant: its label stays as it is. version_at: of the statement.
create table if not exists esl.row_problems (
    source_system   text not null,
    source_store_id text not null,
    variant_id      text not null,
    version_at      timestamptz not null,
    problem         text not null,
    primary key (variant_id, source_store_id, source_system)
);
