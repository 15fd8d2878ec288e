-- Nightly reconciliation: snapshots of a shop, watermarks of its changes, and what drifted at the label server.

-- as_of: the start of the read by the shop's own clock. seen: how many variants esl.snapshot_variants must hold.
create table if not exists esl.snapshots (
    id              uuid primary key,
    source_system   text not null,
    source_store_id text not null,
    run_id          text,
    started_at      timestamptz not null default clock_timestamp(),
    as_of           timestamptz,
    finished_at     timestamptz,
    state           text not null default 'open' check (state in ('open', 'finished', 'abandoned')),
    reason          text,
    seen            bigint not null default 0,
    counts          jsonb not null default '{}'
);
create index if not exists snapshots_open on esl.snapshots (source_store_id, source_system) where state = 'open';

-- Notes of the snapshots that are being read. Unlogged, so that a variant that nobody changed costs no WAL; a server
-- that crashes empties it, which esl.snapshots.seen finds out.
create unlogged table if not exists esl.snapshot_variants (
    variant_id  text not null,
    snapshot_id uuid not null,
    primary key (variant_id, snapshot_id)
);

-- Up to when the changes of a shop have been read, per way of reading them.
create table if not exists esl.watermarks (
    source_system   text not null,
    source_store_id text not null,
    source          text not null,
    at              timestamptz not null,
    primary key (source_store_id, source_system, source)
);

create index if not exists product_versions_missing
    on esl.product_versions (product_id, source_store_id, source_system) where missing_variants > 0 and not deleted;

-- What was found to differ at the label server and was put right; for a foreign label: what was there.
create table if not exists esl.drift (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    run_id     text,
    store_code text not null,
    code       text not null,
    kind       text not null check (kind in ('missing', 'different', 'foreign')),
    ours       jsonb,
    theirs     jsonb
);
create index if not exists drift_by_code on esl.drift (code, store_code);
create or replace trigger drift_append_only before update or delete or truncate on esl.drift
    for each statement execute function esl.refuse_change();
