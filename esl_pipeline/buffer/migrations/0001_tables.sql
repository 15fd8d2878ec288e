-- The tables of the buffer. Schema esl is never exposed: everything goes through public.esl_*(p jsonb).
-- Every migration can be run again without harm, so that the printed file can be pasted twice.

create schema if not exists esl;
revoke all on schema esl from public;

create table if not exists esl.schema_migrations (
    version    integer primary key,
    name       text not null,
    applied_at timestamptz not null default now()
);

-- One clock for optimistic checks: who evaluated an older revision of a row may not finish it.
create sequence if not exists esl.revision;

create table if not exists esl.store_mappings (
    id                 uuid primary key default gen_random_uuid(),
    source_system      text not null,
    source_store_id    text not null,
    hipoink_store_code text not null check (hipoink_store_code ~ '^[A-Za-z0-9_-]{1,32}$'),
    is_active          boolean not null default true,
    settings           jsonb not null default '{}' check (jsonb_typeof(settings) = 'object'),
    created_at         timestamptz not null default now(),
    updated_at         timestamptz not null default now(),
    unique (source_system, source_store_id, hipoink_store_code)
);

-- One row per webhook delivery, as received. body is bytea because NUL and lone surrogates are legal JSON
-- that text and jsonb refuse. Two keys against duplicates: the ids are unsigned headers, the body is signed.
create table if not exists esl.webhook_inbox (
    id              bigint generated always as identity primary key,
    source_system   text not null,
    source_store_id text not null,
    topic           text not null,
    webhook_id      text not null,
    event_id        text,
    triggered_at    timestamptz,
    api_version     text,
    order_key       text,
    body            bytea not null,
    body_sha256     text not null,
    received_at     timestamptz not null default now(),
    state           text not null default 'ready'
                    check (state in ('ready', 'leased', 'done', 'superseded', 'unusable', 'dead')),
    reason          text,
    attempts        integer not null default 0,
    claim_id        uuid,
    lease_until     timestamptz,
    run_id          text,
    finished_at     timestamptz,
    unique (source_system, source_store_id, topic, webhook_id),
    unique (source_system, source_store_id, topic, body_sha256)
) with (fillfactor = 80);
create index if not exists webhook_inbox_open
    on esl.webhook_inbox (source_system, source_store_id, id) where state in ('ready', 'leased');

-- Keys begin with what is selective: on a table without statistics the planner takes any index whose first columns
-- it can use, and a shop's name alone would read the whole shop for every row.

-- The newest version seen of each product. A tombstone (deleted) stays, so that a late update cannot revive it.
create table if not exists esl.product_versions (
    source_system    text not null,
    source_store_id  text not null,
    product_id       text not null,
    version_at       timestamptz not null,
    triggered_at     timestamptz not null,
    body_sha256      text collate "C" not null,
    deleted          boolean not null,
    missing_variants integer not null default 0,  -- named in variant_gids but not in the body (> 100 variants)
    primary key (product_id, source_store_id, source_system)
);

-- Normalised variants: what Shopify says now. due = not yet evaluated into labels.
create table if not exists esl.products (
    source_system     text not null,
    source_store_id   text not null,
    variant_id        text not null,
    product_id        text not null,
    inventory_item_id text,
    title             text,
    variant_title     text,
    barcode           text,
    sku               text,
    price             text,
    compare_at_price  text,
    image_url         text,
    status            text,
    published_at      text,
    vendor            text,
    product_type      text,
    tags              text,
    source_updated_at timestamptz not null,
    removed           boolean not null default false,
    content_hash      text not null,
    event_ids         bigint[] not null default '{}',
    revision          bigint not null default nextval('esl.revision'),
    due               boolean not null default true,
    changed_at        timestamptz not null default now(),
    primary key (variant_id, source_store_id, source_system)
) with (fillfactor = 80);
create index if not exists products_by_product on esl.products (product_id, source_store_id, source_system);
create index if not exists products_by_item on esl.products (inventory_item_id, source_store_id, source_system);
create index if not exists products_due on esl.products (revision) where due;

-- Stock per location; kept apart from the variant because a level may arrive before its product.
create table if not exists esl.inventory_levels (
    source_system     text not null,
    source_store_id   text not null,
    inventory_item_id text not null,
    location_id       text not null,
    available         bigint,
    updated_at        timestamptz not null,
    primary key (inventory_item_id, location_id, source_store_id, source_system)
);

create table if not exists esl.findings (
    mapping_id    uuid not null references esl.store_mappings,
    variant_id    text not null,
    check_name    text not null,
    level         text not null check (level in ('error', 'warning')),
    column_name   text,
    value         text,
    reason        text not null,
    action        text,
    first_seen_at timestamptz not null default now(),
    last_seen_at  timestamptz not null default now(),
    resolved_at   timestamptz,
    primary key (variant_id, mapping_id, check_name)
);

-- What each variant should put on a label of each mapped store: the result of build_label, as evaluated last.
create table if not exists esl.labels (
    mapping_id   uuid not null references esl.store_mappings,
    variant_id   text not null,
    store_code   text not null,
    code         text,
    label        jsonb,
    label_hash   text,
    state        text not null check (state in ('publish', 'held', 'withdrawn')),
    collides     boolean not null default false,
    event_ids    bigint[] not null default '{}',
    evaluated_at timestamptz not null default now(),
    primary key (variant_id, mapping_id),
    check (state <> 'publish' or (code is not null and label is not null and label_hash is not null))
);
create index if not exists labels_by_code on esl.labels (code, store_code);

-- The ledger: what the label server last accepted.
create table if not exists esl.hipoink_products (
    store_code  text not null,
    code        text not null,
    mapping_id  uuid not null references esl.store_mappings,
    variant_id  text not null,
    label       jsonb not null,
    label_hash  text not null,
    push_id     uuid not null,
    accepted_at timestamptz not null default now(),
    primary key (code, store_code)
);
create index if not exists hipoink_products_by_variant on esl.hipoink_products (variant_id, mapping_id);

-- One row per label that differs from the ledger. in_doubt: a push went out whose outcome is not known to be
-- "accepted", so the server may hold something else than the ledger says, and the row may not simply be dropped.
-- redo: while this row is on its way, a late worker may have overwritten it; push once more.
create table if not exists esl.sync_queue (
    store_code      text not null,
    code            text not null,
    mapping_id      uuid not null references esl.store_mappings,
    variant_id      text not null,
    operation       text not null check (operation in ('upsert', 'delete')),
    label           jsonb,
    label_hash      text,
    priority        smallint not null,  -- 0 price rise, 1 price cut, 2 other, 3 removal
    generation      bigint not null default nextval('esl.revision'),
    state           text not null default 'ready' check (state in ('ready', 'leased', 'failed', 'dead')),
    in_doubt        boolean not null default false,
    redo            boolean not null default false,
    max_batch       integer not null default 1000,
    attempts        integer not null default 0,
    next_attempt_at timestamptz not null default now(),
    push_id         uuid,
    lease_until     timestamptz,
    last_error      text,
    event_ids       bigint[] not null default '{}',
    created_at      timestamptz not null default now(),
    primary key (code, store_code)
) with (fillfactor = 80);
create index if not exists sync_queue_ready on esl.sync_queue (priority, next_attempt_at, created_at, code collate "C") where state = 'ready';
create index if not exists sync_queue_leased on esl.sync_queue (lease_until) where state = 'leased';
create index if not exists sync_queue_by_variant on esl.sync_queue (variant_id, mapping_id);

-- Audit, append-only: an intent per label before each push, its result after.
create table if not exists esl.sync_log (
    id          bigint generated always as identity primary key,
    at          timestamptz not null default clock_timestamp(),
    kind        text not null check (kind in ('intent', 'result')),
    push_id     uuid not null,
    store_code  text not null,
    code        text not null,
    mapping_id  uuid not null,
    variant_id  text not null,
    operation   text not null,
    label       jsonb,
    label_hash  text,
    attempt     integer,
    run_id      text,
    asset       text,
    partition   text,
    event_ids   bigint[],
    outcome     text check (outcome in ('accepted', 'transient', 'unknown', 'rejected', 'authentication', 'lost')),
    http_status integer,
    error_code  numeric,
    message     text,
    answer      text,
    duration_ms integer,
    check (kind = 'intent' or outcome is not null)
);
create index if not exists sync_log_by_code on esl.sync_log (code, store_code, id);
create index if not exists sync_log_by_push on esl.sync_log (push_id);

create or replace function esl.refuse_change() returns trigger language plpgsql set search_path = '' as $$
begin
    raise exception 'esl.sync_log is append-only' using errcode = '42501';
end $$;
create or replace trigger sync_log_append_only before update or delete or truncate on esl.sync_log
    for each statement execute function esl.refuse_change();

-- A store whose pushes wait, whatever its queue holds (the label server refused our credentials).
create table if not exists esl.store_pauses (
    store_code text primary key,
    until      timestamptz not null,
    reason     text not null
);

-- The next free call slot of each label server, shared by all runs.
create table if not exists esl.rate_limits (
    server    text primary key,
    next_slot timestamptz not null
);

create table if not exists esl.leases (
    name   text primary key,
    holder text not null,
    until  timestamptz not null
);

do $$
declare t regclass;
begin
    for t in select c.oid from pg_class c where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r' loop
        execute format('alter table %s enable row level security', t);
    end loop;
end $$;

-- Called at the end of every migration: the functions are for service_role alone (where that role exists).
create or replace function esl.restrict_functions() returns void language plpgsql set search_path = '' as $$
declare f regprocedure; r text;
begin
    for f in select p.oid from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace and p.proname like 'esl\_%' loop
        execute format('revoke all on function %s from public', f);
        foreach r in array array['anon', 'authenticated'] loop
            if exists (select from pg_catalog.pg_roles where rolname = r) then
                execute format('revoke all on function %s from %I', f, r);
            end if;
        end loop;
        if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
            execute format('grant execute on function %s to service_role', f);
        end if;
    end loop;
    notify pgrst, 'reload schema';
end $$;

-- {} -> {"version": n}: the handshake at start, and the receiver's health check.
create or replace function public.esl_version(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('version', coalesce(max(version), 0)) from esl.schema_migrations
$$;

select esl.restrict_functions();
