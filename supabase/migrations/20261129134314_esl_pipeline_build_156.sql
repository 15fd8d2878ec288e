-- esl_pipeline: the whole buffer, build 156. Safe to run again.
do $esl_pipeline$
declare v_applied int[] := '{}'; v_build int := 0;
begin
perform pg_advisory_xact_lock(hashtextextended('esl.schema_migrations', 0));
if to_regclass('esl.schema_migrations') is not null then
select coalesce(array_agg(version order by version desc), '{}') into v_applied
from esl.schema_migrations;
v_build := coalesce(substring(pg_catalog.obj_description('esl'::regnamespace, 'pg_namespace') from '^([0-9]{1,9}) ')::int, 0);
end if;
if (v_applied[1], v_build) > (116, 156) then
raise exception 'the buffer (version %) is newer than this file, which is of version 116, build 156: take the file of the newest esl_pipeline', v_applied[1];
end if;
if v_applied[cardinality(v_applied)] < 100 then
raise exception 'the buffer is at version %, from before the first release, and cannot be brought to this one: begin with an empty one (of `esl-pipeline up`: delete the directory postgres in ESL_HOME; else make a new database, or drop schema esl cascade in this one, and run `esl-pipeline migrate`) and map the stores again; the nightly run then reads their shops', v_applied[1];
end if;
if not 100 = any (v_applied) then
execute $esl_0100$
-- The tables of the buffer. Schema esl is never exposed: everything goes through public.esl_*(p jsonb). A migration can
-- be run again without harm, so that the printed file can be pasted twice. Row level security is switched on, and
-- functions are given, in functions/access.sql.

-- Keys begin with what is selective: on a table without statistics the planner takes any index whose first columns it
-- can use, and a shop's name alone would read the whole shop for every row.

create schema if not exists esl;
revoke all on schema esl from public;

create table if not exists esl.schema_migrations (
    version    integer primary key,
    name       text not null,
    applied_at timestamptz not null default now()
);

-- One clock for optimistic checks: who evaluated an older revision of a row may not finish it.
create sequence if not exists esl.revision;

-- What triggers do is in functions/ (admin.sql, counters.sql), which is replaced right after this file.
create or replace function esl.refuse_change() returns trigger language plpgsql set search_path = '' as $$
begin
    raise exception 'append-only' using errcode = '42501';
end $$;
create or replace function esl.count_deliveries() returns trigger language plpgsql set search_path = '' as $$
begin
    return null;
end $$;


-- Shops and stores --------------------------------------------------------------------------------------------------

-- Which shop feeds which store, and by which policy (settings).
-- is_dry_run: labels are evaluated and queued, so that the differences can be looked at, but nothing is pushed.
-- activated_at: when it was made or switched on last. switched_off: by which message, until somebody decides.
-- problem: what labels/policy.py found unusable in the settings when the shop was evaluated last; null: nothing.
-- awaits_read_since: the mapping was given another shop then, which has not been read completely yet.
create table if not exists esl.store_mappings (
    id                 uuid primary key default gen_random_uuid(),
    source_system      text not null,
    source_store_id    text not null,
    hipoink_store_code text not null check (hipoink_store_code ~ '^[A-Za-z0-9_-]{1,32}$'),
    is_active          boolean not null default true,
    is_dry_run         boolean not null default false,
    settings           jsonb not null default '{}' check (jsonb_typeof(settings) = 'object'),
    problem            text,
    switched_off       text,
    created_at         timestamptz not null default now(),
    updated_at         timestamptz not null default now(),
    activated_at       timestamptz not null default now(),
    awaits_read_since  timestamptz,
    unique (source_system, source_store_id, hipoink_store_code),
    -- Whoever writes the table, a source is called as esl.sources() says, and a name is a name.
    constraint store_mappings_source check (
        source_system ~ '^[a-z][a-z0-9_]{0,30}$' and source_store_id ~ '^[!-~]{1,255}$'),
    -- The Admin token of a shop goes to the address of its name, so whoever writes the table, the name is a shop's.
    constraint store_mappings_shop check (
        source_system <> 'shopify' or source_store_id ~ '^[a-z0-9][a-z0-9-]{0,62}[.]myshopify[.]com$'),
    -- Numbers beyond a double's range: no process could read the answer that holds them.
    constraint store_mappings_settings_numbers check (
        not jsonb_path_exists(settings, '$.** ? (@.type() == "number" && (@ > 1e300 || @ < -1e300))'))
);

-- Audit, append-only: who changed which mapping; old is null for a new one. db_user: the login that the database saw,
-- beside the name that the caller gave.
create table if not exists esl.mapping_changes (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    by         text not null,
    db_user    text default session_user,
    mapping_id uuid not null,
    old        jsonb,
    new        jsonb not null
);
create or replace trigger mapping_changes_append_only before update or delete or truncate on esl.mapping_changes
    for each statement execute function esl.refuse_change();

-- The tokens of the store-mapping API. A name is used once, because esl.mapping_changes goes on naming it. The token
-- itself is kept nowhere.
create table if not exists esl.admin_tokens (
    name       text primary key check (name ~ '^[a-z0-9][a-z0-9_.-]{0,63}$'),
    sha256     text not null unique check (sha256 ~ '^[0-9a-f]{64}$'),
    scope      text not null check (scope in ('read', 'write')),  -- write may read too
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

-- What a shop's prices are.
create table if not exists esl.shops (
    source_system   text not null,
    source_store_id text not null,
    currency        text,
    taxes_included  boolean,
    time_zone       text,
    updated_at      timestamptz not null,
    primary key (source_store_id, source_system)
);

-- How each shop is connected: who makes its webhook subscriptions, since when, and what its deliveries tell of them.
-- subscriptions: made per shop through the Admin API ('api'), or by the app for all of its shops ('toml').
-- first_webhook_at: of the first delivery since connected_at that is finished. A connection that has ended keeps its
-- row until it is made anew.
create table if not exists esl.connections (
    source_system    text not null,
    source_store_id  text not null,
    subscriptions    text not null check (subscriptions in ('api', 'toml')),
    connected_at     timestamptz not null default clock_timestamp(),
    connected_by     text not null,
    db_user          text not null default session_user,
    first_webhook_at timestamptz,
    ended_at         timestamptz,
    ended_by         text,
    primary key (source_store_id, source_system)
);

-- What a source has asked us to delete, and what became of it; esl_housekeep carries it out. An order to erase is
-- judged two days after it came. confirmed_at: nothing speaks against it. void: what did; then it is finished as well.
create table if not exists esl.redactions (
    id              bigint generated always as identity primary key,
    source_system   text not null,
    source_store_id text not null,
    inbox_id        bigint,
    requested_at    timestamptz not null default clock_timestamp(),
    not_before      timestamptz not null default clock_timestamp() + interval '48 hours',
    confirmed_at    timestamptz,
    void            text,
    finished_at     timestamptz,
    removed         bigint not null default 0
);
create index if not exists redactions_open on esl.redactions (id) where finished_at is null;


-- Inbox -------------------------------------------------------------------------------------------------------------

-- One row per webhook delivery, as received. body is bytea because NUL and lone surrogates are legal JSON that text and
-- jsonb refuse; it is kept for a while only, of those about people not at all, and no longer than
-- ESL_WEBHOOK_BODY_LIMIT_BYTES lets through. Two keys against duplicates: the ids are unsigned headers, the body is
-- signed. said_at: the time in the signed body. proven: signed with a secret that no other shop has, so that it cannot
-- be another shop's body. thing: the product or inventory item that a finished one told of (product:1,
-- inventory_item:1); contested: the one that kept it from being used, because another shop has it (see
-- functions/owners.sql).
create table if not exists esl.webhook_inbox (
    id              bigint generated always as identity primary key,
    source_system   text not null,
    source_store_id text not null,
    topic           text not null,
    webhook_id      text not null,
    event_id        text,
    triggered_at    timestamptz,
    api_version     text,
    said_at         timestamptz,
    proven          boolean not null default false,
    body            bytea constraint webhook_inbox_body_size check (octet_length(body) <= 10000000),
    body_sha256     text not null,
    received_at     timestamptz not null default now(),
    state           text not null default 'ready'
                    check (state in ('ready', 'leased', 'done', 'superseded', 'unusable', 'dead')),
    reason          text,
    thing           text,
    contested       text,
    attempts        integer not null default 0,
    claim_id        uuid,
    lease_until     timestamptz,
    run_id          text,
    finished_at     timestamptz,
    unique (source_system, source_store_id, topic, webhook_id)
) with (fillfactor = 80);
-- A copy is a copy when its trigger time says so too: within one second a price may go and come back, in two bodies
-- that are equal.
create unique index if not exists webhook_inbox_copies
    on esl.webhook_inbox (body_sha256, topic, source_store_id, source_system, triggered_at) nulls not distinct;
create index if not exists webhook_inbox_open
    on esl.webhook_inbox (source_system, source_store_id, id) where state in ('ready', 'leased');
-- What a claim holds is found without walking all that waits.
create index if not exists webhook_inbox_claims on esl.webhook_inbox (claim_id) where claim_id is not null;
create index if not exists webhook_inbox_contested on esl.webhook_inbox (contested) where contested is not null;
create index if not exists webhook_inbox_said
    on esl.webhook_inbox (source_store_id, source_system, said_at) where said_at is not null;
-- What esl_housekeep takes the bodies of, and what it may forget one day.
create index if not exists webhook_inbox_bodies
    on esl.webhook_inbox (finished_at) where body is not null and finished_at is not null;
create index if not exists webhook_inbox_forgettable on esl.webhook_inbox (finished_at)
    where finished_at is not null and (said_at is not null or state = 'unusable');

-- Of each shop, how its deliveries have ended since it was first heard of, those included that are no longer kept.
-- refused_in_a_row: how many were not used since the last one that was; last_refusal: why not.
-- not_kept: deliveries that were refused because too much waited already. expired: those that waited too long for a
-- store to be mapped, and were deleted. own_secret, last_api_version: of the newest finished delivery.
create table if not exists esl.shop_deliveries (
    source_system    text not null,
    source_store_id  text not null,
    done             bigint not null default 0,
    superseded       bigint not null default 0,
    unusable         bigint not null default 0,
    replays          bigint not null default 0,  -- of the unusable ones
    dead             bigint not null default 0,
    last_received_at timestamptz,                -- of the finished ones
    refused_in_a_row bigint not null default 0,
    last_refusal     text,
    not_kept         bigint not null default 0,
    last_not_kept_at timestamptz,
    expired          bigint not null default 0,
    own_secret       boolean not null default false,
    last_api_version text,
    primary key (source_store_id, source_system)
) with (fillfactor = 50);

-- Of each shop, how many deliveries wait and how many bytes their bodies have: the sum over its slots. A session counts
-- in one slot (its process number mod 16), so that deliveries which arrive at once do not wait for each other's commit;
-- one slot alone may be negative.
create table if not exists esl.shop_waiting (
    source_system   text not null,
    source_store_id text not null,
    slot            smallint not null,
    deliveries      bigint not null,
    bytes           bigint not null,
    primary key (source_store_id, source_system, slot)
) with (fillfactor = 50);

-- Both are kept by triggers, whatever adds, finishes or deletes a delivery (functions/counters.sql).
create or replace trigger webhook_inbox_count_added after insert on esl.webhook_inbox
    referencing new table as added for each statement execute function esl.count_deliveries();
create or replace trigger webhook_inbox_count_changed after update on esl.webhook_inbox
    referencing old table as was new table as is_now for each statement execute function esl.count_deliveries();
create or replace trigger webhook_inbox_count_deleted after delete on esl.webhook_inbox
    referencing old table as gone for each statement execute function esl.count_deliveries();

-- Webhooks whose signature was wrong, by the shop that they name without proof. receiver: a process, which counts for
-- itself and tells what it has counted since its series began, so that the same word twice counts once.
create table if not exists esl.refused_signatures (
    source_system   text not null,
    source_store_id text not null,
    receiver        text not null,
    refused         bigint not null,
    since           timestamptz not null,
    last_at         timestamptz not null,
    primary key (source_store_id, source_system, receiver)
);
create index if not exists refused_signatures_last on esl.refused_signatures (last_at);

-- What several shops claim, of a source whose ids are unique over all of its shops. thing: product:1, inventory_item:1.
-- owner: whose it is, null until that is settled; settled_by: on what evidence or by whom, db_user: through which
-- login.
create table if not exists esl.contests (
    source_system text not null,
    thing         text not null,
    shops         text[] not null,
    since         timestamptz not null default clock_timestamp(),
    owner         text,
    settled_at    timestamptz,
    settled_by    text,
    db_user       text,
    primary key (thing, source_system)
);
create index if not exists contests_open on esl.contests (since) where owner is null;


-- Products ----------------------------------------------------------------------------------------------------------

-- The newest version seen of each product. A tombstone (deleted) stays, so that a late update cannot revive it.
-- missing_variants: how many the source named that were not in the body (Shopify's hold 100).
create table if not exists esl.product_versions (
    source_system    text not null,
    source_store_id  text not null,
    product_id       text not null,
    version_at       timestamptz not null,
    triggered_at     timestamptz not null,
    body_sha256      text collate "C" not null,
    deleted          boolean not null,
    missing_variants integer not null default 0,
    primary key (product_id, source_store_id, source_system)
);
create index if not exists product_versions_missing
    on esl.product_versions (product_id, source_store_id, source_system) where missing_variants > 0 and not deleted;

-- Normalised variants: what the source says now. due: not yet evaluated into labels. unsaid: content that nobody has
-- ever said of the variant (a webhook subscription with include_fields).
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
    handle            text,
    option1           text,
    option2           text,
    option3           text,
    source_created_at text,
    source_updated_at timestamptz not null,
    unsaid            text[] not null default '{}',
    removed           boolean not null default false,
    event_ids         bigint[] not null default '{}',
    revision          bigint not null default nextval('esl.revision'),
    due               boolean not null default true,
    changed_at        timestamptz not null default now(),
    primary key (variant_id, source_store_id, source_system)
) with (fillfactor = 80);
create index if not exists products_by_product on esl.products (product_id, source_store_id, source_system);
create index if not exists products_by_item on esl.products (inventory_item_id, source_store_id, source_system);
create index if not exists products_unsaid
    on esl.products (product_id, source_store_id, source_system) where unsaid <> '{}' and not removed;
-- The due variants of each shop in their order.
create index if not exists products_turns on esl.products (source_store_id, source_system, revision) where due;

-- Stock per location; kept apart from the variant because a level may arrive before its product. It has a version, as a
-- product has, and a tombstone: gone, so that late older news does not bring it back.
create table if not exists esl.inventory_levels (
    source_system     text not null,
    source_store_id   text not null,
    inventory_item_id text not null,
    location_id       text not null,
    available         bigint,
    updated_at        timestamptz not null,
    triggered_at      timestamptz not null,
    body_sha256       text collate "C" not null default '',
    gone              boolean not null default false,
    primary key (inventory_item_id, location_id, source_store_id, source_system)
);

-- What only a source's API says of a variant; kept apart, because webhooks would take it away again.
create table if not exists esl.variant_details (
    source_system          text not null,
    source_store_id        text not null,
    variant_id             text not null,
    gift_card              boolean not null default false,
    unit_price             text,
    unit_price_measurement jsonb,
    primary key (variant_id, source_store_id, source_system)
);


-- Snapshots ---------------------------------------------------------------------------------------------------------

-- Complete reads of a shop. as_of: the start of the read by the shop's own clock. stock_as_of: when that of the stock
-- began; null: no stock read. seen, levels_seen: how many rows of it the two tables below must hold.
create table if not exists esl.snapshots (
    id              uuid primary key,
    source_system   text not null,
    source_store_id text not null,
    run_id          text,
    started_at      timestamptz not null default clock_timestamp(),
    as_of           timestamptz,
    stock_as_of     timestamptz,
    finished_at     timestamptz,
    state           text not null default 'open' check (state in ('open', 'finished', 'abandoned')),
    reason          text,
    seen            bigint not null default 0,
    levels_seen     bigint not null default 0,
    counts          jsonb not null default '{}'
);
create index if not exists snapshots_open on esl.snapshots (source_store_id, source_system) where state = 'open';

-- Notes of the snapshots that are being read. Unlogged, so that a variant that nobody changed costs no WAL; a server
-- that crashes empties them, which esl.snapshots.seen finds out.
create unlogged table if not exists esl.snapshot_variants (
    variant_id  text not null,
    snapshot_id uuid not null,
    primary key (variant_id, snapshot_id)
);
create unlogged table if not exists esl.snapshot_levels (
    inventory_item_id text not null,
    location_id       text not null,
    snapshot_id       uuid not null,
    primary key (inventory_item_id, location_id, snapshot_id)
);

-- Up to when the changes of a shop have been read, per way of reading them.
create table if not exists esl.watermarks (
    source_system   text not null,
    source_store_id text not null,
    source          text not null,
    at              timestamptz not null,
    primary key (source_store_id, source_system, source)
);


-- Labels: what is wanted --------------------------------------------------------------------------------------------

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
create index if not exists findings_open
    on esl.findings (level, check_name, variant_id, mapping_id) where resolved_at is null;

-- What each variant should put on a label of each mapped store: the result of build_label, as evaluated last.
-- kept: the variant has left, its label stays. blank: its label stays without text. precedence: see duplicate_rule.
create table if not exists esl.labels (
    mapping_id   uuid not null references esl.store_mappings,
    variant_id   text not null,
    store_code   text not null,
    code         text,
    label        jsonb,
    label_hash   text,
    state        text not null check (state in ('publish', 'held', 'kept', 'blank', 'withdrawn')),
    collides     boolean not null default false,
    precedence   text,
    event_ids    bigint[] not null default '{}',
    evaluated_at timestamptz not null default now(),
    primary key (variant_id, mapping_id),
    check (state <> 'publish' or (code is not null and label is not null and label_hash is not null))
);
create index if not exists labels_by_code on esl.labels (code, store_code);


-- Labels: what the label server has, and what is to be pushed -------------------------------------------------------

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
create index if not exists hipoink_products_by_store on esl.hipoink_products (store_code, code);

-- The queue: one row per label that differs from the ledger.
-- priority is urgency alone: 0 a rise or a correction, 1 a cut, 2 other, 3 a removal.
-- is_rise: higher than what this variant's label shows; what raise_window holds back.
-- drastic: what the guard counts it as; null: nothing. A label that is blanked is a removal. guarded: one of too many
-- drastic changes at once, which wait for somebody's approval.
-- in_doubt: a push went out whose outcome is not known to be "accepted", so the server may hold something else than the
-- ledger says, and the row may not simply be dropped. redo: while this row is on its way, a late worker may have
-- overwritten it; push once more. refused_at: when a call with this label was refused first. refusals: how often for
-- its own fault.
create table if not exists esl.sync_queue (
    store_code      text not null,
    code            text not null,
    mapping_id      uuid not null references esl.store_mappings,
    variant_id      text not null,
    operation       text not null check (operation in ('upsert', 'delete')),
    label           jsonb,
    label_hash      text,
    priority        smallint not null,
    is_rise         boolean not null default false,
    drastic         text check (drastic in ('removal', 'price')),
    approved        boolean not null default false,
    generation      bigint not null default nextval('esl.revision'),
    state           text not null default 'ready' check (state in ('ready', 'leased', 'failed', 'dead', 'guarded')),
    in_doubt        boolean not null default false,
    redo            boolean not null default false,
    max_batch       integer not null default 1000,
    attempts        integer not null default 0,
    next_attempt_at timestamptz not null default now(),
    push_id         uuid,
    lease_until     timestamptz,
    refused_at      timestamptz,
    refusals        integer not null default 0,
    last_error      text,
    event_ids       bigint[] not null default '{}',
    created_at      timestamptz not null default now(),
    primary key (code, store_code)
) with (fillfactor = 80);
-- The heads of all (mapping, store, priority) are found by skipping, and each is walked in its order.
create index if not exists sync_queue_turns
    on esl.sync_queue (mapping_id, store_code, priority, next_attempt_at, created_at, code collate "C")
    where state = 'ready';
create index if not exists sync_queue_leased on esl.sync_queue (lease_until) where state = 'leased';
create index if not exists sync_queue_by_variant on esl.sync_queue (variant_id, mapping_id);
create index if not exists sync_queue_drastic on esl.sync_queue (store_code) where drastic is not null;

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
create or replace trigger sync_log_append_only before update or delete or truncate on esl.sync_log
    for each statement execute function esl.refuse_change();

-- The prices that labels have shown, from when on, append-only; for the lowest price of the last 30 days.
create table if not exists esl.price_history (
    variant_id text not null,
    mapping_id uuid not null,
    since      timestamptz not null,
    price      numeric not null,
    primary key (variant_id, mapping_id, since)
);
create or replace trigger price_history_append_only before update or delete or truncate on esl.price_history
    for each statement execute function esl.refuse_change();

-- Audit, append-only: who let drastic changes go.
create table if not exists esl.approvals (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    store_code text not null,
    removals   integer not null,
    prices     integer not null,
    by         text not null,
    db_user    text default session_user
);
create index if not exists approvals_by_store on esl.approvals (store_code, at);
create or replace trigger approvals_append_only before update or delete or truncate on esl.approvals
    for each statement execute function esl.refuse_change();

-- What the label server accepted of drastic changes that nobody had approved, a row per push and kind; gone: of those,
-- labels that left the ledger. Kept as long as the longest guard_hours.
create table if not exists esl.drastic_changes (
    store_code text not null,
    at         timestamptz not null default clock_timestamp(),
    kind       text not null check (kind in ('removal', 'price')),
    labels     integer not null,
    gone       integer not null
);
create index if not exists drastic_changes_by_store on esl.drastic_changes (store_code, at);


-- The label servers and their stores --------------------------------------------------------------------------------

-- What all runs know together of each label server. next_slot: its next free call slot. failures: calls in a row in
-- which it failed. down_since: after too many of those nothing is pushed but one batch to try, from probe_at on.
-- knows_refresh_since: when it accepted its first refresh trigger. refresh_refusals, refresh_again_at: how often it
-- said that there is no such action, and when it is asked again.
create table if not exists esl.label_servers (
    server              text primary key,
    next_slot           timestamptz,
    failures            integer not null default 0,
    down_since          timestamptz,
    probe_at            timestamptz,
    last_error          text,
    knows_refresh_since timestamptz,
    refresh_refusals    integer not null default 0,
    refresh_again_at    timestamptz
);

-- What is known of each store's calls, so that blame needs evidence (see esl.blame). refusals: refused calls since the
-- last accepted one, without what was some label's own known fault. pauses: since then, in a row. until: nothing is
-- pushed before. reason: the label server's words.
create table if not exists esl.store_health (
    store_code  text primary key,
    accepted_at timestamptz,
    refusals    integer not null default 0,
    refused_at  timestamptz,
    pauses      integer not null default 0,
    until       timestamptz,
    reason      text
);

-- On a label server without auto-trigger, what it has accepted reaches the physical labels only after esl/bind_task
-- (functions/refresh.sql): per store, whether it waits for a trigger. since: the first push accepted that no trigger
-- was begun for; null: none. not_before: so that triggers of a store keep a gap. next_at: after failures, until the
-- next accepted push. claim_id to lease_until: the trigger under way; claimed_since is the `since` that it takes care
-- of.
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
create or replace trigger refreshes_append_only before update or delete or truncate on esl.refreshes
    for each statement execute function esl.refuse_change();

-- Audit, append-only: what was found to differ at the label server and was put right; of a foreign label, what was
-- there. ours: it was there and in no ledger, but we had written it.
create table if not exists esl.drift (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    run_id     text,
    store_code text not null,
    code       text not null,
    kind       text not null check (kind in ('missing', 'different', 'foreign', 'ours')),
    ours       jsonb,
    theirs     jsonb
);
create index if not exists drift_by_code on esl.drift (code, store_code);
create or replace trigger drift_append_only before update or delete or truncate on esl.drift
    for each statement execute function esl.refuse_change();

-- How the last comparison of each store with the label server's own list ended. skipped: labels of the ledger of which
-- the list says nothing. given_up: labels whose repair did not hold three times.
create table if not exists esl.comparisons (
    store_code text primary key,
    at         timestamptz not null,
    run_id     text,
    complete   boolean not null,
    reason     text,
    listed     integer not null,
    ledger     integer not null,
    skipped    integer not null,
    given_up   integer not null
);


-- Work --------------------------------------------------------------------------------------------------------------

-- Whose turn it was when, so that the next one is somebody else's. queue: 'inbox' (party: system:shop), 'push' (party:
-- mapping id), 'bulk' (no party: when somebody was pushed in turn, and not because of its rises).
create table if not exists esl.turns (
    queue    text not null check (queue in ('inbox', 'push', 'bulk')),
    party    text not null,
    taken_at timestamptz not null,
    primary key (party, queue)
) with (fillfactor = 50);

create table if not exists esl.leases (
    name   text primary key,
    holder text not null,
    until  timestamptz not null
);

$esl_0100$;
insert into esl.schema_migrations values (100, 'tables') on conflict do nothing;
end if;
if not 101 = any (v_applied) then
execute $esl_0101$
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

$esl_0101$;
insert into esl.schema_migrations values (101, 'files') on conflict do nothing;
end if;
if not 102 = any (v_applied) then
execute $esl_0102$
-- Where a product comes from, as far as its source says it.
alter table esl.products add column if not exists origin text;

$esl_0102$;
insert into esl.schema_migrations values (102, 'origin') on conflict do nothing;
end if;
if not 103 = any (v_applied) then
execute $esl_0103$
-- Several calls in flight at a label server.

-- Calls that are in flight at a label server, or wait to be: as many as may be of those that asked first (see
-- esl_rate_take). recorded_as: the push or refresh whose call it is, if any. until: when a call is over, whatever has
-- become of its process.
create table if not exists esl.calls (
    call_id     uuid primary key,
    recorded_as uuid,
    server      text not null,
    asked_at    timestamptz not null,
    until       timestamptz not null
) with (fillfactor = 50);

-- Batches that are claimed and not finished. begun_at: when the call begins (it may wait for its pace until then);
-- null: it waits for others to end. probes: it tries a label server that is down.
create table if not exists esl.flights (
    push_id      uuid primary key,
    store_code   text not null,
    label_server text not null,
    run_id       text,
    claimed_at   timestamptz not null default clock_timestamp(),
    begun_at     timestamptz,
    until        timestamptz not null,
    probes       boolean not null default false
) with (fillfactor = 50);

-- failed_at: when the last failure came that counts; calls that were claimed by then tell nothing new. batch_size: the
-- most labels that one call may have now, where that is less than the settings say. too_large: how many were refused
-- for being too many, and when.
alter table esl.label_servers
    add column if not exists failed_at timestamptz,
    add column if not exists batch_size integer,
    add column if not exists too_large integer,
    add column if not exists too_large_at timestamptz;

-- batch_size: as of the server. usual_ms: what a call takes that is accepted, a moving average. unanswered: the last
-- call got no answer.
alter table esl.store_health
    add column if not exists batch_size integer,
    add column if not exists usual_ms float8,
    add column if not exists unanswered boolean not null default false;

-- was_in_doubt: before it was claimed, for a push that is not sent after all.
alter table esl.sync_queue add column if not exists was_in_doubt boolean not null default false;

-- not_sent: claimed, and no call was made.
alter table esl.sync_log drop constraint if exists sync_log_outcome_check;
alter table esl.sync_log add constraint sync_log_outcome_check check (outcome in (
    'accepted', 'transient', 'unknown', 'rejected', 'authentication', 'lost', 'not_sent')) not valid;

-- Stores that a mapping has named before: its labels may hang there still (see esl.lock_stores).
create table if not exists esl.left_stores (
    mapping_id uuid not null references esl.store_mappings,
    store_code text not null,
    primary key (mapping_id, store_code)
);
insert into esl.left_stores (mapping_id, store_code)
select m.id, k.store_code
from (select mapping_id, store_code from esl.hipoink_products
      union select mapping_id, store_code from esl.sync_queue
      union select mapping_id, store_code from esl.labels) k
join esl.store_mappings m on m.id = k.mapping_id
where k.store_code is not null and k.store_code <> m.hipoink_store_code
on conflict do nothing;

-- Functions that have other arguments, or other columns, from now on.
drop function if exists esl.turns_to_push(jsonb, boolean);
drop function if exists esl.next_push(jsonb, boolean);
drop function if exists esl.has_jump(timestamptz);
drop function if exists esl.note_turn(esl.sync_queue);
drop function if exists esl.lease_batch(uuid, esl.sync_queue, esl.store_mappings, int, timestamptz);
drop function if exists esl.claim_batch(jsonb, esl.sync_queue, boolean, timestamptz);
drop function if exists esl.pause_before(jsonb, esl.sync_queue, boolean);
drop function if exists esl.note_passing(text);
drop function if exists esl.note_health(jsonb);

$esl_0103$;
insert into esl.schema_migrations values (103, 'calls') on conflict do nothing;
end if;
if not 104 = any (v_applied) then
execute $esl_0104$
-- Several label servers, by the names that the settings give them; a store is at one of them.
create table if not exists esl.stores (
    store_code   text primary key,
    label_server text not null default 'default' check (label_server ~ '^[a-z0-9][a-z0-9-]{0,31}$'),
    placed_at    timestamptz not null default now()
);

-- What was known under a server's address: its health and pace, which are learnt again.
delete from esl.label_servers where server ~ '[^a-z0-9-]';
delete from esl.leases where name = 'event_sync';  -- each server's drain has its own
drop function if exists esl.note_change(text, esl.store_mappings, esl.store_mappings);
drop function if exists esl.has_jump(timestamptz);

$esl_0104$;
insert into esl.schema_migrations values (104, 'label_servers') on conflict do nothing;
end if;
if not 105 = any (v_applied) then
execute $esl_0105$
-- A lease may be handed over. relieve_at: from then on its holder wants a successor. successor: who waits for it, or
-- was started to, until successor_until; is_ready: is there and asks. build: of the holder's code, so that older code
-- is relieved after an upgrade.
alter table esl.leases add column if not exists relieve_at timestamptz;
alter table esl.leases add column if not exists successor text;
alter table esl.leases add column if not exists successor_until timestamptz;
alter table esl.leases add column if not exists successor_is_ready boolean not null default false;
alter table esl.leases add column if not exists build integer;

$esl_0105$;
insert into esl.schema_migrations values (105, 'handover') on conflict do nothing;
end if;
if not 106 = any (v_applied) then
execute $esl_0106$
-- Physical labels: which hang in a store, what is bound to them, and what has changed of them.

-- What a store's server said of a label when it was read last. product_code: null: bound to nothing. battery_mv: within
-- 20 mV, so that a reading that trembles is no change. server_updated: its own text, whatever its zone; the times are
-- null while its zone is not known. first_seen_at, bound_at (since when we know this product on it): starts of passes.
-- moved_at: of the pass that first saw action and server_updated as they are now after it had seen others; moved_after:
-- they were still others then; both null: never seen to move. last_seen_at: of the pass that wrote the row; see
-- esl.device_seen_at. gone_at: of the complete pass that no longer had it.
create table if not exists esl.devices (
    store_code        text not null,
    esl_code          text not null,
    product_code      text,
    model             text,
    ap_code           text,
    battery_mv        integer,
    online            boolean,
    action            text,
    server_created_at timestamptz,
    server_updated_at timestamptz,
    server_updated    text,
    first_seen_at     timestamptz not null,
    last_seen_at      timestamptz not null,
    bound_at          timestamptz,
    moved_at          timestamptz,
    moved_after       timestamptz,
    gone_at           timestamptz,
    primary key (esl_code, store_code)
) with (fillfactor = 85);
create index if not exists devices_by_product on esl.devices (product_code, store_code) where gone_at is null;
create index if not exists devices_by_store on esl.devices (store_code, esl_code);

-- History, append-only (what is no longer kept, housekeeping deletes). old, new: as text; of seen the product.
create table if not exists esl.device_changes (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    store_code text not null,
    esl_code   text not null,
    pass_id    uuid not null,
    what       text not null check (what in ('seen', 'gone', 'back', 'binding', 'model', 'ap', 'online', 'battery')),
    old        text,
    new        text
);
create index if not exists device_changes_by_device on esl.device_changes (esl_code, store_code, at);
create index if not exists device_changes_of_reach on esl.device_changes (at) where what in ('online', 'ap');
create or replace trigger device_changes_append_only before update or truncate on esl.device_changes
    for each statement execute function esl.refuse_change();

-- Reads of a store's labels, from their first page to their last. noted_at: when its last page came. not_known: the
-- server has no such action. devices, pages: read; changed: rows written; malformed: rows that name no label. doubts:
-- it had lost so many labels that it was not believed; one that says so again is.
create table if not exists esl.device_passes (
    id              uuid primary key,
    store_code      text not null,
    label_server    text not null,
    run_id          text,
    started_at      timestamptz not null default clock_timestamp(),
    noted_at        timestamptz not null default clock_timestamp(),
    finished_at     timestamptz,
    state           text not null default 'open' check (state in ('open', 'complete', 'failed', 'not_known')),
    devices         integer not null default 0,
    pages           integer not null default 0,
    changed         integer not null default 0,
    gone            integer not null default 0,
    malformed       integer not null default 0,
    counted_online  integer,
    counted_offline integer,
    doubts          boolean not null default false,
    error           text
);
create index if not exists device_passes_by_store on esl.device_passes (store_code, started_at);

-- What the open passes have seen. Unlogged, so that a label that has not changed costs no WAL; a server that crashes
-- empties it, which esl.device_passes.devices finds out.
create unlogged table if not exists esl.device_sightings (
    esl_code text not null,
    pass_id  uuid not null,
    primary key (esl_code, pass_id)
);

-- zone: of the server's own times. knows_devices: whether it has the actions for labels (null: never asked);
-- device_refusals, devices_again_at: how often it said no, and when it is asked again. background_at: when the next
-- call of the background may begin. Measured by a probe: auto_triggers: it refreshes labels by itself; rows_move: a
-- label's row moves when the label does; probe_seconds: from push to that.
alter table esl.label_servers
    add column if not exists zone text,
    add column if not exists knows_devices boolean,
    add column if not exists device_refusals integer not null default 0,
    add column if not exists devices_again_at timestamptz,
    add column if not exists background_at timestamptz,
    add column if not exists auto_triggers boolean,
    add column if not exists rows_move boolean,
    add column if not exists probe_seconds numeric,
    add column if not exists probed_at timestamptz;

-- is_background: no price waits for it.
alter table esl.calls add column if not exists is_background boolean not null default false;

$esl_0106$;
insert into esl.schema_migrations values (106, 'devices') on conflict do nothing;
end if;
if not 107 = any (v_applied) then
execute $esl_0107$
-- A removal that may unbind physical labels waits.

-- Places whose label is to go and waits (functions/grace.sql). decided_at: when that was decided. since: when the wait
-- began: once the label is blanked, or may stay as it is; null: it is still to be blanked. until: when the place is to
-- be looked at again; null: nobody has to, what is to be done is queued. label, label_hash: what hung when it was
-- decided. approved: somebody has approved the removal.
create table if not exists esl.graces (
    store_code text not null,
    code       text not null,
    decided_at timestamptz not null default clock_timestamp(),
    since      timestamptz,
    until      timestamptz,
    label      jsonb not null,
    label_hash text not null,
    approved   boolean not null default false,
    primary key (code, store_code)
);
create index if not exists graces_by_until on esl.graces (until) where until is not null;
create index if not exists graces_by_store on esl.graces (store_code);

-- Removals that were queued before there was a grace are decided again, so that it holds for them as well.
update esl.products o set due = true, revision = nextval('esl.revision')
from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
where q.operation = 'delete' and q.state <> 'leased' and not o.due
  and o.variant_id = q.variant_id and o.source_store_id = m.source_store_id and o.source_system = m.source_system
  and not exists (select from esl.graces g where g.code = q.code and g.store_code = q.store_code);

-- rise_since: the first price rise accepted that no trigger was begun for; claimed_rise_since: the one that the trigger
-- under way takes care of.
alter table esl.refresh_marks
    add column if not exists rise_since timestamptz,
    add column if not exists claimed_rise_since timestamptz;

-- Functions that have other arguments, or other columns, from now on.
drop function if exists esl.decisions(text[], text[]);
drop function if exists esl.drastic_kind(text, jsonb, text, jsonb, text, jsonb);
drop function if exists esl.want_refresh(text);

$esl_0107$;
insert into esl.schema_migrations values (107, 'grace') on conflict do nothing;
end if;
if not 108 = any (v_applied) then
execute $esl_0108$
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

$esl_0108$;
insert into esl.schema_migrations values (108, 'ladder') on conflict do nothing;
end if;
if not 109 = any (v_applied) then
execute $esl_0109$
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

$esl_0109$;
insert into esl.schema_migrations values (109, 'hands') on conflict do nothing;
end if;
if not 110 = any (v_applied) then
execute $esl_0110$
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

$esl_0110$;
insert into esl.schema_migrations values (110, 'causes') on conflict do nothing;
end if;
if not 111 = any (v_applied) then
execute $esl_0111$
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

$esl_0111$;
insert into esl.schema_migrations values (111, 'operator') on conflict do nothing;
end if;
if not 112 = any (v_applied) then
execute $esl_0112$
-- What people are told of: alerts that open once and close once, and their way to each address.

-- One row per trouble, from when it was first seen until it is over; history stays. key: kind and subject, of which one
-- is current. since: when the trouble began, as far as is known. opened_at: when it had lasted long enough to tell
-- people; null: not yet. gone_at: when it was first seen to be over; it closes when that has lasted. shops: by their
-- keys; none: it is nobody's alone. labels: how many wait or are wrong because of it.
create table if not exists esl.alerts (
    id        bigint generated always as identity primary key,
    key       text not null,
    kind      text not null,
    subject   text not null,
    severity  text not null check (severity in ('info', 'warning', 'critical')),
    since     timestamptz not null,
    seen_at   timestamptz not null default clock_timestamp(),
    opened_at timestamptz,
    gone_at   timestamptz,
    closed_at timestamptz,
    says      text not null,
    todo      text not null,
    link      text,
    labels    bigint not null default 0,
    shops     text[] not null default '{}',
    check (closed_at is null or opened_at is not null)
);
create unique index if not exists alerts_current on esl.alerts (key) where closed_at is null;
create index if not exists alerts_closed on esl.alerts (closed_at) where closed_at is not null;

-- What is to be told to whom, once each. id: what the receiver of a message knows it by; the same however often it is
-- sent. recipient: scheme and host of an address, and which of several there; the address itself is a secret and in the
-- settings alone. next_at: not before. claim_id, lease_until: who sends it now. last_error: of the last try.
create table if not exists esl.alert_deliveries (
    id          uuid primary key default gen_random_uuid(),
    alert_id    bigint not null references esl.alerts,
    event       text not null check (event in ('opened', 'closed')),
    recipient   text not null,
    created_at  timestamptz not null default clock_timestamp(),
    next_at     timestamptz not null default clock_timestamp(),
    attempts    integer not null default 0,
    last_error  text,
    claim_id    uuid,
    lease_until timestamptz,
    sent_at     timestamptz,
    unique (alert_id, recipient, event)
);
create index if not exists alert_deliveries_open on esl.alert_deliveries (recipient, created_at) where sent_at is null;

-- Deliveries that were of no use, of which a finished one is looked for every few seconds.
create index if not exists webhook_inbox_useless
    on esl.webhook_inbox (finished_at) where state in ('unusable', 'dead');

$esl_0112$;
insert into esl.schema_migrations values (112, 'alerts') on conflict do nothing;
end if;
if not 113 = any (v_applied) then
execute $esl_0113$
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

$esl_0113$;
insert into esl.schema_migrations values (113, 'numbers') on conflict do nothing;
end if;
if not 114 = any (v_applied) then
execute $esl_0114$
-- What people ask for is found without walking what is done.

-- Deliveries that could not be used, or were given up.
create index if not exists webhook_inbox_not_used on esl.webhook_inbox (id) where state in ('unusable', 'dead');
-- What was pushed in a night: the audit is in the order of its times.
create index if not exists sync_log_at on esl.sync_log using brin (at);
create index if not exists drift_at on esl.drift using brin (at);

$esl_0114$;
insert into esl.schema_migrations values (114, 'waiting') on conflict do nothing;
end if;
if not 115 = any (v_applied) then
execute $esl_0115$
-- What people search for: a code, a SKU, words of a title (functions/console.sql).
create index if not exists products_by_barcode on esl.products (barcode text_pattern_ops) where barcode <> '';
create index if not exists products_by_words on esl.products using gin
    (to_tsvector('simple', coalesce(title, '') || ' ' || coalesce(variant_title, '')));

$esl_0115$;
insert into esl.schema_migrations values (115, 'console') on conflict do nothing;
end if;
if not 116 = any (v_applied) then
execute $esl_0116$
-- A SKU is searched for by its beginning, whatever its case (functions/console.sql). (0115 had given this index the
-- name of another, so it was never made.)
create index if not exists products_by_sku_start on esl.products (lower(sku) text_pattern_ops) where sku <> '';
-- Twice the same: mapping_changes_by_mapping.
drop index if exists esl.mapping_changes_of;

$esl_0116$;
insert into esl.schema_migrations values (116, 'search') on conflict do nothing;
end if;
execute $esl_functions$
set local check_function_bodies = off;
-- functions: 0_rows.sql
-- The rows that callers send, each said once: jsonb_populate_recordset(null::esl.<name>, …) reads them.
-- A type cannot be replaced. Each is made beside the one that is there, which stays if it is the same: so a call that
-- is at work meanwhile meets no other. Where it differs, or is no more, the functions that use it go with it and are
-- made after this file.

-- inbox, products, snapshot

-- A delivery, as a receiver sends it.
create type esl.made_delivery_row as (
    source_system text, source_store_id text, topic text, webhook_id text, event_id text, triggered_at timestamptz,
    api_version text, said_at timestamptz, body_base64 text, body_sha256 text, state text, reason text, proven boolean
);

-- A delivery that a call has kept: its row, and which it is.
create type esl.made_kept_row as (
    id bigint, source_system text, source_store_id text, topic text, webhook_id text
);

-- An event of a claim, as esl_variants_merge ends it: what it told of, in which version.
create type esl.made_event_row as (
    id bigint, state text, reason text, product_id text, inventory_item_id text, location_id text,
    version_at timestamptz, triggered_at timestamptz, body_sha256 text collate "C"
);

-- A version of a product, without its content.
create type esl.made_product_row as (
    source_system text, source_store_id text, product_id text, version_at timestamptz, triggered_at timestamptz,
    body_sha256 text collate "C", deleted boolean, missing_variants int, variant_ids text[], event_ids bigint[]
);

-- A variant of a version of a product, without its content.
create type esl.made_variant_row as (
    source_system text, source_store_id text, product_id text, variant_id text, version_at timestamptz,
    triggered_at timestamptz, body_sha256 text collate "C"
);

-- An inventory item that a read names, of a variant or a level.
create type esl.made_item_row as (source_system text, source_store_id text, inventory_item_id text);

-- What waits, and what has ended, of the deliveries of a statement (esl.count_deliveries).
create type esl.made_waiting_row as (source_system text, source_store_id text, n bigint, bytes bigint);
create type esl.made_ended_row as (
    id bigint, source_system text, source_store_id text, received_at timestamptz, api_version text, state text,
    reason text, proven boolean, n int
);

-- Wrong signatures that a receiver has counted of a shop.
create type esl.made_refused_row as (
    source_system text, source_store_id text, refused bigint, since timestamptz, last_at timestamptz
);

-- One of many shops (shops in the doors' arguments).
create type esl.made_shop_row as (source_system text, source_store_id text);

-- A file as a source's reader finds it.
create type esl.made_file_row as (name text, size bigint, modified_at timestamptz, sha256 text, kind text);

-- What is known of a product that is listed without saying which one it is.
create type esl.made_unclear_row as (lowest text, highest text, title text);

-- labels, queue, drift

-- A variant that was evaluated, at the revision that it had then.
create type esl.made_evaluated_row as (source_system text, source_store_id text, variant_id text, revision bigint);

-- What the evaluation of a variant puts on a label of one mapping. cause: why it was evaluated (callers do not say).
create type esl.made_label_row as (
    mapping_id uuid, variant_id text, revision bigint, store_code text, state text, code text, precedence text,
    label jsonb, label_hash text, event_ids bigint[], cause text
);

-- What the evaluation of a variant found.
create type esl.made_finding_row as (
    mapping_id uuid, variant_id text, revision bigint, check_name text, level text, column_name text, value text,
    reason text, action text
);

-- A place where a label hangs or may hang, with all that its decision rests on (see esl.places and esl.what_is_due).
--   wins           whether anybody's label wins the place; null: nobody publishes one for it. mapping_id … cause:
--                  that label
--   shown          the label of the ledger (is_shown: there is one), is_its_own: of the variant that wins
--   pending        the operation that waits or is on its way, and what with. in_doubt: the server may have taken that
--   owner_mapping  whose the place is, by the ledger or the queue. is_home: its mapping feeds this store, is_kept: the
--                  label is to stay as it is, is_paused: its mapping is
--   blank          the owner's label without content, where it wants that; null: it does not
--   decided_at     since when it is to go and waits (see esl.graces), waits_since: since when its time counts,
--                  has_passed: the guard has let the removal go
create type esl.made_place_row as (
    store_code text, code text,
    wins boolean, mapping_id uuid, variant_id text, label jsonb, label_hash text, event_ids bigint[],
    cause text,
    shown jsonb, shown_hash text, is_shown boolean, is_its_own boolean,
    pending text, pending_label jsonb, pending_hash text, pending_mapping uuid, pending_variant text,
    pending_events bigint[], pending_cause text, in_doubt boolean,
    owner_mapping uuid, owner_variant text, owner_events bigint[], owner_cause text,
    is_home boolean, is_kept boolean, is_paused boolean,
    blank jsonb, decided_at timestamptz, waits_since timestamptz, has_passed boolean
);

-- A label of a push, as it was claimed.
create type esl.made_pushed_row as (code text, generation bigint);

-- A difference between the label server's list and the ledger (see esl_drift_repair).
create type esl.made_drift_row as (
    code text, kind text, push_id uuid, ours jsonb, theirs jsonb, label jsonb, label_hash text
);

-- shelf

-- A physical label, as a page of the label server's list has it.
create type esl.made_device_row as (
    esl_code text, product_code text, model text, ap_code text, battery_mv int, online boolean, action text,
    server_created_at timestamptz, server_updated_at timestamptz, server_updated text
);

-- How far the price of a product has come towards its labels, as functions/ladder.sql has it: 1 to 4, or what speaks
-- for more. label_hash, accepted_at: of the ledger. sighted_at: when somebody looked last; is_right: and saw what the
-- ledger said then; is_seen: and that is what it says now, since it was accepted.
create type esl.made_ladder_row as (
    code text, mapping_id uuid, variant_id text, label_hash text, accepted_at timestamptz, rung int,
    is_triggered boolean, sighted_at timestamptz, is_right boolean, is_seen boolean
);

-- What holds for all labels of a store. rows_move, auto_triggers: as a probe has found; triggered_at: when the newest
-- accepted trigger began; compared_at: when the newest comparison did, if complete; read_at: when the newest complete
-- pass did, is_read: lately; low_mv: below which a battery is low of a label of nobody's.
create type esl.made_facts_row as (
    rows_move boolean, auto_triggers boolean, triggered_at timestamptz, compared_at timestamptz, has_given_up boolean,
    read_at timestamptz, is_read boolean, low_mv int
);

-- A physical label, or a product without one (no esl_code), and how far its price is known to have come.
--   rung           null: it shows no product of ours
--   hindrance      what stands in the way, as far as is known; null: nothing does
--   has_moved      its row has moved since the price was accepted, whatever that says of the price
--   since, stale_seconds   of one that is not known to be right: since when it shows something old, and for how long
--                  while it was awake; is_late: for longer than its policy expects; is_rise: and the price is higher
create type esl.made_shelf_row as (
    esl_code text, product_code text, mapping_id uuid, variant_id text, model text, ap_code text, battery_mv int,
    online boolean, is_low boolean, is_blanked boolean, accepted_at timestamptz, rung int, hindrance text,
    has_moved boolean, since timestamptz, stale_seconds float8, is_late boolean, is_rise boolean
);

-- The same before it is known since when it shows something old, with what tells that.
create type esl.made_judged_row as (
    store_code text, esl_code text, product_code text, mapping_id uuid, variant_id text, model text, ap_code text,
    battery_mv int, online boolean, is_low boolean, is_blanked boolean, accepted_at timestamptz, rung int,
    hindrance text, has_moved boolean, first_seen_at timestamptz, bound_at timestamptz, moved_at timestamptz,
    late_seconds int, zone text, sleeps_from int, sleeps_to int
);

-- numbers

-- Something that is counted (see esl.measures).
create type esl.made_measure_row as (
    name text, party text, server text, kind text, n bigint, total float8, buckets bigint[]
);

-- alerts

-- A trouble, as what sees it tells of it. subject: a label server, a store or a shop's key.
create type esl.made_condition_row as (
    kind text, subject text, since timestamptz, labels bigint, shops text[], stores text[], number bigint, detail text
);

-- The labels of a shop and store in the queue (see esl.queue_troubles): how many, since when, and why refused.
create type esl.made_queue_row as (
    shop text, store_code text, waiting bigint, refused bigint, refused_since timestamptz, refused_says text,
    guarded bigint, guarded_since timestamptz, late bigint, late_since timestamptz, rises bigint,
    rises_since timestamptz
);

-- What becomes of an alert: it is seen, opened, kept, gone, closed or forgotten (do).
create type esl.made_alert_row as (
    "do" text, key text, kind text, subject text, severity text, since timestamptz, says text, todo text, link text,
    labels bigint, shops text[]
);

-- Who is told, of what severity on.
create type esl.made_recipient_row as (name text, severity text);

-- How the sending to a recipient ended; error: null where it went well.
create type esl.made_told_row as (recipient text, error text, again_seconds float8);

-- made_<name> takes the place of <name> where that has other columns.
do $$
declare t record;
begin
    for t in with rows as (
                 select c.relname::text as name, substr(c.relname, 6) as of, array_agg(
                     (a.attname, a.atttypid, a.atttypmod, a.attcollation) order by a.attnum)::text as columns
                 from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid
                 where c.relnamespace = 'esl'::regnamespace and c.relkind = 'c' group by c.relname
             )
             select coalesce(m.of, o.name) as name, m.name is not null as is_made, o.name is not null as is_there,
                    o.columns = m.columns as is_same
             from (select * from rows where name like 'made\_%') m
             full join (select * from rows where name not like 'made\_%') o on o.name = m.of
    loop
        if t.is_same then
            execute format('drop type esl.%I', 'made_' || t.name);
        else
            if t.is_there then
                execute format('drop type esl.%I cascade', t.name);
            end if;
            if t.is_made then
                execute format('alter type esl.%I rename to %I', 'made_' || t.name, t.name);
            end if;
        end if;
    end loop;
end $$;

-- functions: access.sql
-- Who may do what, and which build this is.

-- Which process calls which function; a name that ends in * stands for all that begin so. Whoever is not named here may
-- call nothing, and nobody may touch a table: the functions run as their owner. service_role may call all of them.
create or replace function esl.callers() returns table (role text, function text)
language sql immutable set search_path = '' as $$
    select c.role, unnest(c.functions) from (values
        ('esl_receiver', array[
            'esl_version', 'esl_inbox_add', 'esl_refusals_note']),
        ('esl_pipeline', array[
            'esl_version', 'esl_mapping_list', 'esl_status', 'esl_preview', 'esl_accuracy', 'esl_due',
            'esl_inbox_claim', 'esl_variants_*', 'esl_missing_variants', 'esl_labels_*', 'esl_push_*', 'esl_rate_*',
            'esl_lease_*', 'esl_claims_*', 'esl_snapshot_*', 'esl_watermark_*', 'esl_drift_*', 'esl_housekeep',
            'esl_redaction_*', 'esl_refresh_*', 'esl_graces_end', 'esl_connection_list', 'esl_files_known',
            'esl_files_note', 'esl_files_finish', 'esl_files_list', 'esl_problems_note', 'esl_device_*', 'esl_shelf*',
            'esl_ladder', 'esl_probe_*', 'esl_alert_*']),
        ('esl_admin', array[
            'esl_version', 'esl_mapping_*', 'esl_token_*', 'esl_status', 'esl_findings', 'esl_preview', 'esl_trace',
            'esl_trace_find', 'esl_story',
            'esl_changes_approve', 'esl_redrive', 'esl_owner_settle', 'esl_connection_*', 'esl_files_list',
            'esl_files_approve', 'esl_shelf*', 'esl_ladder', 'esl_hands_*', 'esl_waiting_*', 'esl_night', 'esl_sizes',
            'esl_numbers', 'esl_stats', 'esl_alert_list', 'esl_operator_*', 'esl_console_*'])
    ) as c (role, functions)
$$;

create or replace function esl.may_call(p_role text, p_function text) returns boolean
language sql immutable set search_path = '' as $$
    select exists (select from esl.callers() c where c.role = p_role and case
        when c.function like '%*' then starts_with(p_function, rtrim(c.function, '*'))
        else c.function = p_function end)
$$;

-- How a door is planned is said by the door, and holds for all that it calls: where tables may grow from nothing within
-- a session, for each call, by what is there. (A plan that was made for an empty queue reads all of a long one.)

-- At the beginning of a door that is called for each change of a price, whose plans are kept: to plan it anew takes
-- longer than all else. A table is analysed, one a call, that is more than twice as large as when it was last, or in
-- which more than twice as many rows have been written since as it had then (a queue that was known to be empty is as
-- large as when it was full): that makes the plans anew. Autovacuum would, a minute later; in that a new store is
-- filled, and a plan by what was known before it came reads the whole ledger, or queue, for each of its labels.
create or replace function esl.know_what_grew() returns void language plpgsql set search_path = '' as $$
declare t regclass;
begin
    select c.oid into t from pg_catalog.pg_class c
    where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r'
      and pg_catalog.pg_relation_size(c.oid) > 65536
      and (pg_catalog.pg_relation_size(c.oid) > 65536 + 2 * 8192 * c.relpages::bigint
           or pg_catalog.pg_stat_get_mod_since_analyze(c.oid) > 1000 + 2 * c.reltuples)
    order by pg_catalog.pg_relation_size(c.oid) desc limit 1;
    if t is not null then
        begin
            execute format('lock table %s in share update exclusive mode nowait', t);
            execute format('analyze %s', t);
        exception when lock_not_available then
            null;  -- somebody is at it
        end;
    end if;
end $$;

-- Once the functions have been replaced: a function of an older build goes when this build has one of its name with
-- other parameters. Else one call could mean both, and Postgres refuses it. What this transaction has written is new.
create or replace function esl.drop_older_overloads() returns void language plpgsql set search_path = '' as $$
declare f record;
begin
    for f in select o.oid::regprocedure as signature from pg_catalog.pg_proc o
             where o.pronamespace = 'esl'::regnamespace and o.xmin <> pg_current_xact_id()::xid
               and exists (select from pg_catalog.pg_proc n
                           where n.pronamespace = o.pronamespace and n.proname = o.proname
                             and n.xmin = pg_current_xact_id()::xid) loop
        execute format('drop function %s', f.signature);
    end loop;
end $$;

-- Called at the end of every migration: who may call what, and what holds for every call. The roles are groups: each
-- process has a login of its own, a member of one. (A function's own statement_timeout is for PostgREST, which applies
-- it before the call, over the 8 s that a project's role has. Over psycopg it is too late: see PsycopgTransport.)
create or replace function esl.restrict_functions() returns void language plpgsql set search_path = '' as $$
declare t regclass; f record; r text;
begin
    for r in select distinct c.role from esl.callers() c order by 1 loop
        if not exists (select from pg_catalog.pg_roles where rolname = r) then
            begin
                execute format('create role %I nologin', r);
            exception
                when duplicate_object or unique_violation then null;  -- the migration of another database was first
                when insufficient_privilege then
                    raise warning 'role % is missing and % may not create it: let an administrator run "create role % '
                        'nologin" and migrate again, or go on without it', r, current_user, r;
            end;
        end if;
    end loop;
    for t in select c.oid from pg_catalog.pg_class c
             where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r' and not c.relrowsecurity loop
        execute format('alter table %s enable row level security', t);
    end loop;
    for f in select p.oid::regprocedure as signature, p.proname::text as name, p.proconfig as settings
             from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace and p.proname like 'esl\_%' loop
        -- A call takes milliseconds, the compilation of its plan a hundred of them, in every session anew.
        if not 'jit=off' = any (coalesce(f.settings, '{}')) then
            execute format('alter function %s set jit = off', f.signature);
        end if;
        execute format('revoke all on function %s from public', f.signature);
        for r in select rolname from pg_catalog.pg_roles
                 where rolname in ('anon', 'authenticated') or rolname in (select c.role from esl.callers() c)
                 order by 1 loop
            if esl.may_call(r, f.name) then
                execute format('grant execute on function %s to %I', f.signature, r);
            else
                execute format('revoke all on function %s from %I', f.signature, r);
            end if;
        end loop;
        if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
            execute format('grant execute on function %s to service_role', f.signature);
        end if;
    end loop;
    notify pgrst, 'reload schema';
end $$;

-- {} -> {"version": n, "build": n, "functions": digest}: the handshake at start, and the receiver's health check.
-- Number and digest of these files are kept as the schema's comment, so that code and functions of different builds
-- never work together, and the older of the two knows it.
create or replace function public.esl_version(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('version', coalesce(max(version), 0),
                              'build', coalesce(substring(n.comment from '^([0-9]{1,9}) ')::int, 0),
                              'functions', substring(n.comment from '[^ ]+$'))
    from (select pg_catalog.obj_description('esl'::regnamespace, 'pg_namespace') as comment) n
    left join esl.schema_migrations on true group by n.comment
$$;

-- functions: alerts.sql
-- Alerts: their history, and their way to each address, at least once.

create or replace function esl.severity_rank(p_severity text) returns int
language sql immutable set search_path = '' as $$
    select array_position('{info,warning,critical}'::text[], p_severity)
$$;

-- What becomes of alerts (see esl_alert_record), of each the current one of its key.
create or replace function esl.alerts_change(p_changes jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.alerts as a (key, kind, subject, severity, since, says, todo, link, labels, shops, opened_at)
    select c.key, c.kind, c.subject, c.severity, c.since, c.says, c.todo, c.link, coalesce(c.labels, 0),
           coalesce(c.shops, '{}'), case c."do" when 'open' then clock_timestamp() end
    from jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" in ('see', 'open', 'keep') order by c.key
    on conflict (key) where closed_at is null do update
    set severity = excluded.severity, says = excluded.says, todo = excluded.todo, link = excluded.link,
        labels = excluded.labels, shops = excluded.shops, gone_at = null,
        opened_at = coalesce(a.opened_at, excluded.opened_at);

    update esl.alerts a set gone_at = coalesce(a.gone_at, clock_timestamp())
    from jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" = 'gone' and a.key = c.key and a.closed_at is null;

    update esl.alerts a set closed_at = clock_timestamp()
    from jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" = 'close' and a.key = c.key and a.closed_at is null and a.opened_at is not null;

    delete from esl.alerts a using jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" = 'forget' and a.key = c.key and a.closed_at is null and a.opened_at is null;
end $$;

-- {changes: [...] (esl.alert_row), recipients: [{name, severity}]} -> {}. see: not told yet. open: to be told. keep: it
-- has other words. gone: it seems to be over. close: it is. forget: it was over before it was told. Every recipient is
-- told of each open alert that is severe enough for it, and of the end of what it was to be told of; where sending to
-- it fails, what is new waits for the next try as well.
create or replace function public.esl_alert_record(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    perform esl.alerts_change(p -> 'changes');
    insert into esl.alert_deliveries (alert_id, event, recipient, next_at)
    select a.id, e.event, r.name, greatest(now(), (
               select max(d.next_at) from esl.alert_deliveries d where d.recipient = r.name and d.sent_at is null))
    from (select * from esl.alerts where closed_at is null and opened_at is not null
          union all select * from esl.alerts where closed_at > now() - interval '1 hour') a
    cross join jsonb_populate_recordset(null::esl.recipient_row, p -> 'recipients') r
    cross join lateral (select case when a.closed_at is null then 'opened' else 'closed' end) e (event)
    where case e.event
          when 'opened' then esl.severity_rank(a.severity) >= esl.severity_rank(r.severity)
          else exists (select from esl.alert_deliveries d
                       where d.alert_id = a.id and d.recipient = r.name and d.event = 'opened') end
    order by a.id, r.name
    on conflict (alert_id, recipient, event) do nothing;
    return '{}';
end $$;

-- {claim_id, recipients: [names], critical_only, limit, seconds} -> {deliveries: [{id, recipient, event, attempts,
-- alert: {...}}]}: leases what is to be sent to these now, of each the oldest so many, for so many seconds; the same to
-- who asks again. critical_only: the rest waits.
create or replace function public.esl_alert_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    update esl.alert_deliveries d
    set claim_id = (p ->> 'claim_id')::uuid, attempts = attempts + 1,
        lease_until = clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8)
    from (select x.id from jsonb_array_elements_text(p -> 'recipients') r (name) cross join lateral (
              select o.id from esl.alert_deliveries o join esl.alerts a on a.id = o.alert_id
              where o.recipient = r.name and o.sent_at is null and o.next_at <= now()
                and coalesce(o.lease_until <= clock_timestamp(), true)
                and (a.severity = 'critical' or not (p ->> 'critical_only')::boolean)
              order by o.created_at, o.alert_id limit (p ->> 'limit')::int for update of o skip locked) x) due
    where d.id = due.id
      and not exists (select from esl.alert_deliveries c where c.claim_id = (p ->> 'claim_id')::uuid);
    return jsonb_build_object('deliveries', (
        select coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'recipient', d.recipient, 'event', d.event,
                                                     'attempts', d.attempts, 'alert', to_jsonb(a))
                                  order by d.recipient, d.created_at, d.alert_id), '[]')
        from esl.alert_deliveries d join esl.alerts a on a.id = d.alert_id
        where d.claim_id = (p ->> 'claim_id')::uuid and d.sent_at is null));
end $$;

-- {claim_id, told: [{recipient, error?, again_seconds?}]} -> {}: how it ended. Where it failed, all that waits for that
-- recipient is tried again then.
create or replace function public.esl_alert_sent(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    update esl.alert_deliveries d
    set sent_at = case when t.error is null then clock_timestamp() end, last_error = t.error, claim_id = null,
        lease_until = null, next_at = case when t.error is null then d.next_at else clock_timestamp() end
    from jsonb_populate_recordset(null::esl.told_row, p -> 'told') t
    where d.claim_id = (p ->> 'claim_id')::uuid and d.recipient = t.recipient;
    update esl.alert_deliveries d
    set next_at = greatest(d.next_at, clock_timestamp() + make_interval(secs => t.again_seconds))
    from jsonb_populate_recordset(null::esl.told_row, p -> 'told') t
    where d.recipient = t.recipient and t.error is not null and d.sent_at is null;
    return '{}';
end $$;

-- {open?, limit} -> {alerts: [{..., told: [{recipient, event, sent_at, attempts, last_error}]}]}: those that people are
-- told of, open ones first, then the newest. open: no others.
create or replace function public.esl_alert_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('alerts', coalesce(jsonb_agg(
               to_jsonb(t) || jsonb_build_object('told', (
                   select coalesce(jsonb_agg(to_jsonb(d) - '{id,alert_id,claim_id,lease_until}'::text[]
                                             order by d.recipient, d.created_at), '[]')
                   from esl.alert_deliveries d where d.alert_id = t.id))
               order by t.closed_at is not null, t.id desc), '[]'))
    from (select a.* from esl.alerts a
          where a.opened_at is not null and (a.closed_at is null or (p ->> 'open')::boolean is not true)
          order by a.closed_at is not null, a.id desc limit (p ->> 'limit')::int) t
$$;

-- functions: audit.sql
-- What is told of the past: from a label back to its pushes, variant and webhooks; who changed which mapping.

-- {code, store?, limit} -> {places: [{store_code, label_server, ledger, queue, grace, variants, log, deliveries,
-- forgotten}]}: from a label back to its pushes, runs, variant and webhooks. Newest log rows first. queue: with why it
-- waits (why, until: esl.why_waiting). grace: where its
-- removal waits, with the physical labels that are bound to it. forgotten: how many webhooks are gone.
create or replace function public.esl_trace(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with places as (
        select distinct store_code from (
            select store_code, code from esl.labels
            union all select store_code, code from esl.hipoink_products
            union all select store_code, code from esl.sync_log) x
        where x.code = p ->> 'code' and (p ->> 'store' is null or x.store_code = p ->> 'store')
    ), log as (
        select s.store_code, l.* from places s cross join lateral (
            select l.id, l.at, l.kind, l.push_id, l.mapping_id, l.variant_id, l.operation, l.label, l.attempt,
                   l.run_id, l.asset, l.partition, l.event_ids, l.outcome, l.http_status, l.error_code, l.message,
                   l.answer, l.duration_ms
            from esl.sync_log l where l.store_code = s.store_code and l.code = p ->> 'code'
            order by l.id desc limit (p ->> 'limit')::int) l
    )
    select jsonb_build_object('places', coalesce(jsonb_agg(jsonb_build_object(
        'store_code', s.store_code, 'label_server', esl.server_of(s.store_code),
        'ledger', (select to_jsonb(h) from esl.hipoink_products h
                   where h.store_code = s.store_code and h.code = p ->> 'code'),
        'refresh', (select esl.refresh_after(h.store_code, h.accepted_at) from esl.hipoink_products h
                    where h.store_code = s.store_code and h.code = p ->> 'code'),
        'queue', (select to_jsonb(q) || to_jsonb(y)
                  from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
                  cross join lateral esl.why_waiting(q, m, esl.window_opens(m.settings -> 'raise_window')) y
                  where q.store_code = s.store_code and q.code = p ->> 'code'),
        'grace', (select to_jsonb(g) || jsonb_build_object('bound', esl.bound_labels(g.store_code, g.code))
                  from esl.graces g where g.store_code = s.store_code and g.code = p ->> 'code'),
        'variants', (select coalesce(jsonb_agg(to_jsonb(o) || jsonb_build_object(
                             'mapping_id', m.id, 'label_state', b.state, 'collides', b.collides,
                             'file', esl.file_of(o),
                             'findings', (select coalesce(jsonb_agg(to_jsonb(f) order by f.check_name), '[]')
                                 from esl.findings f where f.mapping_id = m.id and f.variant_id = o.variant_id
                                   and f.resolved_at is null))), '[]')
                     from esl.store_mappings m
                     join esl.products o on o.source_system = m.source_system
                                        and o.source_store_id = m.source_store_id
                     left join esl.labels b on b.mapping_id = m.id and b.variant_id = o.variant_id
                     where (m.id, o.variant_id) in (
                         select l.mapping_id, l.variant_id from log l where l.store_code = s.store_code
                         union select l.mapping_id, l.variant_id from esl.labels l
                         where l.store_code = s.store_code and l.code = p ->> 'code')),
        'log', (select coalesce(jsonb_agg(to_jsonb(l) order by l.id desc), '[]') from log l
                where l.store_code = s.store_code),
        'deliveries', (select coalesce(jsonb_agg(jsonb_build_object(
                               'id', i.id, 'topic', i.topic, 'webhook_id', i.webhook_id, 'event_id', i.event_id,
                               'triggered_at', i.triggered_at, 'received_at', i.received_at, 'state', i.state,
                               'run_id', i.run_id) order by i.id desc), '[]')
                       from esl.webhook_inbox i where i.id in (
                           select unnest(l.event_ids) from log l where l.store_code = s.store_code)),
        'forgotten', (select count(distinct e.id) from log l cross join lateral unnest(l.event_ids) e (id)
                      where l.store_code = s.store_code
                        and not exists (select from esl.webhook_inbox i where i.id = e.id))
        ) order by s.store_code), '[]')) from places s
$$;

-- Kept with each change of a mapping, in its transaction. A call that changes nothing leaves no row.
create or replace function esl.note_change(p_by text, p_old jsonb, p_new jsonb) returns void
language sql set search_path = '' as $$
    insert into esl.mapping_changes (by, mapping_id, old, new)
    select coalesce(p_by, 'role:' || session_user), (p_new ->> 'id')::uuid, p_old, p_new
    where p_old is null or p_old - 'updated_at' <> p_new - 'updated_at'
$$;

-- {store?, limit} -> {changes: [{at, by, mapping_id, old, new}]}: who made and changed the mappings, newest first.
create or replace function public.esl_mapping_history(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('changes', coalesce(jsonb_agg(to_jsonb(c) - 'id' order by c.id desc), '[]')) from (
        select * from esl.mapping_changes
        where p ->> 'store' is null
           or p ->> 'store' in (old ->> 'hipoink_store_code', new ->> 'hipoink_store_code')
        order by id desc limit (p ->> 'limit')::int) c
$$;

-- The trigger function of every append-only table.
create or replace function esl.refuse_change() returns trigger language plpgsql set search_path = '' as $$
begin
    raise exception '%.% is append-only', tg_table_schema, tg_table_name using errcode = '42501';
end $$;

-- functions: calls.sql
-- Calls at a label server: how many at a time and how fast, over all runs, and which batches are under way.

-- Whether a call of the background ({background: {share, patient}}, and as for esl_rate_take) has to wait, without a
-- place in line: for its share of the pace, for another one, and while it is patient for whoever pushes prices: it
-- needs the pace free, and leaves a call free beside it.
create or replace function esl.must_yield(p jsonb) returns boolean
language sql stable set search_path = '' as $$
    select not exists (select from esl.calls o where o.call_id = (p ->> 'call_id')::uuid)
       and (coalesce(s.background_at > clock_timestamp(), false)
            or exists (select from esl.calls c where c.server = s.server and c.is_background)
            or ((p #>> '{background,patient}')::boolean
                and (coalesce(s.next_slot > clock_timestamp(), false)
                     or (select count(*) from esl.calls c where c.server = s.server)
                        >= greatest(1, (p ->> 'concurrency')::int - 1))))
    from esl.label_servers s where s.server = p ->> 'server'
$$;

-- {server, rate_per_second, concurrency, call_id, recorded_as?, background?, ended?, seconds} -> {wait_seconds,
-- is_next}: a call of a label server may begin in so many seconds, for at most `seconds`; null: as many as may be are
-- in flight or asked earlier, ask again, soon if it is the next one. Whoever does not ask again for some seconds loses
-- its place. ended: calls that are over.
create or replace function public.esl_rate_take(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_server text := p ->> 'server';
    v_call   uuid := (p ->> 'call_id')::uuid;
    v_step   interval := make_interval(secs => 1 / (p ->> 'rate_per_second')::float8);
    v_asked  timestamptz;
    v_before bigint;
    v_slot   timestamptz;
begin
    insert into esl.label_servers (server) values (v_server) on conflict do nothing;
    perform from esl.label_servers where server = v_server for update;

    perform public.esl_rate_give(p);
    delete from esl.calls where server = v_server and until < clock_timestamp();
    if p -> 'background' is not null and esl.must_yield(p) then
        return '{"wait_seconds": null, "is_next": false}';
    end if;
    insert into esl.calls as c (call_id, recorded_as, server, asked_at, until, is_background)
    values (v_call, (p ->> 'recorded_as')::uuid, v_server, clock_timestamp(), clock_timestamp() + interval '5 seconds',
            p -> 'background' is not null)
    on conflict (call_id) do update set until = excluded.until
    returning c.asked_at into v_asked;
    select count(*) into v_before from esl.calls c
    where c.server = v_server and (c.asked_at, c.call_id) < (v_asked, v_call);
    if v_before >= (p ->> 'concurrency')::int then
        return jsonb_build_object('wait_seconds', null, 'is_next', v_before = (p ->> 'concurrency')::int);
    end if;

    update esl.label_servers
    set next_slot = greatest(next_slot, clock_timestamp()) + v_step,
        background_at = case when p -> 'background' is null then background_at
            else greatest(next_slot, clock_timestamp()) + v_step / (p #>> '{background,share}')::float8 end
    where server = v_server returning next_slot - v_step into v_slot;
    update esl.calls set until = v_slot + make_interval(secs => (p ->> 'seconds')::float8) where call_id = v_call;
    update esl.flights set begun_at = v_slot where push_id = (p ->> 'recorded_as')::uuid and begun_at is null;
    return jsonb_build_object('wait_seconds', greatest(0, extract(epoch from v_slot - clock_timestamp())::float8),
                              'is_next', true);
end $$;

-- {ended?} -> {}: these calls are over.
create or replace function public.esl_rate_give(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    delete from esl.calls where call_id in (
        select e.id::uuid from jsonb_array_elements_text(coalesce(p -> 'ended', '[]')) as e (id));
    return '{}';
end $$;

-- Whether other stores of its label server have had a turn lately: then one keeps a call free for them.
create or replace function esl.has_company(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.turns t join esl.store_mappings m on m.id::text = t.party
                   where t.queue = 'push' and t.taken_at > now() - interval '30 seconds'
                     and m.hipoink_store_code <> p_store
                     and esl.server_of(m.hipoink_store_code) = esl.server_of(p_store))
$$;

-- What is under way of a store keeps it from another batch, and how much. p: as for esl_push_claim; without concurrency
-- nothing does.
--   2  none now: a call of it takes longer than a second and than four usual ones, or its last one got no answer; or
--      enough of its batches wait for their calls; or it has as many as it may beside others: all calls but one
--   1  only after the others, because it has that many, or one that waits
create or replace function esl.crowded(p jsonb) returns table (store_code text, degree int)
language plpgsql stable set search_path = '' as $$
declare v_calls int := (p ->> 'concurrency')::int;
begin
    return query
        with under_way as (
            select f.store_code, count(*) >= greatest(1, v_calls - 1) as is_many,
                   count(*) filter (where coalesce(f.begun_at > clock_timestamp(), true)) as waiting,
                   bool_or(coalesce(h.unanswered, false)) or bool_or(coalesce(
                       clock_timestamp() - f.begun_at
                       > make_interval(secs => greatest(1, 4 * coalesce(h.usual_ms, 0) / 1000)), false)) as hangs
            from (select x.store_code, x.begun_at from esl.flights x
                  where x.label_server = esl.server_in(p) and x.until > now()
                  union all  -- a trigger is a call as well, though no sign of a slow one
                  select r.store_code, clock_timestamp() from esl.refresh_marks r
                  where r.lease_until > now() and esl.server_of(r.store_code) = esl.server_in(p)) f
            left join esl.store_health h on h.store_code = f.store_code
            where v_calls is not null
            group by f.store_code
        )
        select u.store_code, case
            when u.hangs or u.waiting >= greatest(1, v_calls / 2)
                 or (u.is_many and esl.has_company(u.store_code)) then 2
            when u.is_many or u.waiting > 0 then 1
            else 0 end
        from under_way u;
end $$;

-- How long the pace of a label server keeps back a claim for the next call; none where it may be made now.
create or replace function esl.until_next_call(p_server text) returns interval
language sql volatile set search_path = '' as $$
    select s.next_slot - interval '20 milliseconds' - clock_timestamp() from esl.label_servers s
    where s.server = p_server and s.next_slot > clock_timestamp() + interval '20 milliseconds'
$$;

-- The fewest labels that are worth a batch of a store now: one, or as many as a call takes (p_full) where the batch
-- would wait for its call to begin, for until then more may come. p: as for esl_push_claim.
create or replace function esl.fewest_labels(p jsonb, p_store text, p_full int) returns int
language sql volatile set search_path = '' as $$
    select case when count(*) filter (where f.run_id = p ->> 'run_id') >= (p ->> 'concurrency')::int
                  or bool_or(f.store_code = p_store and coalesce(f.begun_at > clock_timestamp(), true))
                  or (p ->> 'concurrency' is not null and esl.until_next_call(esl.server_in(p)) is not null)
                then p_full else 1 end
    from esl.flights f
    where f.label_server = esl.server_in(p) and f.until > now() and p ->> 'concurrency' is not null
$$;

-- functions: catch_up.sql
-- Catching up without webhooks: up to when a shop's changes have been read, and what webhooks did not tell in full.

-- {shop, source} -> {at}: up to when the shop's changes have been read; null: never.
create or replace function public.esl_watermark_get(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('at', (select at from esl.watermarks
        where source_store_id = p #>> '{shop,source_store_id}' and source_system = p #>> '{shop,source_system}'
          and source = p ->> 'source'))
$$;

-- {shop, source, at} -> {at}. It only moves on, but from the future it comes back.
create or replace function public.esl_watermark_move(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with moved as (
        insert into esl.watermarks as w (source_system, source_store_id, source, at)
        values (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}', p ->> 'source',
                (p ->> 'at')::timestamptz)
        on conflict (source_store_id, source_system, source) do update
        set at = case when w.at > clock_timestamp() + interval '10 minutes' then excluded.at
                      else greatest(w.at, excluded.at) end
        returning at
    ) select jsonb_build_object('at', at) from moved
$$;

-- {shop, after?, limit} -> {products: [product ids]}: of which webhooks did not tell all, in order of id: variants that
-- were only named, or a body without any, or content that nobody has said yet; and those that another shop claims too,
-- or whose inventory item it does.
create or replace function public.esl_missing_variants(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('products', coalesce(jsonb_agg(product_id order by product_id), '[]')) from (
        (select v.product_id from esl.product_versions v
         where v.missing_variants > 0 and not v.deleted and v.product_id > coalesce(p ->> 'after', '')
           and v.source_store_id = p #>> '{shop,source_store_id}' and v.source_system = p #>> '{shop,source_system}'
         order by v.product_id limit (p ->> 'limit')::int)
        union
        (select o.product_id from esl.products o
         where o.unsaid <> '{}' and not o.removed and o.product_id > coalesce(p ->> 'after', '')
           and o.source_store_id = p #>> '{shop,source_store_id}' and o.source_system = p #>> '{shop,source_system}'
         group by o.product_id order by o.product_id limit (p ->> 'limit')::int)
        union
        (select c.product_id from esl.contests k cross join lateral (
             select substring(k.thing from '^product:(.*)$') as product_id
             union
             select o.product_id from esl.products o
             where o.inventory_item_id = substring(k.thing from '^inventory_item:(.*)$') and not o.removed
               and o.source_store_id = p #>> '{shop,source_store_id}' and o.source_system = k.source_system) c
         where k.owner is null and k.source_system = p #>> '{shop,source_system}'
           and p #>> '{shop,source_store_id}' = any (k.shops) and c.product_id > coalesce(p ->> 'after', '')
         order by c.product_id limit (p ->> 'limit')::int)
        order by product_id limit (p ->> 'limit')::int) t
$$;

-- functions: connections.sql
-- How shops are connected: who makes their webhook subscriptions, what arrives of them, and what is refused at the
-- door.

-- {source_system, source_store_id, subscriptions: "api" | "toml", anew?, by} -> the connection. The same again leaves
-- it as it is, and so its first webhook: awaited is it from a new connection on, one that had ended, another kind, or
-- when the caller says that it had to make or mend subscriptions (anew). 22023: no shop of the source, or no such kind.
create or replace function public.esl_connection_set(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare c esl.connections;
begin
    perform esl.check_shop(p ->> 'source_system', p ->> 'source_store_id');
    if p ->> 'subscriptions' in ('api', 'toml') is not true then
        raise exception 'subscriptions: % is neither api nor toml', coalesce(p ->> 'subscriptions', 'nothing')
            using errcode = '22023';
    end if;
    insert into esl.connections as o (source_system, source_store_id, subscriptions, connected_by)
    values (p ->> 'source_system', p ->> 'source_store_id', p ->> 'subscriptions',
            coalesce(p ->> 'by', 'role:' || session_user))
    on conflict (source_store_id, source_system) do update
    set subscriptions = excluded.subscriptions, connected_at = excluded.connected_at,
        connected_by = excluded.connected_by, db_user = excluded.db_user,
        first_webhook_at = null, ended_at = null, ended_by = null
    where o.ended_at is not null or o.subscriptions <> excluded.subscriptions or (p ->> 'anew')::boolean;
    select * into c from esl.connections o
    where o.source_system = p ->> 'source_system' and o.source_store_id = p ->> 'source_store_id';
    return to_jsonb(c) - 'db_user';
end $$;

-- {source_system, source_store_id, by} -> the connection, or null where there is none. One that has ended stays as it
-- is.
create or replace function public.esl_connection_end(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare c esl.connections;
begin
    perform esl.end_connection(p ->> 'source_system', p ->> 'source_store_id',
                               coalesce(p ->> 'by', 'role:' || session_user));
    select * into c from esl.connections o
    where o.source_system = p ->> 'source_system' and o.source_store_id = p ->> 'source_store_id';
    return case when found then to_jsonb(c) - 'db_user' end;
end $$;

create or replace function esl.end_connection(p_system text, p_shop text, p_by text) returns void
language sql volatile set search_path = '' as $$
    update esl.connections set ended_at = clock_timestamp(), ended_by = p_by
    where source_system = p_system and source_store_id = p_shop and ended_at is null
$$;

-- Of the deliveries that have just ended, the first of each connection that awaits one. In one order, so that no two
-- wait for each other in a circle.
create or replace function esl.note_first_webhooks(p_ended jsonb) returns void
language sql volatile set search_path = '' as $$
    update esl.connections c set first_webhook_at = f.first_at
    from (select o.source_system, o.source_store_id, e.first_at
          from esl.connections o cross join lateral (
              select min(d.received_at) as first_at
              from jsonb_populate_recordset(null::esl.ended_row, p_ended) d
              where d.source_system = o.source_system and d.source_store_id = o.source_store_id and d.n = 1
                and d.received_at >= o.connected_at) e
          where o.first_webhook_at is null and o.ended_at is null and e.first_at is not null
          order by 1, 2 for update of o) f
    where c.source_system = f.source_system and c.source_store_id = f.source_store_id
$$;

-- The newest delivery of a shop that waits; null: none.
create or replace function esl.newest_waiting(p_system text, p_shop text) returns esl.webhook_inbox
language sql stable set search_path = '' as $$
    select i from esl.webhook_inbox i
    where i.source_system = p_system and i.source_store_id = p_shop and i.state in ('ready', 'leased')
    order by i.id desc limit 1
$$;

-- When a shop's newest delivery with a good signature came.
create or replace function esl.last_webhook_at(p_system text, p_shop text) returns timestamptz
language sql stable set search_path = '' as $$
    select greatest((esl.newest_waiting(p_system, p_shop)).received_at,
                    (select d.last_received_at from esl.shop_deliveries d
                     where d.source_system = p_system and d.source_store_id = p_shop))
$$;

-- The signatures refused per shop that are still worth a word: of the last week, and those after which a good one came
-- of the last hour only. accepted_at: when the last good one came.
create or replace function esl.refused()
returns table (source_system text, source_store_id text, refused bigint, since timestamptz, last_at timestamptz,
               accepted_at timestamptz)
language sql stable set search_path = '' as $$
    select r.source_system, r.source_store_id, sum(r.refused)::bigint, min(r.since), max(r.last_at), max(a.at)
    from esl.refused_signatures r cross join lateral esl.last_webhook_at(r.source_system, r.source_store_id) a (at)
    where r.last_at > now() - interval '7 days'
      and (a.at is null or a.at < r.last_at or r.last_at > now() - interval '1 hour')
    group by 1, 2
$$;

-- {shops?: [{source_system, source_store_id}]} -> {connections: [{source_system, source_store_id, subscriptions,
-- formerly, connected_at, connected_by, ended_at, ended_by, first_webhook_at, last_webhook_at, last_api_version,
-- is_active, refused, refused_since, last_refused_at}]}: of all shops that are connected or mapped, or of these.
-- subscriptions: null where the connection has ended (formerly has them then) or never was made by us. is_active:
-- whether a mapping of the shop is.
create or replace function public.esl_connection_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('connections', coalesce(
        jsonb_agg(to_jsonb(t) order by t.source_system, t.source_store_id), '[]'))
    from (
        select k.source_system, k.source_store_id,
               case when c.ended_at is null then c.subscriptions end as subscriptions,
               case when c.ended_at is not null then c.subscriptions end as formerly,
               c.connected_at, c.connected_by, c.ended_at, c.ended_by,
               coalesce(c.first_webhook_at, (
                   select min(i.received_at) from esl.webhook_inbox i
                   where i.source_system = k.source_system and i.source_store_id = k.source_store_id
                     and i.state in ('ready', 'leased') and i.received_at >= c.connected_at)) as first_webhook_at,
               esl.last_webhook_at(k.source_system, k.source_store_id) as last_webhook_at,
               coalesce((esl.newest_waiting(k.source_system, k.source_store_id)).api_version, d.last_api_version)
                   as last_api_version,
               esl.has_active_mapping(k.source_system, k.source_store_id) as is_active,
               coalesce(r.refused, 0) as refused, r.since as refused_since, r.last_at as last_refused_at
        from (select source_system, source_store_id from esl.connections
              union select source_system, source_store_id from esl.store_mappings where removed_at is null) k
        left join esl.connections c using (source_system, source_store_id)
        left join esl.shop_deliveries d using (source_system, source_store_id)
        left join esl.refused() r using (source_system, source_store_id)
        where p -> 'shops' is null or (k.source_system, k.source_store_id) in (
            select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops'))) t
$$;

-- {receiver, refused: [{source_system, source_store_id, refused, since, last_at}]} -> {mapped: [{source_system,
-- source_store_id}]}: what a receiver's process has counted of wrong signatures, and the shops to count for. Told every
-- few seconds whatever came, so that nobody outside can cause a call. Only mapped shops are kept, and no time ahead of
-- ours. 22023: none that a receiver sends.
create or replace function public.esl_refusals_note(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    if length(p ->> 'receiver') between 1 and 64 is not true or jsonb_array_length(p -> 'refused') > 1000 then
        raise exception 'receiver must be a name, and refused tell of at most 1000 shops' using errcode = '22023';
    end if;
    perform esl.measure_refused(p);
    insert into esl.refused_signatures as o (source_system, source_store_id, receiver, refused, since, last_at)
    select r.source_system, r.source_store_id, p ->> 'receiver', max(r.refused), least(min(r.since), now()),
           least(max(r.last_at), now())
    from jsonb_populate_recordset(null::esl.refused_row, p -> 'refused') r
    where r.refused > 0 and r.since is not null and r.last_at is not null
      and esl.is_mapped(r.source_system, r.source_store_id)
    group by 1, 2 order by 1, 2
    on conflict (source_store_id, source_system, receiver) do update
    set refused = excluded.refused, since = excluded.since, last_at = excluded.last_at;
    delete from esl.refused_signatures where last_at < now() - interval '7 days';
    return jsonb_build_object('mapped', (
        select coalesce(jsonb_agg(to_jsonb(m) order by m.source_system, m.source_store_id), '[]')
        from (select distinct source_system, source_store_id from esl.store_mappings
              where removed_at is null) m));
end $$;

-- functions: console.sql
-- For staff at a shelf: what somebody means who types or scans a code, a SKU or words of a title.

-- Each word, and the beginning of each word, as to_tsquery reads it; null: there is none.
create or replace function esl.words_of(p_text text) returns tsquery
language sql immutable set search_path = '' as $$
    select to_tsquery('simple', string_agg('''' || w.word || ''':*', ' & '))
    from regexp_split_to_table(translate(left(p_text, 200), '''\', '  '), '\s+') w (word) where w.word <> ''
$$;

-- Of an earlier build.
drop function if exists esl.meant(text[], text, int);

-- Whether a shop feeds this store, or has left labels there; of any store: whether it is mapped.
create or replace function esl.feeds(p_system text, p_shop text, p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from esl.store_mappings m left join esl.left_stores l on l.mapping_id = m.id
        where m.source_store_id = p_shop and m.source_system = p_system and m.removed_at is null
          and (p_store is null or p_store in (m.hipoink_store_code, l.store_code)))
$$;

-- Variants that a search may mean, of each kind no more than p_limit: 1 by code, also of labels whose product has left,
-- 2 by the beginning of barcode or SKU, 3 by words. p_codes: all forms of the code, p_text: as it was typed; p_store:
-- of that store alone, or null.
create or replace function esl.meant(p_codes text[], p_text text, p_limit int, p_store text)
returns table (how int, mapping_id uuid, variant_id text, code text)
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
    (select 1, b.mapping_id, b.variant_id, b.code from esl.labels b
     where b.code = any (p_codes) and (p_store is null or b.store_code = p_store) limit p_limit)
    union
    (select 1, h.mapping_id, h.variant_id, h.code from esl.hipoink_products h
     where h.code = any (p_codes) and (p_store is null or h.store_code = p_store) limit p_limit)
    union
    select o.how, m.id, o.variant_id, null from (
        (select 2 as how, o.source_system, o.source_store_id, o.variant_id from esl.products o
         where o.barcode ~>=~ p_text and o.barcode ~<~ (p_text || chr(1114111)) and o.barcode <> ''
           and esl.feeds(o.source_system, o.source_store_id, p_store) limit p_limit)
        union
        (select 2, o.source_system, o.source_store_id, o.variant_id from esl.products o
         where lower(o.sku) ~>=~ lower(p_text) and lower(o.sku) ~<~ (lower(p_text) || chr(1114111)) and o.sku <> ''
           and esl.feeds(o.source_system, o.source_store_id, p_store) limit p_limit)
        union
        (select 3, o.source_system, o.source_store_id, o.variant_id from esl.products o
         where to_tsvector('simple', coalesce(o.title, '') || ' ' || coalesce(o.variant_title, ''))
               @@ esl.words_of(p_text) and esl.feeds(o.source_system, o.source_store_id, p_store) limit p_limit)) o
    join esl.store_mappings m on m.source_system = o.source_system and m.source_store_id = o.source_store_id
                             and m.removed_at is null;
end $$;

-- {codes, text, store?, limit} -> {found: [{store_code, code, mapping_id, variant_id, source_store_id, title,
-- variant_title, sku, barcode, price, removed, shown, accepted_at, state, wanted, operation, last_error, label_state,
-- collides, held: {reason, action}}]}: the places of what is meant, the surest first. shown: the price that the label
-- server has accepted; state: of what waits there, null: nothing does; held: why there is no label, or no new one.
create or replace function public.esl_console_search(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with meant as (
        select distinct on (f.mapping_id, f.variant_id, coalesce(f.code, b.code))
               f.how, f.mapping_id, f.variant_id, coalesce(f.code, b.code) as code, b.state as label_state, b.collides
        from esl.meant(array(select jsonb_array_elements_text(p -> 'codes')), p ->> 'text', (p ->> 'limit')::int,
                       p ->> 'store') f
        left join esl.labels b on b.variant_id = f.variant_id and b.mapping_id = f.mapping_id
        order by f.mapping_id, f.variant_id, coalesce(f.code, b.code), f.how
    )
    select jsonb_build_object('found', coalesce(jsonb_agg(to_jsonb(t) - 'how'), '[]')) from (
        select f.how, coalesce(h.store_code, m.hipoink_store_code) as store_code, f.code, f.mapping_id, f.variant_id,
               m.source_store_id, o.title, o.variant_title, o.sku, o.barcode, o.price, o.removed,
               esl.price_of(h.label)::text as shown, h.accepted_at, q.state, esl.price_of(q.label)::text as wanted,
               q.operation, q.last_error, f.label_state, f.collides, (
                   select jsonb_build_object('reason', e.reason, 'action', e.action) from esl.findings e
                   where e.variant_id = f.variant_id and e.mapping_id = f.mapping_id and e.level = 'error'
                     and e.resolved_at is null order by e.check_name limit 1) as held
        from meant f
        join esl.store_mappings m on m.id = f.mapping_id
        left join esl.products o on o.variant_id = f.variant_id and o.source_store_id = m.source_store_id
                                and o.source_system = m.source_system
        left join esl.hipoink_products h on h.code = f.code and h.mapping_id = f.mapping_id
        left join esl.sync_queue q on q.code = f.code
                                  and q.store_code = coalesce(h.store_code, m.hipoink_store_code)
        where (h.code is not null or q.code is not null or not coalesce(o.removed, true))
          and (p ->> 'store' is null or coalesce(h.store_code, m.hipoink_store_code) = p ->> 'store')
        order by f.how, o.title, o.variant_title, store_code, f.code limit (p ->> 'limit')::int) t
$$;

-- functions: counters.sql
-- Small counters instead of counting what is over.

-- Keeps esl.shop_waiting and esl.shop_deliveries after each statement that adds, changes or deletes deliveries: a row
-- per shop, in one order, so that no two wait for each other in a circle. What has ended and is deleted stays counted.
-- n: 1 for what a delivery is now, -1 for what it was before.
create or replace function esl.count_deliveries() returns trigger language plpgsql set search_path = '' as $$
declare v_ended jsonb; v_waiting jsonb;
begin
    if tg_op = 'INSERT' then
        select jsonb_agg(to_jsonb(e)) into v_waiting from (
            select source_system, source_store_id, count(*) as n, sum(octet_length(body)) as bytes
            from added where state in ('ready', 'leased') group by 1, 2) e;
        select jsonb_agg(to_jsonb(e)) into v_ended from (
            select id, source_system, source_store_id, received_at, api_version, state, reason, proven, 1 as n
            from added where state not in ('ready', 'leased')) e;
    elsif tg_op = 'UPDATE' then
        select jsonb_agg(to_jsonb(e)) into v_waiting from (
            select i.source_system, i.source_store_id, sum(s.n) as n, sum(s.n * octet_length(s.body)) as bytes
            from was w join is_now i using (id)
            cross join lateral (values (i.state, i.body, 1), (w.state, w.body, -1)) s (state, body, n)
            where (w.state in ('ready', 'leased')) <> (i.state in ('ready', 'leased'))
              and s.state in ('ready', 'leased')
            group by 1, 2) e;
        select jsonb_agg(to_jsonb(e)) into v_ended from (
            select i.id, i.source_system, i.source_store_id, i.received_at, i.api_version, s.state, s.reason, i.proven,
                   s.n
            from was w join is_now i using (id)
            cross join lateral (values (i.state, i.reason, 1), (w.state, w.reason, -1)) s (state, reason, n)
            where w.state <> i.state and s.state not in ('ready', 'leased')) e;
    else
        select jsonb_agg(to_jsonb(e)) into v_waiting from (
            select source_system, source_store_id, -count(*) as n, -sum(octet_length(body)) as bytes
            from gone where state in ('ready', 'leased') group by 1, 2) e;
    end if;
    if v_waiting is not null then
        perform esl.count_waiting(v_waiting);
    end if;
    if v_ended is not null then
        perform esl.count_ended(v_ended);
        if exists (select from esl.connections c where c.first_webhook_at is null) then
            perform esl.note_first_webhooks(v_ended);
        end if;
    end if;
    return null;
end $$;

create or replace function esl.count_waiting(p_waiting jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.shop_waiting as o (source_system, source_store_id, slot, deliveries, bytes)
    select e.source_system, e.source_store_id, pg_backend_pid() % 16, e.n, coalesce(e.bytes, 0)
    from jsonb_populate_recordset(null::esl.waiting_row, p_waiting) e
    order by 1, 2
    on conflict (source_store_id, source_system, slot) do update
    set deliveries = o.deliveries + excluded.deliveries, bytes = o.bytes + excluded.bytes;
end $$;

create or replace function esl.count_ended(p_ended jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.shop_deliveries as o (source_system, source_store_id, done, superseded, unusable, replays, dead,
                                          last_received_at, refused_in_a_row, last_refusal, own_secret,
                                          last_api_version)
    select e.source_system, e.source_store_id,
           coalesce(sum(n) filter (where state = 'done'), 0),
           coalesce(sum(n) filter (where state = 'superseded'), 0),
           coalesce(sum(n) filter (where state = 'unusable'), 0),
           coalesce(sum(n) filter (where state = 'unusable' and reason like 'replay suspected%'), 0),
           coalesce(sum(n) filter (where state = 'dead'), 0), max(received_at),
           count(*) filter (where is_refusal and id > last_used),
           (array_agg(reason order by id desc) filter (where is_refusal))[1],
           (array_agg(proven order by id desc))[1],
           (array_agg(api_version order by id desc) filter (where api_version is not null))[1]
    from (select d.*, d.n = 1 and d.state in ('unusable', 'dead') as is_refusal,
                 coalesce(max(d.id) filter (where d.n = 1 and d.state in ('done', 'superseded'))
                          over (partition by d.source_system, d.source_store_id), 0) as last_used
          from jsonb_populate_recordset(null::esl.ended_row, p_ended) d) e
    group by 1, 2 order by 1, 2
    on conflict (source_system, source_store_id) do update
    set done = o.done + excluded.done, superseded = o.superseded + excluded.superseded,
        unusable = o.unusable + excluded.unusable, replays = o.replays + excluded.replays,
        dead = o.dead + excluded.dead, last_received_at = greatest(o.last_received_at, excluded.last_received_at),
        refused_in_a_row = excluded.refused_in_a_row
            + case when excluded.done + excluded.superseded > 0 then 0 else o.refused_in_a_row end,
        last_refusal = coalesce(excluded.last_refusal, o.last_refusal), own_secret = excluded.own_secret,
        last_api_version = coalesce(excluded.last_api_version, o.last_api_version);
end $$;

-- How much of a shop's waits.
create or replace function esl.waiting(p_system text, p_shop text, out deliveries bigint, out bytes bigint)
language sql stable set search_path = '' as $$
    select coalesce(sum(w.deliveries), 0), coalesce(sum(w.bytes), 0) from esl.shop_waiting w
    where w.source_store_id = p_shop and w.source_system = p_system
$$;

-- functions: decide.sql
-- The queue's decision: what is to happen to the label of each place (who wins a place: duplicates.sql).

-- The given (store, code) places with all that their decisions rest on, once each.
create or replace function esl.places(p_stores text[], p_codes text[]) returns setof esl.place_row
language sql stable set search_path = '' as $$
    with keys as (
        select distinct k.store_code, k.code from unnest(p_stores, p_codes) as k (store_code, code)
        where k.code is not null
    ), winners as materialized (
        -- Of equal labels one stands for all. wins is null where nobody publishes.
        select distinct on (c.store_code, c.code) c.store_code, c.code, c.mapping_id, c.variant_id, c.wins
        from esl.claims(p_stores, p_codes) c
        where c.publishes order by c.store_code, c.code, c.wins desc, c.place
    )
    select k.store_code, k.code,
           w.wins, l.mapping_id, l.variant_id, l.label, l.label_hash, l.event_ids, l.cause,
           s.label, s.label_hash, s.code is not null, (s.mapping_id, s.variant_id) = (l.mapping_id, l.variant_id),
           q.operation, q.label, q.label_hash, q.mapping_id, q.variant_id,
           q.event_ids, q.cause, coalesce(q.in_doubt or q.state = 'leased', false),
           x.mapping_id, x.variant_id, o.event_ids, o.cause, m.hipoink_store_code = k.store_code,
           o.state in ('held', 'kept') or o.collides, not m.is_active and coalesce(m.leaving = 'keep', true),
           case when o.state = 'blank' then esl.blanked(coalesce(s.label, q.label)) end,
           g.decided_at, g.since, esl.has_passed(g, s.label_hash)
    from keys k
    left join winners w on w.store_code = k.store_code and w.code = k.code
    left join esl.labels l on w.wins and l.mapping_id = w.mapping_id and l.variant_id = w.variant_id
    left join esl.hipoink_products s on s.store_code = k.store_code and s.code = k.code
    left join esl.sync_queue q on q.store_code = k.store_code and q.code = k.code
    left join esl.graces g on g.store_code = k.store_code and g.code = k.code
    cross join lateral (select coalesce(s.mapping_id, q.mapping_id) as mapping_id,
                               coalesce(s.variant_id, q.variant_id) as variant_id) x
    left join esl.store_mappings m on m.id = x.mapping_id
    left join esl.labels o on o.mapping_id = x.mapping_id and o.variant_id = x.variant_id
$$;

-- What a label needs that is to stay as it is.
create or replace function esl.as_it_is(p esl.place_row) returns text
language sql immutable as $$  -- inlined
    select case
        when not p.in_doubt then 'nothing'
        when p.is_shown and (p.pending = 'delete' or esl.is_blanked(p.pending_hash)) then 'shown'
        else 'pending' end
$$;

-- What is to become of a place. This is the only place that decides what is pushed, whatever the occasion.
--   label    somebody wins: its label, unless the ledger holds it and nothing is in doubt (then: right)
--   pending  the label stays, but a push is in doubt: it goes out again ...
--   shown    ... unless it takes the label away: then what the ledger says
--   blank    its variant has left and wants it empty
--   removal  nobody wants it
--   grace    the same, but it waits (see esl.removal_waits and esl.during_grace)
--   forget   it is not ours, was to be removed, and no policy wants that any more
--   nothing  there is no label, or it stays as it is
-- A label stays while its variant is held back or kept, or nobody wins among those who claim its place, and as long as
-- its mapping is paused. What a mapping has left behind in another store does not stay.
create or replace function esl.what_is_due(p esl.place_row) returns text
language sql stable as $$  -- without a search_path of its own, so that it is inlined
    select case
        when p.wins and (p.in_doubt or p.shown_hash is distinct from p.label_hash) then 'label'
        when p.wins then 'right'
        when p.wins is null and not p.is_shown and not p.in_doubt then 'nothing'
        when not p.wins or p.is_paused or (p.is_home and p.is_kept) then esl.as_it_is(p)
        when p.owner_variant = '' and not p.in_doubt and not esl.store_is_owned(p.store_code) then 'forget'
        when p.is_home and p.blank is not null then
            case when not p.in_doubt and esl.is_blanked(p.shown_hash) then 'nothing' else 'blank' end
        when esl.removal_waits(p) then 'grace'
        else 'removal' end
$$;

-- Why a label is pushed: as it says itself, but where the code passes from one variant to another, or never had a
-- label: then the shop's own word, where there is one, and else that it is the first.
create or replace function esl.cause_of(p_what text, p_cause text, p_events bigint[], p_is_shown boolean,
                                        p_is_its_own boolean, p_store text, p_code text) returns text
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return case
        when p_what <> 'label' then p_cause
        when p_is_shown then case when p_is_its_own then p_cause else 'other variant' end
        when p_cause is null or (p_cause = 'new version' and p_events <> '{}') then p_cause
        when not exists (select from esl.sync_log l where l.code = p_code and l.store_code = p_store) then 'first fill'
        else p_cause end;
end $$;

-- What is to be pushed to each of the given (store, code) places (operation null: nothing), and how it counts. due: as
-- esl.what_is_due says; what: the same, but of one that waits what it needs meanwhile. rests: its mapping is paused.
create or replace function esl.decisions(p_stores text[], p_codes text[])
returns table (store_code text, code text, due text, what text, operation text, label jsonb, label_hash text,
               mapping_id uuid, variant_id text, event_ids bigint[], cause text, priority smallint, is_rise boolean,
               drastic text, shown jsonb, shown_hash text, owner_mapping uuid, waits_since timestamptz, rests boolean)
language sql stable set search_path = '' as $$
    with judged as materialized (  -- or each use of `due` would decide again
        select p as place, esl.what_is_due(p) as due from esl.places(p_stores, p_codes) p
    ), decided as materialized (
        select (j.place).*, j.due, case when j.due = 'grace' then esl.during_grace(j.place) else j.due end as what
        from judged j
    )
    select d.store_code, d.code, d.due, d.what, c.operation, c.label, c.label_hash, c.mapping_id, c.variant_id,
           coalesce(c.event_ids, '{}'),
           esl.cause_of(d.what, c.cause, c.event_ids, d.is_shown, d.is_its_own, d.store_code, d.code),
           case when d.in_doubt then 0  -- whatever puts right comes first
                when c.operation = 'delete' or esl.is_blanked(c.label_hash) then 3
                when esl.price_of(c.label) > esl.price_of(coalesce(d.shown, d.pending_label)) then 0
                when esl.price_of(c.label) < esl.price_of(coalesce(d.shown, d.pending_label)) then 1
                else 2 end::smallint,
           coalesce(d.what = 'label' and d.is_its_own and not d.in_doubt and not esl.is_blanked(d.shown_hash)
                    and esl.price_of(c.label) > esl.price_of(d.shown), false),
           case when c.operation is not null then
                esl.drastic_kind(c.operation, d.shown, d.shown_hash, c.label, c.label_hash, d.has_passed, m.settings)
                end,
           d.shown, d.shown_hash, d.owner_mapping, d.waits_since,
           coalesce(d.is_paused and d.due in ('nothing', 'shown', 'pending'), false)
    from decided d
    left join lateral (
        select 'upsert', d.label, d.label_hash, d.mapping_id, d.variant_id, d.event_ids, d.cause
        where d.what = 'label'
        union all
        select null, null, null, d.mapping_id, d.variant_id, null, null where d.what = 'right'
        union all
        select d.pending, d.pending_label, d.pending_hash, d.pending_mapping, d.pending_variant, d.pending_events,
               d.pending_cause
        where d.what = 'pending'
        union all
        select 'upsert', d.shown, d.shown_hash, d.owner_mapping, d.owner_variant, d.owner_events, d.owner_cause
        where d.what = 'shown'
        union all
        select 'upsert', b.label, esl.blank_hash(b.label), d.owner_mapping, d.owner_variant, d.owner_events,
               d.owner_cause
        from (select coalesce(d.blank, esl.blanked(d.shown)) as label) b where d.what = 'blank'
        union all
        select 'delete', null, null, d.owner_mapping, d.owner_variant, d.owner_events, d.owner_cause
        where d.what = 'removal'
    ) c (operation, label, label_hash, mapping_id, variant_id, event_ids, cause) on true
    left join esl.store_mappings m on m.id = c.mapping_id
$$;

-- Compares the given (store, code) places with the ledger and brings the queue in line (see esl.what_is_due). p_cause:
-- why what is queued now is; null: for the reason that its label has. What was queued already keeps its own.
create or replace function esl.requeue(p_stores text[], p_codes text[], p_cause text default null) returns void
language plpgsql set search_path = '' as $$
declare v_stores text[]; v_codes text[];
begin
    select p_stores || e.stores, p_codes || e.codes into v_stores, v_codes
    from esl.note_collisions(p_stores, p_codes) e;

    with decided as materialized (select * from esl.decisions(v_stores, v_codes)),
    dropped as (
        delete from esl.sync_queue q using decided d
        where q.store_code = d.store_code and q.code = d.code and d.operation is null
          and q.state <> 'leased' and not q.in_doubt
    ), forgotten as (
        delete from esl.hipoink_products s using decided d
        where s.store_code = d.store_code and s.code = d.code and d.what = 'forget'
    ), taken_over as (
        -- The label is right already, but was another variant's: from now on its new owner decides what becomes of it.
        update esl.hipoink_products s set mapping_id = d.mapping_id, variant_id = d.variant_id
        from decided d where s.store_code = d.store_code and s.code = d.code and d.what = 'right'
          and (s.mapping_id, s.variant_id) <> (d.mapping_id, d.variant_id)
    ), judged_again as (
        -- What is pushed stays the same; how it counts may not, after another policy, mode or ledger.
        update esl.sync_queue q set priority = d.priority, is_rise = d.is_rise, drastic = d.drastic,
            state = case when q.state = 'guarded' and d.drastic is null and q.rejected_at is null then 'ready'
                         else q.state end
        from decided d where q.store_code = d.store_code and q.code = d.code
          and (q.operation, q.label_hash, q.mapping_id, q.variant_id)
              is not distinct from (d.operation, d.label_hash, d.mapping_id, d.variant_id)
          and (q.priority, q.is_rise, q.drastic) is distinct from (d.priority, d.is_rise, d.drastic)
    ), waiting as (
        insert into esl.graces as g (store_code, code, since, until, label, label_hash)
        select d.store_code, d.code, w.since, esl.grace_until(d.owner_mapping, w.since), d.shown, d.shown_hash
        from decided d cross join lateral esl.wait_of(d.waits_since, d.what) w where d.due = 'grace'
        on conflict (code, store_code) do update set since = excluded.since, until = excluded.until
        where (g.since, g.until) is distinct from (excluded.since, excluded.until)
    ), waited as (
        update esl.graces g set until = null from decided d
        where g.store_code = d.store_code and g.code = d.code and (d.due = 'removal' or d.rests)
    ), stays as (
        delete from esl.graces g using decided d
        where g.store_code = d.store_code and g.code = d.code and not (d.due in ('grace', 'removal') or d.rests)
    )
    insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                     priority, is_rise, drastic, event_ids, cause)
    select store_code, code, mapping_id, variant_id, operation, label, label_hash, priority, is_rise, drastic,
           event_ids, coalesce(p_cause, cause) from decided where operation is not null
    on conflict (store_code, code) do update
    set mapping_id = excluded.mapping_id, variant_id = excluded.variant_id, operation = excluded.operation,
        label = excluded.label, label_hash = excluded.label_hash, priority = excluded.priority,
        is_rise = excluded.is_rise, drastic = excluded.drastic, event_ids = excluded.event_ids,
        cause = excluded.cause, queued_at = excluded.queued_at, generation = nextval('esl.revision'), attempts = 0,
        refused_at = null, refusals = 0, max_batch = 1000, approved = false, next_attempt_at = now(), last_error = null,
        rejected_at = null, state = case when q.state = 'leased' then 'leased' else 'ready' end
    where (q.operation, q.label_hash, q.mapping_id, q.variant_id)
       is distinct from (excluded.operation, excluded.label_hash, excluded.mapping_id, excluded.variant_id);

    perform esl.guard(store_code) from (select distinct unnest(v_stores) as store_code) touched;
end $$;

-- functions: devices.sql
-- Physical labels: a store's are read in passes, page by page. A page is merged where it differs and noted; the end of
-- a complete pass concludes. Whoever asks what a store has asks its newest complete pass (esl.complete_pass).

-- The newest complete pass of a store at the server where it is now; null: none.
create or replace function esl.complete_pass(p_store text) returns esl.device_passes
language sql stable set search_path = '' as $$
    select d from esl.device_passes d
    where d.store_code = p_store and d.state = 'complete' and d.label_server = esl.server_of(p_store)
    order by d.started_at desc limit 1
$$;

-- When a label was seen last: by the newest complete pass of its store, or the one that wrote its row.
create or replace function esl.device_seen_at(d esl.devices) returns timestamptz
language sql stable set search_path = '' as $$
    select case when d.gone_at is null then greatest(d.last_seen_at, (esl.complete_pass(d.store_code)).started_at)
                else d.last_seen_at end
$$;

-- Why the labels of a store are not read now, or null: {outcome, error, again_at}.
create or replace function esl.why_no_pass(p_store text, p_server text) returns jsonb
language sql stable set search_path = '' as $$
    select case
        when esl.server_of(p_store) <> p_server then
            jsonb_build_object('outcome', 'elsewhere',
                               'error', format('the store is at label server %s', esl.server_of(p_store)))
        when not s.knows_devices and s.devices_again_at > clock_timestamp() then
            jsonb_build_object('outcome', 'not_known', 'error', 'the label server does not know the actions for labels',
                               'again_at', s.devices_again_at)
        when esl.is_down(p_server) then
            jsonb_build_object('outcome', 'down', 'error', 'the label server is down', 'again_at', s.probe_at) end
    from (select p_server as server) n left join esl.label_servers s on s.server = n.server
$$;

-- {pass_id, store, run_id, label_server?, since?} -> {outcome, started_at, zone?, error?, again_at?}
--   open       the pass has begun; the same pass_id again returns the same
--   read       a complete pass that began at `since` or later has read the store: nothing to do
--   busy       somebody else reads it
--   elsewhere, not_known, down   it is not read now
-- A pass that was not heard of for two minutes has died: it concludes nothing any more.
create or replace function public.esl_device_pass_begin(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    v_store text := p ->> 'store'; v_id uuid := (p ->> 'pass_id')::uuid; v_server text := esl.server_in(p);
    v_why jsonb; d esl.device_passes;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.device_passes ' || v_store, 0));
    select * into d from esl.device_passes where id = v_id;
    if not found then
        v_why := esl.why_no_pass(v_store, v_server);
        if v_why is not null then
            return v_why;
        end if;
        d := esl.complete_pass(v_store);
        if d.started_at >= (p ->> 'since')::timestamptz then
            return jsonb_build_object('outcome', 'read', 'started_at', d.started_at);
        end if;
        select * into d from esl.device_passes o
        where o.store_code = v_store and o.state = 'open' and o.noted_at > clock_timestamp() - interval '2 minutes'
        limit 1;
        if found then
            return jsonb_build_object('outcome', 'busy', 'started_at', d.started_at);
        end if;
        update esl.device_passes
        set state = 'failed', finished_at = clock_timestamp(), error = 'the run ended before the pass did'
        where store_code = v_store and state = 'open';
        delete from esl.device_sightings n
        where not exists (select from esl.device_passes o where o.id = n.pass_id and o.state = 'open');
        insert into esl.device_passes (id, store_code, label_server, run_id)
        values (v_id, v_store, v_server, p ->> 'run_id') returning * into d;
    end if;
    return jsonb_build_object('outcome', 'open', 'started_at', d.started_at, 'zone',
                              (select s.zone from esl.label_servers s where s.server = v_server));
end $$;

-- What is kept of a battery's voltage: what was kept before, unless it has gone 20 mV from there.
create or replace function esl.battery_kept(p_old int, p_new int) returns int
language sql immutable as $$  -- inlined
    select case when abs(p_new - p_old) < 20 then p_old else coalesce(p_new, p_old) end
$$;

-- What is to be told of a label that differs; o: as it was, null: it is new.
create or replace function esl.device_story(o esl.devices, n esl.devices) returns table (what text, old text, new text)
language sql immutable set search_path = '' as $$
    select t.* from (values
        ('seen', o.esl_code is null, null, n.product_code),
        ('back', o.gone_at is not null, null, null),
        ('binding', o.product_code is distinct from n.product_code, o.product_code, n.product_code),
        ('model', o.model is distinct from n.model, o.model, n.model),
        ('ap', o.ap_code is distinct from n.ap_code, o.ap_code, n.ap_code),
        ('online', o.online is distinct from n.online, o.online::text, n.online::text),
        ('battery', o.battery_mv / 100 is distinct from n.battery_mv / 100, o.battery_mv::text, n.battery_mv::text)
    ) as s (what, is_so, old, new)
    cross join lateral (select s.what, s.old, s.new) t
    where s.is_so and (o.esl_code is not null or s.what = 'seen')
$$;

-- How a label's row is to be after a pass has read this of it; o: as it is, null: it is new. p_before: when the pass
-- before began.
create or replace function esl.device_as_read(o esl.devices, r esl.device_row, d esl.device_passes,
                                              p_before timestamptz) returns esl.devices
language sql immutable set search_path = '' as $$
    select d.store_code, r.esl_code, r.product_code, r.model, r.ap_code,
           esl.battery_kept(o.battery_mv, r.battery_mv), r.online, r.action, r.server_created_at, r.server_updated_at,
           r.server_updated, coalesce(o.first_seen_at, d.started_at), d.started_at,
           case when r.product_code is null then null
                when r.product_code = o.product_code and o.gone_at is null then o.bound_at
                else d.started_at end,
           case when t.has_moved then d.started_at else o.moved_at end,
           case when t.has_moved then greatest(o.last_seen_at, case when o.gone_at is null then p_before end)
                else o.moved_after end,
           null::timestamptz
    from (select o.esl_code is not null and (o.action, o.server_updated) is distinct from (r.action, r.server_updated)
                 as has_moved) t
$$;

-- Writes what differs of labels as a page has them, each once there, and what there is to tell of it; how many.
create or replace function esl.merge_devices(d esl.device_passes, p_devices jsonb) returns int
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_changed int; v_before timestamptz := (esl.complete_pass(d.store_code)).started_at;
begin
    with differing as materialized (
        select o as old, esl.device_as_read(o, r, d, v_before) as new
        from jsonb_populate_recordset(null::esl.device_row, p_devices) r
        left join esl.devices o on o.esl_code = r.esl_code and o.store_code = d.store_code
        where o.esl_code is null or o.gone_at is not null
           or (o.product_code, o.model, o.ap_code, o.online, o.action, o.server_created_at, o.server_updated_at,
               o.server_updated, o.battery_mv)
              is distinct from (r.product_code, r.model, r.ap_code, r.online, r.action, r.server_created_at,
               r.server_updated_at, r.server_updated, esl.battery_kept(o.battery_mv, r.battery_mv))
        order by r.esl_code
    ), told as (
        insert into esl.device_changes (store_code, esl_code, pass_id, what, old, new)
        select d.store_code, (c.new).esl_code, d.id, s.what, s.old, s.new
        from differing c cross join lateral esl.device_story(c.old, c.new) s
    ), written as (
        insert into esl.devices
        select (c.new).* from differing c
        on conflict (esl_code, store_code) do update
        set (product_code, model, ap_code, battery_mv, online, action, server_created_at, server_updated_at,
             server_updated, last_seen_at, bound_at, moved_at, moved_after, gone_at)
            = (excluded.product_code, excluded.model, excluded.ap_code, excluded.battery_mv, excluded.online,
               excluded.action, excluded.server_created_at, excluded.server_updated_at, excluded.server_updated,
               excluded.last_seen_at, excluded.bound_at, excluded.moved_at, excluded.moved_after, excluded.gone_at)
    )
    select count(*) into v_changed from differing;
    return v_changed;
end $$;

-- {pass_id, page, devices: [device_row], malformed} -> {open, changed}: what a page of a store's labels says, each
-- once; malformed: rows of it that name no label. Not open: somebody else has taken over, or the pass has ended.
create or replace function public.esl_device_page(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare d esl.device_passes; v_noted int; v_changed int;
begin
    select * into d from esl.device_passes where id = (p ->> 'pass_id')::uuid for update;
    if d.state is distinct from 'open' then
        return '{"open": false, "changed": 0}';
    end if;
    v_changed := esl.merge_devices(d, p -> 'devices');
    insert into esl.device_sightings (esl_code, pass_id)
    select r.esl_code, d.id from jsonb_populate_recordset(null::esl.device_row, p -> 'devices') r
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.device_passes
    set noted_at = clock_timestamp(), devices = devices + v_noted, changed = changed + v_changed,
        malformed = malformed + case when pages < (p ->> 'page')::int then (p ->> 'malformed')::int else 0 end,
        pages = greatest(pages, (p ->> 'page')::int)
    where id = d.id;
    return jsonb_build_object('open', true, 'changed', v_changed);
end $$;

-- Labels of the store that the pass has not seen.
create or replace function esl.unseen_devices(d esl.device_passes) returns setof esl.devices
language sql stable set search_path = '' as $$
    select o.* from esl.devices o
    where o.store_code = d.store_code and o.gone_at is null
      and not exists (select from esl.device_sightings n where n.pass_id = d.id and n.esl_code = o.esl_code offset 0)
$$;

-- Whether a pass has lost so many labels that it takes another one that says so too: a server that has just started,
-- or has lost its data, has an empty list.
create or replace function esl.is_doubtful(d esl.device_passes) returns boolean
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select coalesce(u.n > 20 and u.n > k.n / 2 and not (
        select l.doubts from esl.device_passes l where l.store_code = d.store_code and l.state in ('complete', 'failed')
          and l.id <> d.id order by l.started_at desc limit 1), false)
    from (select count(*) as n from esl.unseen_devices(d)) u,
         (select count(*) as n from esl.devices o where o.store_code = d.store_code and o.gone_at is null) k
$$;

-- Why a pass that was read to its end concludes nothing, or null.
create or replace function esl.pass_problem(d esl.device_passes) returns text
language sql stable set search_path = '' as $$
    select case
        when esl.server_of(d.store_code) <> d.label_server then 'the store has moved to another label server meanwhile'
        when d.devices <> (select count(*) from esl.device_sightings n where n.pass_id = d.id)
            then 'the database has lost what the pass had seen'
        when d.doubts then format('%s of the labels known here are not in the list of %s; it is believed when it is '
            'read so once more', (select count(*) from esl.unseen_devices(d)), d.devices) end
$$;

-- What the complete pass did not see is gone; how many.
create or replace function esl.note_gone(d esl.device_passes) returns int
language plpgsql volatile set search_path = '' as $$
declare v_gone int;
begin
    with gone as (
        update esl.devices o
        set gone_at = d.started_at, last_seen_at = esl.device_seen_at(o)
        where o.store_code = d.store_code and o.esl_code in (select u.esl_code from esl.unseen_devices(d) u)
        returning o.esl_code
    ), told as (
        insert into esl.device_changes (store_code, esl_code, pass_id, what)
        select d.store_code, g.esl_code, d.id, 'gone' from gone g order by g.esl_code
    )
    select count(*) into v_gone from gone;
    return v_gone;
end $$;

-- What a pass says of its label server; whether that is the first time that it does not know the actions for labels.
-- One that never knew them is asked again after a minute, an hour, and then once a day.
create or replace function esl.note_knowledge(d esl.device_passes, p_zone text) returns boolean
language plpgsql volatile set search_path = '' as $$
declare v_refusals int;
begin
    insert into esl.label_servers (server) values (d.label_server) on conflict do nothing;
    if d.state = 'complete' then
        update esl.label_servers
        set knows_devices = true, device_refusals = 0, devices_again_at = null, zone = coalesce(p_zone, zone)
        where server = d.label_server and (knows_devices, zone) is distinct from (true, coalesce(p_zone, zone));
    elsif d.state = 'not_known' then
        update esl.label_servers
        set knows_devices = false, device_refusals = device_refusals + 1,
            devices_again_at = clock_timestamp()
                + least(interval '1 day', interval '1 minute' * power(60, least(device_refusals, 9)))
        where server = d.label_server returning device_refusals into v_refusals;
    end if;
    return coalesce(v_refusals = 1, false);
end $$;

-- {pass_id, state: complete, failed, not_known, error?, zone?, counted_online?, counted_offline?}
-- -> {state, error, devices, changed, gone, is_news}: the pass has ended. complete: what it did not see is gone, unless
-- that is doubtful. is_news: the label server says for the first time that it knows no actions for labels; one that has
-- known them has only failed.
create or replace function public.esl_device_pass_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
declare d esl.device_passes; v_is_news boolean := false;
begin
    select * into d from esl.device_passes where id = (p ->> 'pass_id')::uuid for update;
    if d.state = 'open' then
        d.state := p ->> 'state';
        d.error := p ->> 'error';
        if d.state = 'complete' then
            d.doubts := esl.is_doubtful(d);
            d.error := esl.pass_problem(d);
        end if;
        if d.error is not null and (d.state = 'complete' or (d.state = 'not_known' and exists (
                select from esl.label_servers s where s.server = d.label_server and s.knows_devices))) then
            d.state := 'failed';
        end if;
        if d.state = 'complete' then
            d.gone := esl.note_gone(d);
        end if;
        v_is_news := esl.note_knowledge(d, p ->> 'zone');
        delete from esl.device_sightings where pass_id = d.id;
        update esl.device_passes
        set state = d.state, error = d.error, doubts = d.doubts, gone = d.gone, finished_at = clock_timestamp(),
            counted_online = (p ->> 'counted_online')::int, counted_offline = (p ->> 'counted_offline')::int
        where id = d.id;
        perform esl.graces_after_pass(d.store_code);
    end if;
    return jsonb_build_object('state', d.state, 'error', d.error, 'devices', d.devices, 'changed', d.changed,
                              'gone', d.gone, 'is_news', v_is_news);
end $$;

-- {label_servers} -> {stores: [{store_code, label_server, shops: [{source_system, source_store_id}]}]}: stores of
-- active mappings at these servers whose labels can be read now. First those that a night has compared since they were
-- read last, then the one that has waited longest.
create or replace function public.esl_device_stores(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('stores', coalesce(jsonb_agg(jsonb_build_object(
               'store_code', k.store_code, 'label_server', k.server, 'shops', k.shops)
               order by coalesce(c.at > l.started_at, false) desc, l.started_at nulls first, k.store_code), '[]'))
    from (select m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as server,
                 jsonb_agg(distinct jsonb_build_object('source_system', m.source_system,
                                                       'source_store_id', m.source_store_id)) as shops
          from esl.store_mappings m where m.is_active group by 1) k
    left join esl.comparisons c on c.store_code = k.store_code
    left join lateral (select o.started_at from esl.device_passes o where o.store_code = k.store_code
                       order by o.started_at desc limit 1) l on true
    where p -> 'label_servers' ? k.server
      and coalesce(esl.why_no_pass(k.store_code, k.server) ->> 'outcome', '') not in ('not_known', 'down')
$$;

-- functions: drift.sql
-- Drift: the label server's own list against the ledger, and how accurate the labels are.

-- Of earlier builds; esl.written had other columns.
drop function if exists esl.is_moving(text, text, timestamptz);
do $$ begin
    if pg_get_function_result(to_regprocedure('esl.written(text, text)')) not like '%label_hash%' then
        drop function esl.written(text, text);
    end if;
end $$;

-- Whether a label is, or has been since, on its way: the ledger may know more of it than a listing, or less. What only
-- waits (for a window, an approval, a repair) is not on its way: until then what the ledger says must hang. Of a
-- foreign label that is to be removed, or waits for that, it is all the same what it says. A table of one row, because
-- only those are inlined: as a plain function it would be planned anew for each label. One look at each table, however
-- long the audit (offset 0: else all of it may be read, to be looked up in).
create or replace function esl.moves(p_store text, p_code text, p_since timestamptz) returns table (moves boolean)
language sql stable as $$  -- inlined as well
    select exists (select from esl.sync_queue q
                   where q.code = p_code and q.store_code = p_store
                     and (q.in_doubt or q.state = 'leased' or q.variant_id = '') offset 0)
        or exists (select from esl.graces g
                   join esl.hipoink_products s on s.code = g.code and s.store_code = g.store_code and s.variant_id = ''
                   where g.code = p_code and g.store_code = p_store offset 0)
        or coalesce((select l.at from esl.sync_log l where l.code = p_code and l.store_code = p_store
                     order by l.id desc limit 1) >= p_since, false)
$$;

-- A label in the ledger. One look at it, whatever the statistics say (offset 0): of a store that is newer than they are
-- they say that it has no labels, and then all of them are read for each.
create or replace function esl.in_ledger(p_store text, p_code text) returns setof esl.hipoink_products
language sql stable as $$  -- inlined as well
    select s.* from esl.hipoink_products s where s.code = p_code and s.store_code = p_store offset 0
$$;

-- {store} -> {at, ledger, owned}: when the comparison begins, how many labels the store should have, and whether a
-- policy says that nobody else keeps labels there.
create or replace function public.esl_drift_begin(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'at', clock_timestamp(),
        'ledger', (select count(*) from esl.hipoink_products s where s.store_code = p ->> 'store'),
        'owned', esl.store_is_owned(p ->> 'store'))
$$;

-- What our own audit says of a place that is in no ledger: whose label we wrote there last. No row: nobody's, or it was
-- removed and the label server where its store is has said so: since the store is there, for it may have been there
-- before, with labels that another server removed. What was adopted only to be removed (no variant) was never ours.
create or replace function esl.written(p_store text, p_code text)
returns table (mapping_id uuid, variant_id text, label jsonb, label_hash text)
language sql stable as $$  -- inlined as well
    select m.id, i.variant_id, u.label, u.label_hash
    from (select l.* from esl.sync_log l
          where l.code = p_code and l.store_code = p_store and l.kind = 'intent'
          order by l.id desc limit 1) i
    join esl.store_mappings m on m.id = i.mapping_id
    left join lateral (
        select l.label, l.label_hash from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.kind = 'intent' and l.operation = 'upsert'
        order by l.id desc limit 1) u on true
    where i.variant_id <> '' and (i.operation = 'upsert' or not exists (
        select from esl.sync_log r
        where r.code = p_code and r.store_code = p_store and r.push_id = i.push_id and r.outcome = 'accepted'
          and r.at >= coalesce((select s.placed_at from esl.stores s where s.store_code = p_store), '-infinity')))
$$;

-- {store, since, codes} -> {labels: [{code, push_id, label}], ours: [{code, label}], foreign: [codes], reserved: n}:
-- what we know of listed codes. Moving labels are left out. ours: in no ledger, but written by us (label: what was sent
-- last). foreign: in no ledger, queue, audit or evaluated label of ours. reserved: so many are of probes, and left out.
create or replace function public.esl_drift_compare(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with listed as materialized (
            select c.code, s.push_id, s.label
            from jsonb_array_elements_text(p -> 'codes') as c (code)
            cross join lateral esl.moves(p ->> 'store', c.code, (p ->> 'since')::timestamptz) m
            left join lateral esl.in_ledger(p ->> 'store', c.code) s on true
            where not m.moves and not esl.is_reserved(c.code)
        ), unknown as materialized (
            select l.code, w.mapping_id is not null as is_ours, w.label
            from listed l left join lateral esl.written(p ->> 'store', l.code) w on true
            where l.push_id is null
        )
        select jsonb_build_object(
            'labels', (select coalesce(jsonb_agg(to_jsonb(l) order by l.code), '[]') from listed l
                       where l.push_id is not null),
            'ours', (select coalesce(jsonb_agg(jsonb_build_object('code', u.code, 'label', u.label)
                                               order by u.code), '[]')
                     from unknown u where u.is_ours),
            'foreign', (select coalesce(jsonb_agg(u.code order by u.code), '[]') from unknown u
                        where not u.is_ours and not exists (
                            select from esl.labels b where b.code = u.code and b.store_code = p ->> 'store')),
            'reserved', (select count(*) from jsonb_array_elements_text(p -> 'codes') as c (code)
                         where esl.is_reserved(c.code))));
end $$;

-- {store, after?, limit} -> {codes, next}: the places of ledger and queue, page by page.
create or replace function public.esl_drift_ledger(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with page as (
            (select s.code from esl.hipoink_products s
             where s.store_code = p ->> 'store' and s.code > coalesce(p ->> 'after', '')
             order by s.code limit (p ->> 'limit')::int)
            union
            (select q.code from esl.sync_queue q
             where q.store_code = p ->> 'store' and q.code > coalesce(p ->> 'after', '')
             order by q.code limit (p ->> 'limit')::int)
            order by code limit (p ->> 'limit')::int
        )
        select jsonb_build_object('codes', coalesce(jsonb_agg(g.code order by g.code), '[]'), 'next', max(g.code))
        from page g);
end $$;

-- {store, since, codes} -> {labels: [{code, push_id}], moving: [codes]}: what the ledger has of places that are in no
-- list. moving: on their way, or in no ledger.
create or replace function public.esl_drift_unlisted(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with judged as materialized (
            select c.code, s.push_id, m.moves
            from jsonb_array_elements_text(p -> 'codes') as c (code)
            cross join lateral esl.moves(p ->> 'store', c.code, (p ->> 'since')::timestamptz) m
            left join lateral esl.in_ledger(p ->> 'store', c.code) s on true
        )
        select jsonb_build_object(
            'labels', coalesce(jsonb_agg(jsonb_build_object('code', j.code, 'push_id', j.push_id) order by j.code)
                               filter (where not j.moves and j.push_id is not null), '[]'),
            'moving', coalesce(jsonb_agg(j.code order by j.code) filter (where j.moves or j.push_id is null), '[]'))
        from judged j);
end $$;

-- Of differences that were found those that still stand (p: as for esl_drift_repair), with what the label should say,
-- whose it is, and how often it was repaired lately. The same difference is meant; a label that is missing, or there,
-- is so whatever it says. A label of ours as it was sent keeps the hash that it was sent with.
create or replace function esl.standing_drift(p jsonb)
returns table (code text, kind text, said jsonb, theirs jsonb, label jsonb, label_hash text, mapping_id uuid,
               variant_id text, repairs bigint)
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
        select d.code, d.kind, coalesce(d.ours, s.label, w.label), d.theirs, d.label,
               case when d.label = w.label then w.label_hash else d.label_hash end,
               coalesce(s.mapping_id, w.mapping_id), coalesce(s.variant_id, w.variant_id),
               (select count(*) from esl.drift x
                where x.code = d.code and x.store_code = p ->> 'store' and x.kind = d.kind
                  and (d.kind <> 'different' or (x.ours, x.theirs) = (d.ours, d.theirs))
                  and x.at > now() - interval '14 days')
        from jsonb_populate_recordset(null::esl.drift_row, p -> 'labels') d
        cross join lateral esl.moves(p ->> 'store', d.code, (p ->> 'since')::timestamptz) m
        left join lateral esl.in_ledger(p ->> 'store', d.code) s on true
        left join lateral esl.written(p ->> 'store', case when d.kind = 'ours' then d.code end) w on true
        where d.push_id is not distinct from s.push_id
          and not m.moves and not esl.is_reserved(d.code)
          and (d.kind <> 'ours' or w.mapping_id is not null)
          and (d.kind <> 'foreign' or not exists (
              select from esl.labels b where b.code = d.code and b.store_code = p ->> 'store'));
end $$;

-- Which mapping answers for labels of a store that are nobody's; null: none feeds it.
create or replace function esl.mapping_for_strangers(p_store text) returns uuid
language sql stable set search_path = '' as $$
    select m.id from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active
    order by m.is_dry_run, esl.policy_text(m.settings, 'owns_store') = 'true' desc, m.created_at, m.id limit 1
$$;

-- {store, run_id, since, labels: [{code, kind, push_id, ours, theirs, label, label_hash}]}
-- -> {requeued, given_up: [codes]}
-- What the label server holds is not what it has accepted: the place is in doubt, and esl.requeue decides what follows.
--   different, missing -> in doubt: what is wanted is pushed, what the ledger says where the label stays as it is,
--                and a removal too where nothing is wanted any more, because the label may hang after all
--   ours      -> the label enters the ledger again, in doubt, as its variant's
--   foreign   -> the label enters the ledger, owned by no variant, so that it is removed (esl.guard counts it)
-- Not for the fourth time in 14 days, when the same came back after three repairs: then it is how the server keeps what
-- we send (or another writer), and repairing changes nothing: given_up.
-- What has been pushed since it was compared (another push_id) or is on its way is left alone.
create or replace function public.esl_drift_repair(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_store text := p ->> 'store'; v_codes text[]; v_given_up text[];
begin
    perform esl.lock_stores(array[v_store]);

    with found as materialized (
        select * from esl.standing_drift(p)
    ), taken as materialized (
        select * from found where repairs < 3
    ), noted as (
        insert into esl.drift (run_id, store_code, code, kind, ours, theirs)
        select p ->> 'run_id', v_store, code, kind, said, theirs from taken
    ), doubted as (
        -- What the server holds is not what the ledger says, or not known: nobody may drop the row.
        insert into esl.sync_queue (store_code, code, mapping_id, variant_id, operation, label, label_hash, priority,
                                    in_doubt, cause)
        select v_store, t.code, t.mapping_id, t.variant_id, 'upsert', coalesce(s.label, t.label),
               coalesce(s.label_hash, t.label_hash), case when t.kind = 'missing' then 2 else 0 end, true, 'drift'
        from taken t left join lateral esl.in_ledger(v_store, t.code) s on true
        where t.kind in ('missing', 'different', 'ours')
        on conflict (store_code, code) do update set in_doubt = true
    ), adopted as (
        insert into esl.hipoink_products (store_code, code, mapping_id, variant_id, label, label_hash, push_id)
        select v_store, t.code, m.id, coalesce(t.variant_id, ''), t.label, t.label_hash, gen_random_uuid()
        from taken t
        cross join lateral (select coalesce(t.mapping_id, esl.mapping_for_strangers(v_store)) as id) m
        where t.kind in ('foreign', 'ours') and m.id is not null
        returning mapping_id
    ), left_behind as (
        insert into esl.left_stores (mapping_id, store_code)
        select distinct m.id, v_store from adopted a join esl.store_mappings m on m.id = a.mapping_id
        where m.hipoink_store_code <> v_store
        on conflict do nothing
    )
    select array_agg(code) filter (where repairs < 3), coalesce(array_agg(code) filter (where repairs >= 3), '{}')
    into v_codes, v_given_up from found;
    perform esl.requeue(array_fill(v_store, array[coalesce(cardinality(v_codes), 0)]), v_codes, 'drift');
    perform esl.measure_drift(v_store, v_codes);
    if v_codes is not null then  -- the server may hold what it never confirmed, and its labels not show it
        perform esl.want_refresh(v_store);
    end if;

    return (select jsonb_build_object('requeued', count(*), 'given_up', to_jsonb(v_given_up))
            from esl.sync_queue q where q.store_code = v_store and q.code in (
                select d.code from jsonb_populate_recordset(null::esl.drift_row, p -> 'labels') d));
end $$;

-- {store, at, run_id, complete, reason, listed, ledger, skipped, given_up} -> {}: how a comparison that began at that
-- time ended; the latest of each store is kept.
create or replace function public.esl_drift_end(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    insert into esl.comparisons as c (store_code, at, run_id, complete, reason, listed, ledger, skipped, given_up)
    values (p ->> 'store', (p ->> 'at')::timestamptz, p ->> 'run_id', (p ->> 'complete')::boolean, p ->> 'reason',
            (p ->> 'listed')::int, (p ->> 'ledger')::int, (p ->> 'skipped')::int, (p ->> 'given_up')::int)
    on conflict (store_code) do update
    set at = excluded.at, run_id = excluded.run_id, complete = excluded.complete, reason = excluded.reason,
        listed = excluded.listed, ledger = excluded.ledger, skipped = excluded.skipped, given_up = excluded.given_up
    where c.at <= excluded.at;
    return '{}';
end $$;

-- What was counted of these mappings is kept for those who cannot count it each time (see functions/numbers.sql).
create or replace function esl.note_accuracy(p_mappings jsonb) returns void
language sql volatile set search_path = '' as $$
    insert into esl.accuracies as a (mapping_id, at, publishable, accurate, unsettled, due)
    select c.mapping_id, clock_timestamp(), c.publishable, c.accurate, c.unsettled, c.due
    from jsonb_populate_recordset(null::esl.accuracies, p_mappings) c order by c.mapping_id
    on conflict (mapping_id) do update
    set at = excluded.at, publishable = excluded.publishable, accurate = excluded.accurate,
        unsettled = excluded.unsettled, due = excluded.due
$$;

-- {shop?, shops?} -> {mappings: [{mapping_id, source_system, source_store_id, hipoink_store_code, problem, publishable,
--   accurate, unsettled, window: {labels, until}, grace, due, comparison: {at, complete, reason, skipped, given_up, …}
--   or null}]} of every active mapping that is not in dry run.
-- accurate: of the publishable labels, those that the label server accepted as they should be now, with nothing in
-- doubt. unsettled: other places where it does not hold, or is not known to hold, what it should: labels that are to go
-- and are still there, whatever they wait for but their grace, and ones that are to be put back. grace: labels that go
-- when theirs is over, and are as they are to be until then (see esl.grace_state). due: variants that are not evaluated
-- yet. window: rises that wait for theirs and for nothing else: neither right nor wrong, as the policy says so.
-- comparison: how the last one of the store with the label server's own list ended.
create or replace function public.esl_accuracy(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare v_answer jsonb;
begin
    select jsonb_build_object('mappings',
        coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.mapping_id), '[]')) into v_answer from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code,
               esl.mapping_problem(m) as problem,
               count(l.variant_id) as publishable,
               count(s.code) filter (where o.variant_id is null and q.code is null) as accurate,
               (select count(*) from esl.sync_queue w
                where w.mapping_id = m.id and not exists (
                    select from esl.labels b
                    where b.variant_id = w.variant_id and b.mapping_id = m.id and b.state = 'publish' and not b.collides
                      and b.code = w.code and b.store_code = w.store_code)) as unsettled,
               (select jsonb_build_object('labels', count(*), 'until', min(o.opens))
                from (select esl.window_opens(m.settings -> 'raise_window') as opens offset 0) o  -- asked once
                join esl.sync_queue w on w.mapping_id = m.id and esl.waits_for_window(w, o.opens)
                where w.variant_id not in (  -- once for all of them
                    select d.variant_id from esl.products d
                    where d.due and d.source_system = m.source_system
                      and d.source_store_id = m.source_store_id)) as "window",
               esl.grace_state(m.id) as grace,
               (select count(*) from esl.products d where d.due and not d.removed
                  and d.source_system = m.source_system and d.source_store_id = m.source_store_id) as due,
               (select to_jsonb(c) from esl.comparisons c where c.store_code = m.hipoink_store_code) as comparison
        from esl.store_mappings m
        left join esl.labels l on l.mapping_id = m.id and l.state = 'publish' and not l.collides
        left join esl.hipoink_products s
          on s.code = l.code and s.store_code = l.store_code and s.label_hash = l.label_hash
        left join esl.sync_queue q on q.code = l.code and q.store_code = l.store_code and q.in_doubt
        left join esl.products o
          on o.due and o.variant_id = l.variant_id and o.source_system = m.source_system
         and o.source_store_id = m.source_store_id
        where m.is_active and not m.is_dry_run and m.id in (select c.id from esl.chosen_mappings(p) c)
        group by m.id) t;
    perform esl.note_accuracy(v_answer -> 'mappings');
    return v_answer;
end $$;

-- functions: due.sql
-- What still has to become labels: the variants that changed since they were evaluated last.

-- About how long a variant's row is as text. (Long texts stand apart from their row: their length is known unread.)
create or replace function esl.text_bytes(o esl.products) returns bigint
language sql stable as $$
    select 1000 + octet_length(concat(o.title, o.variant_title, o.barcode, o.sku, o.vendor, o.product_type, o.handle,
                                      o.option1, o.option2, o.option3))
           + coalesce(octet_length(o.tags), 0) + coalesce(octet_length(o.image_url), 0)
$$;

-- A variant's stock by location; null where none is known.
create or replace function esl.stock_of(p_system text, p_shop text, p_item text) returns table (stock jsonb)
language sql stable as $$  -- inlined as well
    select jsonb_object_agg(l.location_id, l.available) from esl.inventory_levels l
    where l.source_system = p_system and l.source_store_id = p_shop and l.inventory_item_id = p_item and not l.gone
$$;

-- {mapping id: {shown, prior, cut_days}} of a variant, for esl_variants_due.
create or replace function esl.history_of(p_system text, p_shop text, p_variant text, p_price text, p_compare_at text)
returns table (history jsonb)
language sql stable as $$  -- inlined as well
    select jsonb_object_agg(m.id, jsonb_build_object(
        'shown', case when not esl.is_blanked(s.label_hash) then esl.price_of(s.label)::text end,
        'prior', case when esl.policy_text(m.settings, 'show_compare_at') = 'if_prior_30d_ok'
                       and p_compare_at is not null and p_price ~ '^[0-9]{1,9}([.][0-9]{1,4})?$'
                 then esl.prior_price(m.id, p_variant, p_price::numeric)::text end,
        'cut_days', case when esl.shows_cuts(m.settings) and p_price ~ '^[0-9]{1,9}([.][0-9]{1,4})?$'
                    then esl.days_since_cut(m.id, p_variant, p_price::numeric) end))
    from esl.store_mappings m
    left join lateral (select h.label, h.label_hash from esl.hipoink_products h
                       where h.variant_id = p_variant and h.mapping_id = m.id
                       order by h.accepted_at desc limit 1) s on true
    where m.is_active and m.source_system = p_system and m.source_store_id = p_shop
      and (s.label is not null or esl.policy_text(m.settings, 'show_compare_at') = 'if_prior_30d_ok'
           or esl.shows_cuts(m.settings))
$$;

-- {limit, after, max_bytes?, shop?, label_server?, label_servers?} -> {variants: [...], mappings: [...]}: variants that
-- are not evaluated yet, of one shop or of those of a server (see esl.shops_to_read), as many of one shop as of another
-- and of each its oldest changes, max_bytes of text together or one variant, with the active mappings of their shops
-- (currency and taxes_included as the shop says).
-- Nothing is claimed: evaluating twice is harmless (see esl_labels_stage). after: a revision, to page through one shop.
-- unsaid: columns with a space between, or null. As JSON text, which is how a frame holds them: stock, as
-- unit_price_measurement; history: {mapping id: {shown, prior, cut_days}}, the price on the label and, where the policy
-- asks for it, the lowest of 30 days, and how many days ago it was cut.
create or replace function public.esl_variants_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with shops as (
        select r.source_system, r.source_store_id from esl.shops_to_read(p) r where r.is_active
    ), waiting as materialized (  -- shops where any is, and how many such shops there are
        select s.*, count(*) over () as shops from shops s
        cross join lateral (  -- in this order, so that whatever the planner believes, it asks the index of each shop
            select from esl.products o
            where o.source_store_id = s.source_store_id and o.source_system = s.source_system and o.due
            order by o.revision limit 1) o
    ), due as (
        select d.* from waiting w cross join lateral (
            select o.*, esl.text_bytes(o) as bytes, row_number() over (order by o.revision) as turn from esl.products o
            where o.source_store_id = w.source_store_id and o.source_system = w.source_system and o.due
              and o.revision > (p ->> 'after')::bigint
            order by o.revision
            limit least((p ->> 'limit')::int, (2 * (p ->> 'limit')::int + w.shops - 1) / w.shops)) d
        order by d.turn, d.revision limit (p ->> 'limit')::int
    ), page as (
        select * from (select d.*, sum(d.bytes) over (order by d.turn, d.revision) - d.bytes as before from due d) t
        where t.before < coalesce((p ->> 'max_bytes')::bigint, 8000000)
    )
    select jsonb_build_object(
        'variants', coalesce((
            select jsonb_agg(to_jsonb(d) - '{due,turn,bytes,before,cause,stock_event_ids}'::text[]
                       || jsonb_build_object('event_ids', d.event_ids || d.stock_event_ids,
                       'unsaid', nullif(array_to_string(d.unsaid, ' '), ''), 'stock', k.stock::text,
                       'gift_card', coalesce(x.gift_card, false), 'unit_price', x.unit_price,
                       'unit_price_measurement', x.unit_price_measurement::text,
                       'history', h.history::text, 'problem', r.problem) order by d.revision)
            from page d
            left join esl.variant_details x
              on x.source_system = d.source_system and x.source_store_id = d.source_store_id
             and x.variant_id = d.variant_id
            left join esl.row_problems r
              on r.source_system = d.source_system and r.source_store_id = d.source_store_id
             and r.variant_id = d.variant_id
            cross join lateral esl.stock_of(d.source_system, d.source_store_id, d.inventory_item_id) k
            cross join lateral esl.history_of(d.source_system, d.source_store_id, d.variant_id, d.price,
                                              d.compare_at_price) h), '[]'),
        'mappings', coalesce((
            select jsonb_agg(esl.shown_mapping(m) || jsonb_build_object(
                       'currency', s.currency, 'taxes_included', s.taxes_included) order by m.created_at, m.id)
            from esl.store_mappings m
            left join esl.shops s
              on s.source_system = m.source_system and s.source_store_id = m.source_store_id
            where m.is_active and exists (select from page d
                where d.source_system = m.source_system and d.source_store_id = m.source_store_id)), '[]'))
$$;

-- functions: duplicates.sql
-- Duplicate codes: who claims a place, who wins it, and the finding duplicate_code of those who share one.

-- Who claims the given (store, code) places, one row per place and variant, and who of them shows its label there.
-- A variant that is held back claims its place too, as long as its content says the code: it never shows anything, but
-- nobody takes its place meanwhile. Several of one mapping: all win when they publish equal labels, else the first in
-- order of precedence where its policy ranks them (duplicate_rule), if it publishes. A mapping in dry run never stands
-- against a live one. rivals: how many claim the place; place: their order.
create or replace function esl.claims(p_stores text[], p_codes text[])
returns table (store_code text, code text, mapping_id uuid, variant_id text, source_store_id text, publishes boolean,
               collides boolean, rivals int, place int, wins boolean)
language sql stable set search_path = '' as $$
    with claimed as (
        select l.store_code, l.code, l.mapping_id, l.variant_id, m.source_store_id, l.state = 'publish' as publishes,
               l.collides, l.label_hash, l.precedence, m.is_dry_run
        from (select distinct k.store_code, k.code from unnest(p_stores, p_codes) as k (store_code, code)
              where k.code is not null) k
        cross join lateral (
            select * from esl.labels l
            where l.store_code = k.store_code and l.code = k.code and l.state in ('publish', 'held')) l
        join esl.store_mappings m on m.id = l.mapping_id and m.is_active and m.hipoink_store_code = l.store_code
    ), judged as (
        select c.*, count(*) over place as rivals,
               -- Only among the live ones, where there are any.
               min(c.mapping_id::text) over live = max(c.mapping_id::text) over live as one_shop,
               bool_and(c.publishes) over live and min(c.label_hash) over live = max(c.label_hash) over live as equal,
               bool_and(c.precedence is not null) over live as ranked,
               c.is_dry_run = bool_and(c.is_dry_run) over place as takes_part,
               row_number() over (partition by c.store_code, c.code
                                  order by c.is_dry_run, c.precedence collate "C", c.variant_id collate "C") as place
        from claimed c
        window place as (partition by c.store_code, c.code),
               live as (partition by c.store_code, c.code, c.is_dry_run)
    )
    select store_code, code, mapping_id, variant_id, source_store_id, publishes, collides, rivals::int, place::int,
           publishes and takes_part and one_shop and (rivals = 1 or equal or (ranked and place = 1))
    from judged
$$;

-- Notes where claims collide: a finding of every variant that takes part, which ends for all of them. Where a collision
-- begins or ends, the other places of its variants are to be decided again, for a label that was kept may go now: these
-- places come back.
create or replace function esl.note_collisions(p_stores text[], p_codes text[], out stores text[], out codes text[])
language plpgsql set search_path = '' as $$
begin
    with claims as materialized (
        select c.*, c.rivals > 1 and not c.wins as loses from esl.claims(p_stores, p_codes) c
    ), shared as (
        -- A house code of a whole shop may have thousands of rivals.
        select store_code, code, min(rivals) as n,
               string_agg(variant_id || ' of ' || source_store_id, ', ' order by place)
                   filter (where place <= 10) as names,
               min(variant_id) filter (where wins) as winner
        from claims where rivals > 1 group by 1, 2
        having bool_or(loses)  -- equal labels are no conflict
    ), marked as (
        update esl.labels l set collides = c.loses from claims c
        where c.collides <> c.loses and l.mapping_id = c.mapping_id and l.variant_id = c.variant_id
        returning l.mapping_id, l.variant_id
    ), noted as (
        insert into esl.findings as f (mapping_id, variant_id, check_name, level, column_name, value, reason, action)
        select c.mapping_id, c.variant_id, 'duplicate_code', case when c.wins then 'warning' else 'error' end, 'code',
               c.code,
               format('variants %s%s share the code %s', s.names,
                      case when s.n > 10 then format(' and %s more', s.n - 10) else '' end, c.code)
               || case when s.winner is null then '' else format('; the label shows %s', s.winner) end,
               'give each variant a code of its own'
        from claims c join shared s using (store_code, code)
        on conflict (mapping_id, variant_id, check_name) do update
        set level = excluded.level, value = excluded.value, reason = excluded.reason, last_seen_at = now(),
            resolved_at = null
        returning f.mapping_id, f.variant_id
    ), resolved as (
        -- A variant has one place a store: whoever is not noted at its own has no rival left. (Who claims no place at
        -- all is settled by esl.store_findings.)
        update esl.findings f set resolved_at = now()
        from unnest(p_stores, p_codes) as k (store_code, code)
        join esl.labels l on l.code = k.code and l.store_code = k.store_code
        where f.check_name = 'duplicate_code' and f.resolved_at is null
          and f.mapping_id = l.mapping_id and f.variant_id = l.variant_id
          and not exists (select from noted n where n.mapping_id = l.mapping_id and n.variant_id = l.variant_id)
    ), elsewhere as (
        select s.store_code, s.code from marked join esl.hipoink_products s using (mapping_id, variant_id)
        union select q.store_code, q.code from marked join esl.sync_queue q using (mapping_id, variant_id)
    )
    select array_agg(e.store_code), array_agg(e.code) into stores, codes from elsewhere e;
end $$;

-- functions: files.sql
-- Sources that are read from files: which files there were, what became of them, and what is wrong with single rows.

create or replace function esl.files_of(p_shop jsonb) returns setof esl.source_files
language sql stable as $$  -- without a search_path of its own, so that it is inlined
    select f.* from esl.source_files f
    where f.source_system = p_shop ->> 'source_system' and f.source_store_id = p_shop ->> 'source_store_id'
$$;

-- Whether a file was read again later, by columns that were called otherwise: what stands is not what f says.
create or replace function esl.is_read_otherwise(f esl.source_files) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from esl.source_files o
        where (o.source_store_id, o.source_system, o.name, o.size, o.modified_at)
            = (f.source_store_id, f.source_system, f.name, f.size, f.modified_at)
          and o.columns <> f.columns and o.state = 'applied' and o.version_at > f.version_at)
$$;

-- {shop, files: [{name, size, modified_at, sha256?, kind?}], columns} -> {files, held, last, last_full, same}: what is
-- known of these files when their columns are called so (of an applied change list also when they were called
-- otherwise); variants whose rows are wrong; the newest file that was applied or is about to be, the newest full list
-- that was, and the newest other file of such a kind and hash that was.
create or replace function public.esl_files_known(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with asked as (
        select * from jsonb_populate_recordset(null::esl.file_row, p -> 'files')
    ), used as (
        select * from esl.files_of(p -> 'shop') where state in ('applied', 'ready', 'approved') and reason is null
    ), applied as (
        select * from used where state = 'applied'
    )
    select jsonb_build_object(
        'files', (select coalesce(jsonb_agg(to_jsonb(f) order by f.version_at), '[]')
                  from esl.files_of(p -> 'shop') f join asked a using (name, size, modified_at)
                  where (f.kind = 'changes' and f.state = 'applied')
                     or (f.columns = p ->> 'columns' and not esl.is_read_otherwise(f))),
        'held', (select coalesce(jsonb_agg(r.variant_id), '[]') from esl.row_problems r
                 where r.source_system = p #>> '{shop,source_system}'
                   and r.source_store_id = p #>> '{shop,source_store_id}'),
        'last', (select to_jsonb(f) from used f order by f.version_at desc limit 1),
        'last_full', (select to_jsonb(f) from applied f where f.kind = 'full' order by f.version_at desc limit 1),
        'same', (select to_jsonb(f) from applied f join asked a using (sha256, kind)
                 where f.columns = p ->> 'columns'
                   and (f.name, f.size, f.modified_at) <> (a.name, a.size, a.modified_at)
                 order by f.version_at desc limit 1))
$$;

-- {shop, file: {name, size, modified_at, columns, sha256, kind, key, fields, state, reason, rows, listed, held,
-- deleted, complaints}, run_id} -> the file's row: how it was judged. One that is known already stays as it is.
-- version_at: modified_at, or as soon after it as no other file of the shop has. Read again by other columns, also by
-- those of before, a file is a newer statement each time.
create or replace function public.esl_files_note(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare f esl.source_files; v_known esl.source_files;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.source_files', 0));
    f := jsonb_populate_record(null::esl.source_files, (p -> 'file') || (p -> 'shop'));
    select * into v_known from esl.files_of(p -> 'shop') o
    where (o.name, o.size, o.modified_at, o.columns) = (f.name, f.size, f.modified_at, f.columns);
    if found and not esl.is_read_otherwise(v_known) then
        return to_jsonb(v_known);
    end if;
    f.version_at := greatest(f.modified_at, (
        select max(o.version_at) + interval '1 microsecond' from esl.files_of(p -> 'shop') o
        where (o.name, o.size, o.modified_at) = (f.name, f.size, f.modified_at)));
    while exists (select from esl.files_of(p -> 'shop') o where o.version_at = f.version_at) loop
        f.version_at := f.version_at + interval '1 microsecond';
    end loop;
    insert into esl.source_files (source_system, source_store_id, name, size, modified_at, columns, sha256, version_at,
                                  kind, key, fields, state, reason, rows, listed, held, deleted, complaints, run_id,
                                  applied_at)
    values (f.source_system, f.source_store_id, f.name, f.size, f.modified_at, f.columns, f.sha256, f.version_at,
            f.kind, f.key, coalesce(f.fields, '[]'), f.state, f.reason, coalesce(f.rows, 0), coalesce(f.listed, 0),
            coalesce(f.held, 0), coalesce(f.deleted, 0), coalesce(f.complaints, '[]'), p ->> 'run_id',
            case when f.state = 'applied' then clock_timestamp() end)
    on conflict (source_store_id, source_system, name, size, modified_at, columns) do update
    set sha256 = excluded.sha256, version_at = excluded.version_at, kind = excluded.kind, key = excluded.key,
        fields = excluded.fields, state = excluded.state, reason = excluded.reason, rows = excluded.rows,
        listed = excluded.listed, held = excluded.held, deleted = excluded.deleted, complaints = excluded.complaints,
        run_id = excluded.run_id, applied_at = excluded.applied_at
    returning * into f;
    return to_jsonb(f);
end $$;

-- {file_id, told?, run_id} -> {applied}: all that the file says is stored. Rows that were wrong in older files are so
-- no more: those of the products in `told`, or, of a full list (no `told`), all of them. Full lists that are older will
-- not be read any more, whatever they have waited for.
create or replace function public.esl_files_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare f esl.source_files; v_applied boolean;
begin
    update esl.source_files
    set state = 'applied', reason = null, applied_at = clock_timestamp(), run_id = p ->> 'run_id'
    where id = (p ->> 'file_id')::bigint and state in ('ready', 'approved') returning * into f;
    v_applied := found;
    if not found then
        select * into f from esl.source_files where id = (p ->> 'file_id')::bigint;
    end if;
    update esl.source_files o
    set state = 'refused', reason = format('it is older than %s, which was applied', f.name)
    where f.kind = 'full' and f.state = 'applied' and o.kind = 'full' and o.state in ('ready', 'approved', 'waiting')
      and o.source_store_id = f.source_store_id and o.source_system = f.source_system and o.version_at < f.version_at;
    with right_again as (
        delete from esl.row_problems r
        where r.source_store_id = f.source_store_id and r.source_system = f.source_system
          and r.version_at < f.version_at and coalesce(p -> 'told' ? r.variant_id, true)
        returning r.variant_id
    )
    update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'read'
    from right_again r
    where o.variant_id = r.variant_id and o.source_store_id = f.source_store_id
      and o.source_system = f.source_system and not o.removed;
    return jsonb_build_object('applied', v_applied);
end $$;

-- {shop?, limit} -> {files: [...]}: the newest first. is_open: refused or waiting, and no full list since.
create or replace function public.esl_files_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'files', coalesce(jsonb_agg(to_jsonb(t) - 'db_user' order by t.version_at desc, t.id desc), '[]')) from (
        select f.*, f.state in ('refused', 'waiting') and not exists (
                   select from esl.source_files o
                   where o.source_store_id = f.source_store_id and o.source_system = f.source_system
                     and o.kind = 'full' and o.state = 'applied' and o.version_at > f.version_at) as is_open
        from esl.source_files f
        where p -> 'shop' is null or (f.source_system, f.source_store_id)
            = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}')
        order by f.version_at desc, f.id desc limit (p ->> 'limit')::int) t
$$;

-- {shop, name, by} -> {file}: the newest file of that name that waits may be read; null: none waits.
create or replace function public.esl_files_approve(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare f esl.source_files;
begin
    update esl.source_files
    set state = 'approved', approved_at = clock_timestamp(), approved_by = p ->> 'by', db_user = session_user
    where id = (select o.id from esl.files_of(p -> 'shop') o
                where o.name = p ->> 'name' and o.state = 'waiting' order by o.version_at desc limit 1)
    returning * into f;
    return jsonb_build_object('file', case when found then to_jsonb(f) - 'db_user' end);
end $$;

-- {problems: [{source_system, source_store_id, variant_id, version_at, problem}]} -> {noted}: what is wrong with what
-- was said of variants, told before it is stored. Of a product of which something newer is stored nothing is noted.
create or replace function public.esl_problems_note(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with noted as (
        insert into esl.row_problems as o (source_system, source_store_id, variant_id, version_at, problem)
        select d.source_system, d.source_store_id, d.variant_id, d.version_at, d.problem
        from jsonb_populate_recordset(null::esl.row_problems, p -> 'problems') d
        where not exists (
            select from esl.product_versions v
            where v.product_id = d.variant_id and v.source_store_id = d.source_store_id
              and v.source_system = d.source_system and v.version_at > d.version_at)
        on conflict (variant_id, source_store_id, source_system) do update
        set version_at = excluded.version_at, problem = excluded.problem
        where excluded.version_at >= o.version_at
          and (o.version_at, o.problem) <> (excluded.version_at, excluded.problem)
        returning source_system, source_store_id, variant_id
    ), marked as (
        update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'read'
        from noted n
        where o.variant_id = n.variant_id and o.source_store_id = n.source_store_id
          and o.source_system = n.source_system and not o.removed
    )
    select jsonb_build_object('noted', (select count(*) from noted))
$$;

-- {snapshot_id, unclear: [{lowest, highest, title}]} -> {kept}: the source lists products of which it does not say
-- which they are. None that may be one of them is concluded to be absent: of codes in that span, else of that title,
-- else any.
create or replace function public.esl_snapshot_keep(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare s esl.snapshots; v_kept int;
begin
    select * into s from esl.snapshots
    where id = (p ->> 'snapshot_id')::uuid and state = 'open' for no key update;
    insert into esl.snapshot_variants (variant_id, snapshot_id)
    select distinct o.variant_id, s.id
    from jsonb_populate_recordset(null::esl.unclear_row, p -> 'unclear') d
    join esl.products o
      on o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
     and case when d.lowest is not null then length(ltrim(o.barcode, '0')) = length(d.lowest)
                   and ltrim(o.barcode, '0') collate "C" between d.lowest and d.highest
              when d.title is not null then lower(o.title) = lower(d.title) else true end
    on conflict do nothing;
    get diagnostics v_kept = row_count;
    update esl.snapshots set seen = seen + v_kept where id = s.id and v_kept > 0;
    return jsonb_build_object('kept', v_kept);
end $$;

-- The file that a variant's present content is from; null where it is from none.
create or replace function esl.file_of(o esl.products) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('name', f.name, 'sha256', f.sha256, 'modified_at', f.modified_at, 'kind', f.kind,
                              'run_id', f.run_id, 'applied_at', f.applied_at)
    from esl.source_files f
    where f.source_store_id = o.source_store_id and f.source_system = o.source_system
      and f.version_at = o.source_updated_at
$$;

-- functions: grace.sql
-- Grace: a removal unbinds physical labels, and to bind each again is a person's work. So a removal that would unbind
-- any waits unbind_grace_hours, with the label blanked meanwhile (during_grace), and is forgotten when somebody wants
-- the place again. What is not known counts as bound. Level-triggered as everything here: a place waits as long as
-- esl.what_is_due says so; esl.graces remembers since when, and when it is to be looked at again.

-- How many physical labels are bound to a product, as far as is known.
create or replace function esl.bound_labels(p_store text, p_code text) returns int
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return (select count(*) from esl.devices d
            where d.product_code = p_code and d.store_code = p_store and d.gone_at is null);
end $$;

-- Whether no physical label is bound to a product: a complete pass that began after this time, at the server where the
-- store is, has shown none.
create or replace function esl.is_unbound(p_store text, p_code text, p_after timestamptz) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return coalesce((esl.complete_pass(p_store)).started_at > greatest(
               p_after, (select s.placed_at from esl.stores s where s.store_code = p_store)), false)
       and esl.bound_labels(p_store, p_code) = 0;
end $$;

-- Whether a label server is known to know no devices: there removals go as they always did.
create or replace function esl.knows_no_devices(p_server text) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return exists (select from esl.label_servers s where s.server = p_server and not s.knows_devices);
end $$;

-- When a wait is over that began then. Of a mapping that was paused it begins anew: nobody looked at it meanwhile; of
-- one that is being removed nothing waits.
create or replace function esl.grace_until(p_mapping uuid, p_since timestamptz) returns timestamptz
language plpgsql stable strict set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return (select greatest(p_since, m.activated_at) + make_interval(
                hours => case when m.leaving is null then esl.policy_number(m.settings, 'unbind_grace_hours')
                              else 0 end)
            from esl.store_mappings m where m.id = p_mapping);
end $$;

-- Whether a removal is to wait. What is in no ledger was never accepted, so nothing of ours can be bound to it.
create or replace function esl.removal_waits(p esl.place_row) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return p.is_shown
       and esl.grace_until(p.owner_mapping, coalesce(p.waits_since, clock_timestamp())) > clock_timestamp()
       and not esl.knows_no_devices(esl.server_of(p.store_code))
       and not esl.is_unbound(p.store_code, p.code, coalesce(p.decided_at, 'infinity'));
end $$;

-- What a place needs while it waits: to be blanked, or what one needs that stays as it is. A label of nobody's is not
-- written at all: it may turn out to be somebody's.
create or replace function esl.during_grace(p esl.place_row) returns text
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return case
        when p.owner_variant = '' then 'nothing'
        when (select esl.policy_text(m.settings, 'during_grace') from esl.store_mappings m where m.id = p.owner_mapping)
             <> 'blank' then esl.as_it_is(p)
        when p.in_doubt or not esl.is_blanked(p.shown_hash) then 'blank'
        else 'nothing' end;
end $$;

-- Since when the time of a place counts that waits: since it needs no blanking any more; the guard may hold that up.
create or replace function esl.wait_of(p_since timestamptz, p_what text) returns table (since timestamptz)
language sql volatile as $$
    select coalesce(p_since, case when p_what <> 'blank' then clock_timestamp() end)
$$;

-- Whether the guard has let a removal go already: it is approved, or the label was blanked for it.
create or replace function esl.has_passed(g esl.graces, p_shown_hash text) returns boolean
language sql immutable as $$
    select coalesce(g.approved or (not esl.is_blanked(g.label_hash) and esl.is_blanked(p_shown_hash)), false)
$$;

-- {label_server?, shop?, limit} -> {places}: places of a server (of the stores that a shop feeds) whose wait is over
-- are decided again; how many were. To be called until there are none.
create or replace function public.esl_graces_end(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    perform esl.lock_stores(array(select distinct d.store_code from esl.due_graces(p) d));
    select array_agg(d.store_code), array_agg(d.code) into v_stores, v_codes from esl.due_graces(p) d;
    perform esl.requeue(v_stores, v_codes);
    -- Whatever was decided, nobody turns in circles.
    update esl.graces g set until = clock_timestamp() + interval '1 minute'
    from unnest(v_stores, v_codes) as k (store_code, code)
    where g.store_code = k.store_code and g.code = k.code and g.until <= clock_timestamp();
    return jsonb_build_object('places', coalesce(cardinality(v_codes), 0));
end $$;

-- The places whose wait is over (p: as for esl_graces_end), of one store alone, so that no others wait for its locks.
create or replace function esl.due_graces(p jsonb) returns setof esl.graces
language sql volatile set search_path = '' as $$
    with first as (
        select g.store_code from esl.graces g
        where g.until <= clock_timestamp() and esl.server_of(g.store_code) = esl.server_in(p)
          and (p -> 'shop' is null or g.store_code = any (esl.stores_of_shop(
               p #>> '{shop,source_system}', p #>> '{shop,source_store_id}')))
        order by g.until limit 1
    )
    select g.* from first f join esl.graces g on g.store_code = f.store_code
    where g.until <= clock_timestamp() order by g.until limit (p ->> 'limit')::int
$$;

-- A pass over the devices of a store has ended, whatever it came to: what waits and need not any more is looked at
-- again. What is queued already is not; nor what somebody decides now, until the next pass: nobody is waited for.
create or replace function esl.graces_after_pass(p_store text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_server text := esl.server_of(p_store); v_all boolean := esl.knows_no_devices(v_server);
begin
    update esl.graces set until = clock_timestamp() where ctid = any (array(
        select g.ctid from esl.graces g
        where (v_all and esl.server_of(g.store_code) = v_server
               or g.store_code = p_store and esl.is_unbound(g.store_code, g.code, g.decided_at))
          and not exists (select from esl.sync_queue q
                          where q.code = g.code and q.store_code = g.store_code and q.operation = 'delete')
        for update skip locked));
end $$;

-- What waits of a mapping: {places, bound, next_at}: bound: physical labels that are known to be bound to it, next_at:
-- when the first of them is removed.
create or replace function esl.grace_state(p_mapping uuid) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('places', count(*), 'next_at', min(g.until),
                              'bound', coalesce(sum(esl.bound_labels(g.store_code, g.code)), 0))
    from esl.graces g join esl.hipoink_products s on s.code = g.code and s.store_code = g.store_code
    where s.mapping_id = p_mapping and not exists (
        select from esl.sync_queue q where q.code = g.code and q.store_code = g.store_code)
$$;

-- functions: guard.sql
-- The guard: too many drastic changes within some hours are more likely a mistake than a wish, and wait for somebody's
-- word.

-- Whether a price changes by more than so many per cent of the one shown.
create or replace function esl.is_large_change(p_shown numeric, p_price numeric, p_max_pct numeric) returns boolean
language sql immutable as $$
    select p_shown > 0 and abs(p_price - p_shown) * 100 > p_max_pct * p_shown
$$;

-- What the guard counts a change as: 'removal' (of a label, or of what it says), 'price' (by more than max_change_pct),
-- or null. p_shown: the label that hangs, p_label: the one that is wanted; p_passed: the removal has been let go before
-- it waited (see esl.has_passed).
create or replace function esl.drastic_kind(p_operation text, p_shown jsonb, p_shown_hash text, p_label jsonb,
                                            p_label_hash text, p_passed boolean, p_settings jsonb)
returns text language sql immutable as $$
    select case
        when p_operation = 'delete' then case when not p_passed then 'removal' end
        when esl.is_blanked(p_label_hash) and p_shown is not null and not esl.is_blanked(p_shown_hash) then 'removal'
        when esl.is_large_change(esl.price_of(p_shown), esl.price_of(p_label),
                                 esl.policy_number(p_settings, 'max_change_pct')) then 'price' end
$$;

-- For how many labels a drastic change of a place counts.
create or replace function esl.weight(p_drastic text, p_store text, p_code text) returns int
language sql stable as $$
    select case when p_drastic = 'removal' then greatest(1, esl.bound_labels(p_store, p_code)) else 1 end
$$;

-- How many labels a store had before so many were removed, physical ones or products on them, whichever are more; no
-- more of them are counted than it takes to be enough.
create or replace function esl.count_labels(p_store text, p_gone bigint, p_enough bigint) returns bigint
language sql stable set search_path = '' as $$
    select greatest(p_gone +
        (select count(*) from (select from esl.hipoink_products s where s.store_code = p_store limit p_enough) s),
        (select count(*) from (select from esl.devices d
                               where d.store_code = p_store and d.product_code is not null and d.gone_at is null
                                 and not esl.is_reserved(d.product_code)
                               limit p_enough) d))
$$;

-- How many changes of a kind were approved one by one since then.
create or replace function esl.approved_alone(p_store text, p_drastic text, p_since timestamptz) returns bigint
language sql stable set search_path = '' as $$
    select coalesce(sum(case p_drastic when 'removal' then a.removals else a.prices end), 0)
    from esl.approvals a where a.store_code = p_store and a.codes is not null and a.at > p_since
$$;

-- Holds back the drastic changes of a store, or lets them go on. What counts, per kind: those that wait without
-- approval, and those that were accepted without one in the last guard_hours and since somebody approved all. Too many:
-- more than guard_labels, and than guard_share_pct of the labels there were before. The limits are of the strictest
-- policy concerned. What was approved or rejected one by one counts as long, so that the others do not go because of
-- that. A removal counts for each physical label that is known to be bound to its product.
create or replace function esl.guard(p_store text) returns void
language plpgsql set search_path = '' as $$
declare r record; v_count bigint; v_labels bigint; v_since timestamptz;
begin
    for r in
        select q.drastic, bool_or(q.state = 'guarded' and q.rejected_at is null) as guarded,
               coalesce(sum(esl.weight(q.drastic, q.store_code, q.code)) filter (where coalesce(q.rejected_at > now()
                   - make_interval(hours => esl.policy_number(m.settings, 'guard_hours')), true)), 0) as pending,
               min(esl.policy_number(m.settings, 'guard_labels')) as most,
               min(esl.policy_number(m.settings, 'guard_share_pct')) as share,
               max(esl.policy_number(m.settings, 'guard_hours')) as hours
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.store_code = p_store and q.drastic is not null and not q.approved
        group by q.drastic
    loop
        v_since := greatest(now() - make_interval(hours => r.hours), (
            select max(a.at) from esl.approvals a where a.store_code = p_store and a.codes is null));
        select r.pending + coalesce(sum(c.labels) filter (where c.kind = r.drastic), 0), coalesce(sum(c.gone), 0)
        into v_count, v_labels
        from esl.drastic_changes c where c.store_code = p_store and c.at > v_since;
        v_count := v_count + esl.approved_alone(p_store, r.drastic, v_since);
        if v_count > r.most then
            v_labels := esl.count_labels(p_store, v_labels, v_count * 100 / greatest(r.share, 1) + 1);
        end if;
        if v_count > r.most and v_count * 100 > r.share * v_labels then
            update esl.sync_queue set state = 'guarded'
            where store_code = p_store and drastic = r.drastic and not approved
              and state in ('ready', 'failed', 'dead');
        elsif r.guarded then
            update esl.sync_queue set state = 'ready'
            where store_code = p_store and drastic = r.drastic and state = 'guarded' and rejected_at is null;
        end if;
    end loop;
end $$;

-- Remembers the drastic changes of an accepted push for esl.guard, but for approved ones. To be called before the
-- ledger takes the labels.
create or replace function esl.note_drastic(p_push uuid, p_store text, p_codes text[]) returns void
language plpgsql set search_path = '' as $$
begin
    insert into esl.drastic_changes (store_code, kind, labels, gone)
    select p_store, d.kind, sum(w.n), count(*) filter (where i.operation = 'delete')
    from esl.sync_log i
    join esl.hipoink_products s on s.code = i.code and s.store_code = i.store_code
    join esl.sync_queue q on q.code = i.code and q.store_code = i.store_code
    join esl.store_mappings m on m.id = i.mapping_id
    left join esl.graces g on g.code = i.code and g.store_code = i.store_code
    cross join lateral (
        select esl.drastic_kind(i.operation, s.label, s.label_hash, i.label, i.label_hash,
                                esl.has_passed(g, s.label_hash), m.settings) as kind) d
    cross join lateral (select esl.weight(d.kind, i.store_code, i.code) as n) w
    where i.push_id = p_push and i.kind = 'intent' and i.store_code = p_store and i.code = any (p_codes)
      and not q.approved and d.kind is not null
    group by d.kind;
    if found then
        delete from esl.drastic_changes where store_code = p_store and at < now() - interval '720 hours';
    end if;
end $$;

-- functions: hands.sql
-- By hand: which labels and products people mean, and what they did with them.

-- {names, store?} -> {stores: [{store_code, label_server}], labels: [{store_code, esl_code, product_code, model,
--   online, seen_at}], products: [{store_code, code, label, label_hash, waits}]}: the mapped stores, and what they have
-- of these names: labels that are called so, or show a product called so or were bound to it lately, and products that
-- the label server has accepted. waits: since when the product's label is to go.
create or replace function public.esl_hands_find(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with names as (
        select n.name from jsonb_array_elements_text(p -> 'names') as n (name)
    ), stores as (
        select distinct m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as label_server
        from esl.store_mappings m where m.removed_at is null
    ), here as (
        select s.store_code from stores s where p ->> 'store' is null or s.store_code = p ->> 'store'
    ), bound as (
        select a.esl_code, a.store_code from esl.label_actions a join names n on n.name = a.code
        where a.action = 'bind' and a.at > now() - interval '1 day'
    )
    select jsonb_build_object(
        'stores', (select coalesce(jsonb_agg(to_jsonb(s) order by s.store_code), '[]') from stores s),
        'labels', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store_code, t.esl_code), '[]') from (
            select d.store_code, d.esl_code, d.product_code, d.model, d.online, esl.device_seen_at(d) as seen_at
            from esl.devices d join here h on h.store_code = d.store_code
            where d.gone_at is null and (
                d.esl_code in (select n.name from names n) or d.product_code in (select n.name from names n)
                or (d.esl_code, d.store_code) in (select b.esl_code, b.store_code from bound b)) limit 1000) t),
        'products', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store_code, t.code), '[]') from (
            select s.store_code, s.code, s.label, s.label_hash, g.decided_at as waits
            from esl.hipoink_products s join here h on h.store_code = s.store_code
            left join esl.graces g on g.code = s.code and g.store_code = s.store_code
            where s.code in (select n.name from names n) limit 1000) t))
$$;

-- {action_id, by, store, action, esl_code?, code?, outcome, answer?} -> {}: keeps what somebody does, or how it ended.
-- What was accepted is to be shown.
create or replace function public.esl_hands_note(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    insert into esl.label_actions (action_id, by, store_code, action, esl_code, code, outcome, answer)
    values ((p ->> 'action_id')::uuid, p ->> 'by', p ->> 'store', p ->> 'action', p ->> 'esl_code', p ->> 'code',
            p ->> 'outcome', p ->> 'answer')
    on conflict (action_id, outcome) do nothing;
    if found and p ->> 'outcome' in ('accepted', 'unknown') and p ->> 'action' in ('bind', 'unbind') then
        perform esl.want_refresh(p ->> 'store');
    end if;
    return '{}';
end $$;

-- {action_id, by, store, code, label_hash, shows?} -> {seen}: somebody has looked at the label of a product, and it
-- shows what the label server accepted as this hash, or another price. Not seen: another hash was accepted by now.
create or replace function public.esl_hands_seen(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_is_so boolean;
begin
    select s.label_hash = p ->> 'label_hash' into v_is_so from esl.hipoink_products s
    where s.code = p ->> 'code' and s.store_code = p ->> 'store';
    if v_is_so then
        insert into esl.label_actions (action_id, by, store_code, action, code, outcome, answer)
        values ((p ->> 'action_id')::uuid, p ->> 'by', p ->> 'store', 'seen', p ->> 'code',
                case when p ->> 'shows' is null then 'right' else 'wrong' end, p ->> 'shows')
        on conflict (action_id, outcome) do nothing;
        if found then
            insert into esl.seen_labels (store_code, code, label_hash, by)
            values (p ->> 'store', p ->> 'code', case when p ->> 'shows' is null then p ->> 'label_hash' end,
                    p ->> 'by');
        end if;
    end if;
    return jsonb_build_object('seen', coalesce(v_is_so, false));
end $$;

-- When labels of a store were bound by hand last: that moves their rows as well.
create or replace function esl.bound_by_hand(p_store text) returns table (esl_code text, bound_by_hand_at timestamptz)
language sql stable set search_path = '' as $$
    select a.esl_code, max(a.at) from esl.label_actions a
    where a.store_code = p_store and a.action = 'bind' group by a.esl_code
$$;

-- functions: health.sql
-- What passes and what does not: label servers that are down, stores in doubt, and whose fault a refusal is.

-- Whether nothing is known to pass at a store: after three refused calls in a row, or a pause, one label is tried.
create or replace function esl.is_doubted(h esl.store_health) returns boolean
language sql immutable set search_path = '' as $$
    select h.refusals >= 3 or h.pauses > 0
$$;

-- Whether nothing may be pushed to a label server now, not even to try.
create or replace function esl.is_down(p_server text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.label_servers where server = p_server and probe_at > clock_timestamp())
$$;

-- Whether this worker may try a label server that is down; it keeps the others from it until its lease is over.
create or replace function esl.take_probe(p_server text, p_until timestamptz) returns boolean
language plpgsql volatile set search_path = '' as $$
begin
    update esl.label_servers set probe_at = p_until where server = p_server and probe_at <= clock_timestamp();
    return found;
end $$;

-- There was nothing to try it with.
create or replace function esl.give_probe_back(p_server text) returns void
language sql volatile set search_path = '' as $$
    update esl.label_servers set probe_at = clock_timestamp() where server = p_server
$$;

-- Seconds until the next try after so many in a row: growing to p_most, and not the same for all who wait.
create or replace function esl.backoff(p_first float8, p_multiplier float8, p_most float8, p_tries int) returns float8
language sql volatile set search_path = '' as $$
    select (0.75 + random() / 2) * least(p_most, p_first * power(p_multiplier, least(p_tries, 60)))
$$;

-- How long labels wait that were not accepted (p: as for esl_push_finish), after so many attempts and refusals: what
-- the server asks for, at least, and for refusals longer than for failures.
create or replace function esl.pause_before(p jsonb, p_attempts int, p_refusals int) returns interval
language sql volatile set search_path = '' as $$
    select make_interval(secs => greatest(
        coalesce((p ->> 'retry_after_seconds')::float8, 0),
        case when esl.is_refusal(p ->> 'outcome') then esl.backoff(
                 (p ->> 'refused_delay_seconds')::float8, (p ->> 'refused_multiplier')::float8,
                 (p ->> 'max_refused_delay_seconds')::float8, p_refusals)
             else esl.backoff((p ->> 'initial_delay_seconds')::float8, (p ->> 'multiplier')::float8,
                 (p ->> 'max_delay_seconds')::float8, p_attempts - 1) end))
$$;

-- Whether an outcome is a no, or refused credentials.
create or replace function esl.is_refusal(p_outcome text) returns boolean
language sql immutable set search_path = '' as $$
    select p_outcome in ('rejected', 'authentication')
$$;

-- A store has accepted something: nothing is held against it any more.
create or replace function esl.note_passing(p jsonb) returns void
language sql volatile set search_path = '' as $$
    insert into esl.store_health as h (store_code, accepted_at, usual_ms)
    values (p ->> 'store_code', clock_timestamp(), (p ->> 'duration_ms')::float8)
    on conflict (store_code) do update
    set accepted_at = excluded.accepted_at, refusals = 0, refused_at = null, pauses = 0, until = null, reason = null,
        unanswered = false,
        usual_ms = coalesce(0.8 * h.usual_ms + 0.2 * excluded.usual_ms, excluded.usual_ms, h.usual_ms)
$$;

-- The most labels that one call to a store may have now, where that is less than the settings say; null: it is not.
create or replace function esl.most_labels(p_server text, p_store text) returns int
language sql stable set search_path = '' as $$
    select least((select s.batch_size from esl.label_servers s where s.server = p_server),
                 (select h.batch_size from esl.store_health h where h.store_code = p_store))
$$;

-- What this size becomes when full batches pass quickly: a tenth more, up to p_most (null: no limit any more).
create or replace function esl.larger(p_size int, p_most int) returns int
language sql immutable set search_path = '' as $$
    select case when p_size * 1.1 < p_most then ceil(p_size * 1.1)::int end
$$;

-- What a call with p_size labels says of how many may be in one (p: as for esl_push_finish; p_locked: the row of the
-- label server is ours). Too many for the server (HTTP 413) halve its batches, and no batch of it is as large again for
-- an hour; no answer halves the store's. Both grow again with every full batch that is accepted quickly.
create or replace function esl.note_size(p jsonb, p_size int, p_locked boolean) returns void
language plpgsql volatile set search_path = '' as $$
declare
    v_server text := esl.server_in(p);
    v_store  text := p ->> 'store_code';
begin
    if p_size > 1 and p ->> 'outcome' = 'rejected' and p ->> 'http_status' = '413' and v_server is not null then
        insert into esl.label_servers (server, batch_size, too_large, too_large_at)
        values (v_server, p_size / 2, p_size, clock_timestamp())
        on conflict (server) do update
        set batch_size = excluded.batch_size, too_large = excluded.too_large, too_large_at = excluded.too_large_at;
    elsif p_size > 0 and p ->> 'outcome' = 'unknown' and p ->> 'http_status' is null then
        insert into esl.store_health as h (store_code, unanswered, batch_size)
        values (v_store, true, case when p_size > 1 then p_size / 2 end)
        on conflict (store_code) do update
        set unanswered = true, batch_size = coalesce(excluded.batch_size, h.batch_size);
    elsif p ->> 'outcome' = 'accepted' and p_size >= esl.most_labels(v_server, v_store)
          and (p ->> 'duration_ms')::int <= greatest(1000, 2 * coalesce(
              (select h.usual_ms from esl.store_health h where h.store_code = v_store), 0)) then
        update esl.label_servers
        set batch_size = case when too_large_at > now() - interval '1 hour'
                              then least(coalesce(esl.larger(batch_size, too_large), too_large - 1), too_large - 1)
                              else esl.larger(batch_size, (p ->> 'batch_size')::int) end
        where server = v_server and batch_size is not null and p_locked;
        update esl.store_health set batch_size = esl.larger(batch_size, (p ->> 'batch_size')::int)
        where store_code = v_store and batch_size is not null;
    end if;
end $$;

-- The circuit breaker, told of one call (see esl_push_finish) that was claimed at that time: when to try a label server
-- again that is down, or null. It is down after down_after failures in a row, or when it asks for a pause; its first
-- answer brings it back. Calls that were in flight together fail once: only one that was claimed after the last failure
-- says something new. p_locked: the row of the label server is ours.
create or replace function esl.note_health(p jsonb, p_claimed_at timestamptz, p_locked boolean) returns timestamptz
language plpgsql volatile set search_path = '' as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_asked float8 := coalesce((p ->> 'retry_after_seconds')::float8, 0);
    v_probe timestamptz;
    s       esl.label_servers;
begin
    if (p ->> 'server_failed')::boolean then
        insert into esl.label_servers (server) values (p ->> 'label_server') on conflict do nothing;
        update esl.label_servers
        set failures = failures + 1, failed_at = v_now, last_error = p ->> 'message'
        where server = p ->> 'label_server' and (failed_at is null or p_claimed_at is null or p_claimed_at > failed_at)
        returning * into s;
        update esl.label_servers
        set down_since = coalesce(down_since, v_now),
            probe_at = greatest(
                v_now + make_interval(secs => greatest(v_asked, esl.backoff(
                    (p ->> 'probe_seconds')::float8, 2, (p ->> 'max_probe_seconds')::float8,
                    greatest(failures - (p ->> 'down_after')::int, 0)))),
                case when s.server is null then probe_at end)
        where server = p ->> 'label_server'
          and (down_since is not null or failures >= (p ->> 'down_after')::int or v_asked > 0)
        returning probe_at into v_probe;
    elsif not (p ->> 'server_failed')::boolean and p_locked then
        update esl.label_servers
        set failures = 0, failed_at = null, down_since = null, probe_at = null, last_error = null
        where server = p ->> 'label_server' and failures > 0;
    end if;
    return v_probe;
end $$;

-- Whose fault a refusal is, told of one call as esl_push_finish is: 'label', 'store' or 'server'.
-- Blame needs evidence: it is the label's when it was alone and its neighbours pass, which means that the store
-- accepted something since the label was refused first, or before, and little was refused since; the server's when
-- several stores of it are refused and nothing passes; else the store's. A store that passes nothing is paused with the
-- server's words, for longer each time: after five refusals, or at the first credentials if it never passed anything.
-- p_before: when the label was refused first. p_again: it has failed before, so its refusal says nothing new.
create or replace function esl.blame(p jsonb, p_alone boolean, p_before timestamptz, p_again boolean) returns text
language plpgsql volatile set search_path = '' as $$
declare
    v_store  text := p ->> 'store_code';
    v_now    timestamptz := clock_timestamp();
    v_label  boolean;
    v_server boolean;
    h        esl.store_health;
begin
    insert into esl.store_health (store_code) values (v_store) on conflict do nothing;
    select * into h from esl.store_health where store_code = v_store for update;
    -- Several stores and three refusals, this one included, since anything was accepted anywhere.
    select count(*) > 1 and sum(x.refusals) >= 2 into v_server
    from esl.store_health x
    where esl.server_of(x.store_code) = esl.server_of(v_store)
      and (x.refused_at > coalesce((select max(a.accepted_at) from esl.store_health a
                                    where esl.server_of(a.store_code) = esl.server_of(v_store)), '-infinity')
           or (x.store_code = v_store and h.pauses = 0));
    v_label := p_alone and coalesce(
        h.accepted_at > p_before or (h.accepted_at is not null and h.refusals < 3 and not v_server), false);
    if v_label and p_again then
        update esl.store_health set until = null where store_code = v_store;
        return 'label';
    end if;
    h.refusals := h.refusals + 1;
    update esl.store_health
    set refusals = h.refusals, until = null, reason = p ->> 'message',
        refused_at = case when h.pauses = 0 then v_now else refused_at end
    where store_code = v_store;

    -- However many labels are at fault: a store that accepts none of twenty gets a rest as well.
    v_server := v_server and not v_label;
    if not v_server and (h.refusals >= 20 or (not v_label and (
            h.refusals >= 5 or h.pauses > 0
            or (p ->> 'outcome' = 'authentication' and (h.accepted_at is null or h.refusals > 3))))) then
        update esl.store_health
        set pauses = h.pauses + 1,
            until = v_now + make_interval(secs => least(
                (p ->> 'max_pause_seconds')::float8,
                (p ->> 'pause_seconds')::float8 * power(2, least(h.pauses, 60))))
        where store_code = v_store;
    end if;
    return case when v_label then 'label' when v_server then 'server' else 'store' end;
end $$;

-- functions: housekeeping.sql
-- What is not kept for ever: webhook bodies, and everything of a shop that has left.

-- The newest time that a shop's own words are of: those of its signed bodies, and a whole read of it. Null: none is
-- known.
create or replace function esl.last_said(p_system text, p_shop text) returns timestamptz
language sql stable set search_path = '' as $$
    select greatest(
        (select max(i.said_at) from esl.webhook_inbox i
         where i.source_store_id = p_shop and i.source_system = p_system and i.said_at is not null
           and i.topic <> 'app/uninstalled' and i.state <> 'unusable'),
        (select max(s.as_of) from esl.snapshots s
         where s.source_store_id = p_shop and s.source_system = p_system and s.state = 'finished'))
$$;

create or replace function esl.utc(p_at timestamptz) returns text
language sql stable set search_path = '' as $$
    select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')
$$;

-- Why an uninstallation is void, or null: it is of before the shop's last word, or before it was connected or its
-- mapping activated, for a message may come late, or again.
create or replace function esl.uninstalled_void(i esl.webhook_inbox) returns text
language plpgsql stable set search_path = '' as $$
declare
    v_said timestamptz := esl.last_said(i.source_system, i.source_store_id);
    v_activated timestamptz := (
        select max(m.activated_at) from esl.store_mappings m
        where m.source_system = i.source_system and m.source_store_id = i.source_store_id and m.is_active);
    v_connected timestamptz := (
        select c.connected_at from esl.connections c
        where c.source_system = i.source_system and c.source_store_id = i.source_store_id and c.ended_at is null);
begin
    return case
        when i.said_at is null then 'void: it has no time of its own'
        when v_said > i.said_at then
            format('void: of %s, and the shop has said something of %s', esl.utc(i.said_at), esl.utc(v_said))
        when date_trunc('second', v_activated) > i.said_at then
            format('void: of %s, and its mapping was activated at %s', esl.utc(i.said_at), esl.utc(v_activated))
        when date_trunc('second', v_connected) > i.said_at then
            format('void: of %s, and the shop was connected at %s', esl.utc(i.said_at), esl.utc(v_connected)) end;
end $$;

-- A shop has uninstalled the app, and its subscriptions have gone with it: its mappings are switched off.
create or replace function esl.switch_off(p_system text, p_shop text, p_by text, p_message text) returns void
language plpgsql set search_path = '' as $$
declare v_mapping uuid;
begin
    perform esl.lock_mappings();
    perform esl.lock_stores(esl.stores_of_shop(p_system, p_shop));
    for v_mapping in
        select m.id from esl.store_mappings m
        where m.source_system = p_system and m.source_store_id = p_shop and m.is_active
    loop
        perform public.esl_mapping_update(jsonb_build_object('id', v_mapping, 'is_active', false, 'by', p_by));
        update esl.store_mappings set switched_off = p_message where id = v_mapping;
    end loop;
    perform esl.end_connection(p_system, p_shop, p_message);
end $$;

-- Of deliveries that were just kept, as these rows, those that say that a shop has left take effect. Uninstalling has a
-- time of its own, which is signed; an order to erase has none: see esl_redaction_list.
create or replace function esl.shops_left(p_deliveries jsonb, p_ids bigint[]) returns void
language plpgsql set search_path = '' as $$
declare i esl.webhook_inbox; v_void text;
begin
    if not p_deliveries @? '$[*].topic ? (@ == "app/uninstalled" || @ == "shop/redact")' then
        return;  -- as nearly always: without a look into the table
    end if;
    for i in
        select * from esl.webhook_inbox w
        where w.id = any (p_ids) and w.topic in ('app/uninstalled', 'shop/redact') and w.state = 'done' order by w.id
    loop
        if i.topic = 'shop/redact' then
            insert into esl.redactions (source_system, source_store_id, inbox_id)
            values (i.source_system, i.source_store_id, i.id);
            continue;
        end if;
        v_void := esl.uninstalled_void(i);
        if v_void is null then
            perform esl.switch_off(i.source_system, i.source_store_id, i.topic,
                                   format('%s of %s', i.topic, esl.utc(i.said_at)));
        else
            update esl.webhook_inbox set state = 'superseded', reason = v_void where id = i.id;
        end if;
    end loop;
end $$;

-- What speaks against an order to erase a shop, or null: the shop was activated or connected after it, or has said
-- something after it uninstalled the app. Where that is not known: in the 48 h before the order, for Shopify sends it
-- no earlier.
create or replace function esl.redaction_void(r esl.redactions) returns text
language sql stable set search_path = '' as $$
    select case
        when exists (select from esl.store_mappings m
                     where m.source_system = r.source_system and m.source_store_id = r.source_store_id
                       and m.activated_at > r.requested_at)
            then 'void: a mapping of the shop was activated after it'
        when exists (select from esl.connections c
                     where c.source_system = r.source_system and c.source_store_id = r.source_store_id
                       and c.ended_at is null and c.connected_at > r.requested_at)
            then 'void: the shop was connected after it'
        when said.last > coalesce(said.goodbye, r.requested_at - interval '48 hours')
            then format('void: the shop has said something of %s, after it left', esl.utc(said.last)) end
    from (select esl.last_said(r.source_system, r.source_store_id) as last,
                 (select max(i.said_at) from esl.webhook_inbox i
                  where i.source_store_id = r.source_store_id and i.source_system = r.source_system
                    and i.topic = 'app/uninstalled' and i.state = 'done') as goodbye) said
$$;

create or replace function esl.redaction_close(p_id bigint, p_void text) returns void
language sql volatile set search_path = '' as $$
    with closed as (
        update esl.redactions set void = p_void, finished_at = clock_timestamp()
        where id = p_id and finished_at is null returning inbox_id
    )
    update esl.webhook_inbox i set state = 'superseded', reason = p_void from closed c where i.id = c.inbox_id
$$;

-- {} -> {redactions: [{id, source_system, source_store_id, requested_at}]}: orders to erase a shop that wait for the
-- answer of esl_redaction_decide. Void ones are closed with their reason; while a mapping of the shop is active, its
-- order waits, and for its first two days (not_before): the lie of a stolen receiver login is seen meanwhile, a shop
-- that returns is back.
create or replace function public.esl_redaction_list(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    perform esl.redaction_close(r.id, esl.redaction_void(r)) from esl.redactions r
    where r.finished_at is null and esl.redaction_void(r) is not null;
    return (select jsonb_build_object('redactions', coalesce(jsonb_agg(jsonb_build_object(
                'id', r.id, 'source_system', r.source_system, 'source_store_id', r.source_store_id,
                'requested_at', r.requested_at) order by r.id), '[]'))
            from esl.redactions r
            where r.finished_at is null and r.confirmed_at is null and r.not_before <= now()
              and not esl.has_active_mapping(r.source_system, r.source_store_id));
end $$;

-- Whether a shop may be erased now.
create or replace function esl.may_redact(r esl.redactions) returns boolean
language sql stable set search_path = '' as $$
    select r.finished_at is null and r.confirmed_at is not null and r.not_before <= now()
           and not esl.has_active_mapping(r.source_system, r.source_store_id) and esl.redaction_void(r) is null
$$;

-- {id, token_works} -> {confirmed}: whether the shop still takes our Admin token (false too where there is none). If it
-- does, the shop has not left, and the order is void.
create or replace function public.esl_redaction_decide(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    if (p ->> 'token_works')::boolean then
        perform esl.redaction_close((p ->> 'id')::bigint, 'void: the shop still takes our Admin token');
    else
        update esl.redactions r set confirmed_at = coalesce(r.confirmed_at, clock_timestamp())
        where r.id = (p ->> 'id')::bigint and r.finished_at is null and r.not_before <= now()
          and not esl.has_active_mapping(r.source_system, r.source_store_id);
    end if;
    return (select jsonb_build_object('confirmed', coalesce(bool_or(r.confirmed_at is not null), false))
            from esl.redactions r where r.id = (p ->> 'id')::bigint);
end $$;

-- The tables that are about a shop by its name, of which nothing stays.
create or replace function esl.forget_shop(p_system text, p_shop text, p_limit int) returns int
language plpgsql set search_path = '' as $$
declare v_table text; v_rows int; v_all int;
begin
    delete from esl.webhook_inbox where id in (
        select id from esl.webhook_inbox
        where source_system = p_system and source_store_id = p_shop and topic not in ('app/uninstalled', 'shop/redact')
        limit p_limit);
    get diagnostics v_all = row_count;
    delete from esl.shop_waiting w
    where w.source_system = p_system and w.source_store_id = p_shop and not exists (
        select from esl.webhook_inbox i where i.source_system = p_system and i.source_store_id = p_shop
          and i.state in ('ready', 'leased'));
    foreach v_table in array array['product_versions', 'products', 'inventory_levels', 'variant_details', 'shops',
                                   'watermarks', 'snapshots', 'shop_deliveries', 'connections',
                                   'refused_signatures', 'source_files', 'row_problems'] loop
        execute format('delete from esl.%I where ctid = any (array(
                            select ctid from esl.%I where source_system = $1 and source_store_id = $2 limit $3))',
                       v_table, v_table) using p_system, p_shop, p_limit;
        get diagnostics v_rows = row_count;
        v_all := v_all + v_rows;
    end loop;
    delete from esl.snapshot_variants n where not exists (select from esl.snapshots s where s.id = n.snapshot_id);
    delete from esl.snapshot_levels n where not exists (select from esl.snapshots s where s.id = n.snapshot_id);
    return v_all;
end $$;

-- What was made of a shop's products for its mappings. A label that still hangs keeps a row without content, so that it
-- can leave if the mapping is ever used again.
create or replace function esl.forget_labels(p_mappings uuid[]) returns int
language sql volatile set search_path = '' as $$
    with emptied as (
        update esl.labels l
        set state = 'withdrawn', code = null, label = null, label_hash = null, precedence = null, event_ids = '{}'
        where l.mapping_id = any (p_mappings) and (l.state <> 'withdrawn' or l.code is not null)
          and exists (select from esl.hipoink_products s
                      where s.mapping_id = l.mapping_id and s.variant_id = l.variant_id)
        returning 1
    ), labels as (
        delete from esl.labels l
        where l.mapping_id = any (p_mappings)
          and not exists (select from esl.hipoink_products s
                          where s.mapping_id = l.mapping_id and s.variant_id = l.variant_id)
        returning 1
    ), findings as (
        delete from esl.findings where mapping_id = any (p_mappings) returning 1
    ), waits as (
        delete from esl.graces g using esl.hipoink_products s
        where s.mapping_id = any (p_mappings) and g.code = s.code and g.store_code = s.store_code
    ), queue as (
        delete from esl.sync_queue where mapping_id = any (p_mappings) and state <> 'leased' returning 1
    )
    select (select count(*) from emptied)::int + (select count(*) from labels)::int
           + (select count(*) from findings)::int + (select count(*) from queue)::int
$$;

-- Deletes up to p_limit rows per table of what a shop has told us, and what was made of it; how many went. What stays
-- is about labels and about us, not about people: the mappings (inactive), the audit of what labels showed (sync_log,
-- approvals, drift, price_history), the ledger of what the label server still holds, and, without their bodies, the
-- deliveries that ended the relation, so that they cannot be replayed.
create or replace function esl.redact(p_system text, p_shop text, p_limit int) returns int
language plpgsql set search_path = '' as $$
declare
    v_mappings uuid[] := array(select id from esl.store_mappings
                               where source_system = p_system and source_store_id = p_shop);
begin
    delete from esl.turns where party = p_system || ':' || p_shop or party = any (v_mappings::text[]);
    delete from esl.measures where party = p_system || ':' || p_shop;
    delete from esl.accuracies where mapping_id = any (v_mappings);
    delete from esl.number_answers;
    return esl.forget_shop(p_system, p_shop, p_limit) + esl.forget_labels(v_mappings);
end $$;

-- Deletes what has waited p_days for a store to be mapped (see esl_inbox_add), and counts it; how many.
create or replace function esl.expire_unmapped(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_expired int;
begin
    with gone as (
        delete from esl.webhook_inbox where id in (
            select i.id
            from (select distinct w.source_system, w.source_store_id from esl.shop_waiting w) s
            cross join lateral (
                select e.id, e.received_at from esl.webhook_inbox e
                where e.source_system = s.source_system and e.source_store_id = s.source_store_id and e.state = 'ready'
                order by e.id limit p_limit for update skip locked) i
            where not esl.is_mapped(s.source_system, s.source_store_id)
              and i.received_at < now() - make_interval(days => p_days)
            limit p_limit)
        returning source_system, source_store_id
    ), counted as (
        insert into esl.shop_deliveries as o (source_system, source_store_id, expired)
        select source_system, source_store_id, count(*) from gone group by 1, 2 order by 1, 2
        on conflict (source_store_id, source_system) do update set expired = o.expired + excluded.expired
    )
    select count(*) into v_expired from gone;
    return v_expired;
end $$;

-- Nulls the bodies of deliveries that were finished p_days ago (their hashes stay, so that copies are still known).
create or replace function esl.drop_bodies(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_bodies int;
begin
    update esl.webhook_inbox set body = null
    where id in (
        select id from esl.webhook_inbox
        where body is not null and finished_at < now() - make_interval(days => p_days)
        order by finished_at limit p_limit for update skip locked);
    get diagnostics v_bodies = row_count;
    return v_bodies;
end $$;

-- Deletes deliveries that were finished p_days ago and protect nothing any more: of bodies that carry a signed time of
-- their own, a copy that is no longer known is older than what is stored, and so superseded (see esl_variants_merge);
-- and what could not be used. The others (of deleted products, orders to erase) are known by their hash alone.
create or replace function esl.forget_deliveries(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_deliveries int;
begin
    delete from esl.webhook_inbox
    where id in (
        select id from esl.webhook_inbox
        where (said_at is not null or state = 'unusable') and finished_at < now() - make_interval(days => p_days)
        order by finished_at limit p_limit for update skip locked);
    get diagnostics v_deliveries = row_count;
    return v_deliveries;
end $$;

-- Deletes passes over labels that began p_days ago, but the newest complete one of each store at each server.
create or replace function esl.forget_passes(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_passes int;
begin
    delete from esl.device_passes
    where id in (
        select o.id from esl.device_passes o
        where o.started_at < now() - make_interval(days => p_days) and (o.state <> 'complete' or exists (
            select from esl.device_passes n
            where n.store_code = o.store_code and n.label_server = o.label_server and n.state = 'complete'
              and n.started_at > o.started_at))
        order by o.started_at limit p_limit for update skip locked);
    get diagnostics v_passes = row_count;
    return v_passes;
end $$;

-- Deletes what was told p_days ago of how labels could be reached; what they were bound to and their batteries stay.
create or replace function esl.forget_reach(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_changes int;
begin
    delete from esl.device_changes
    where id in (
        select c.id from esl.device_changes c
        where c.what in ('online', 'ap') and c.at < now() - make_interval(days => p_days) order by c.at limit p_limit);
    get diagnostics v_changes = row_count;
    return v_changes;
end $$;

-- {keep_bodies_days, keep_deliveries_days?, limit} -> {bodies, deliveries, unmapped, passes, reach, redacted, more}:
-- one batch; call again while more. Deletes what has waited keep_bodies_days for a store to be mapped, the bodies of
-- finished deliveries, later the deliveries that protect nothing, and what shops have asked to be forgotten, once that
-- is confirmed (esl_redaction_decide) and for as long as nothing speaks against it.
create or replace function public.esl_housekeep(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    r esl.redactions; v_limit int := (p ->> 'limit')::int;
    v_unmapped int; v_bodies int; v_deliveries int; v_passes int; v_reach int; v_hours int;
    v_redacted int := 0;
begin
    v_unmapped := esl.expire_unmapped((p ->> 'keep_bodies_days')::int, v_limit);
    v_bodies := esl.drop_bodies((p ->> 'keep_bodies_days')::int, v_limit);
    v_deliveries := esl.forget_deliveries((p ->> 'keep_deliveries_days')::int, v_limit);
    v_passes := esl.forget_passes((p ->> 'keep_bodies_days')::int, v_limit);
    v_reach := esl.forget_reach((p ->> 'keep_deliveries_days')::int, v_limit);
    v_hours := esl.forget_hours(v_limit);
    select * into r from esl.redactions o
    where o.finished_at is null and esl.may_redact(o) order by o.id limit 1 for update skip locked;
    if found then
        v_redacted := esl.redact(r.source_system, r.source_store_id, v_limit);
        update esl.redactions
        set removed = removed + v_redacted, finished_at = case when v_redacted = 0 then clock_timestamp() end
        where id = r.id;
    end if;
    return jsonb_build_object('bodies', v_bodies, 'deliveries', v_deliveries, 'unmapped', v_unmapped,
        'redacted', v_redacted, 'passes', v_passes, 'reach', v_reach,
        'more', v_limit in (v_bodies, v_deliveries, v_unmapped, v_passes, v_reach, v_hours)
            or (r.id is not null and exists (
            select from esl.redactions o where o.finished_at is null and esl.may_redact(o))));
end $$;

-- functions: inbox.sql
-- The inbox: one insert per delivery, leased claims, completion.

-- Of earlier builds.
drop function if exists esl.keepable(jsonb, bigint, bigint), esl.add_deliveries(jsonb), esl.take_over_deliveries(jsonb);

-- Of the deliveries those that may not wait: no store is mapped for their shop, and with them more would wait than
-- p_bytes or p_deliveries. A mapping that is made later begins with a complete read, so nothing is missed. What is kept
-- already is not among them, so that the same call again has the same answer.
create or replace function esl.not_to_keep(p_added jsonb, p_bytes bigint, p_deliveries bigint)
returns table (source_system text, source_store_id text, webhook_ids text[])
language sql stable set search_path = '' as $$
    select f.source_system, f.source_store_id, f.webhook_ids
    from (
        select d ->> 'source_system' as source_system, d ->> 'source_store_id' as source_store_id,
               array_agg(d ->> 'webhook_id') as webhook_ids, count(*) as n,
               sum(pg_column_size(d) / 4 * 3) as bytes  -- of the body in base64, nearly
        from jsonb_array_elements(p_added) d
        where d ->> 'state' = 'ready' and not esl.is_mapped(d ->> 'source_system', d ->> 'source_store_id')
          and not exists (
              select from esl.webhook_inbox i
              where i.source_system = d ->> 'source_system' and i.source_store_id = d ->> 'source_store_id'
                and i.topic = d ->> 'topic' and i.webhook_id = d ->> 'webhook_id' and i.state <> 'unusable')
        group by 1, 2) f
    cross join lateral esl.waiting(f.source_system, f.source_store_id) w
    where w.bytes + f.bytes > p_bytes or w.deliveries + f.n > p_deliveries
$$;

-- Of the deliveries those that may not wait, by shop and webhook id; they are counted.
create or replace function esl.not_kept(p_deliveries jsonb, p_bytes bigint, p_most bigint) returns text[]
language plpgsql volatile set search_path = '' as $$
declare v_not_kept text[];
begin
    if not exists (select from (select distinct d ->> 'source_system' as system, d ->> 'source_store_id' as shop
                                from jsonb_array_elements(p_deliveries) d) s
                   left join esl.store_mappings m on m.source_system = s.system and m.source_store_id = s.shop
                       and m.removed_at is null
                   where m.id is null) then  -- esl.is_mapped, of all at once
        return '{}';
    end if;
    with not_kept as (
        select * from esl.not_to_keep(p_deliveries, p_bytes, p_most)
    ), counted as (
        insert into esl.shop_deliveries as o (source_system, source_store_id, not_kept, last_not_kept_at)
        select source_system, source_store_id, cardinality(webhook_ids), now() from not_kept order by 1, 2
        on conflict (source_store_id, source_system) do update
        set not_kept = o.not_kept + excluded.not_kept, last_not_kept_at = excluded.last_not_kept_at
    )
    select coalesce(array_agg(concat_ws(' ', n.source_system, n.source_store_id, w.id)), '{}') into v_not_kept
    from not_kept n cross join lateral unnest(n.webhook_ids) w (id);
    return v_not_kept;
end $$;

-- Keeps deliveries that are not there yet, and says which these are. A copy has the webhook id of another delivery, or
-- its body and trigger time; of a body that is there already, none is kept as unusable. In the order
-- in which they came: two calls with the same copies in another order may wait for each other, and one of them fails
-- with 40P01; a receiver has no shop in two calls at a time.
create or replace function esl.keep_deliveries(p_deliveries jsonb) returns esl.kept_row[]
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_kept esl.kept_row[];
begin
    with added as (
        insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, event_id, triggered_at,
                                       api_version, said_at, body, body_sha256, state, reason, proven, finished_at)
        select d.source_system, d.source_store_id, d.topic, d.webhook_id, d.event_id, d.triggered_at,
               d.api_version, d.said_at,
               -- Of a shop without a store nobody looks at what cannot be used: its hash and the reason are enough.
               case when d.state = 'ready' or esl.is_mapped(d.source_system, d.source_store_id)
                    then decode(d.body_base64, 'base64') end,
               d.body_sha256, d.state, d.reason, coalesce(d.proven, false), case when d.state <> 'ready' then now() end
        from jsonb_populate_recordset(null::esl.delivery_row, p_deliveries) d
        where d.state <> 'unusable' or not exists (
            select from esl.webhook_inbox i
            where i.body_sha256 = d.body_sha256 and i.topic = d.topic and i.source_store_id = d.source_store_id
              and i.source_system = d.source_system)
        on conflict do nothing
        returning id, source_system, source_store_id, topic, webhook_id
    )
    select coalesce(array_agg(added::esl.kept_row), '{}') into v_kept from added;
    return v_kept;
end $$;

-- What was kept as unusable only because of its unsigned headers gives way to a good copy; which copies these are.
create or replace function esl.take_over_unusable(p_deliveries jsonb) returns esl.kept_row[]
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_kept esl.kept_row[];
begin
    with again as (
        update esl.webhook_inbox i
        set event_id = d.event_id, triggered_at = d.triggered_at, api_version = d.api_version, said_at = d.said_at,
            body = decode(d.body_base64, 'base64'), received_at = now(), state = d.state, reason = d.reason,
            attempts = 0, proven = coalesce(d.proven, false), finished_at = case when d.state <> 'ready' then now() end
        from jsonb_populate_recordset(null::esl.delivery_row, p_deliveries) d
        where i.source_system = d.source_system and i.source_store_id = d.source_store_id
          and i.topic = d.topic and i.body_sha256 = d.body_sha256
          and i.state = 'unusable' and d.state <> 'unusable'
          and (i.webhook_id = d.webhook_id or i.triggered_at is not distinct from d.triggered_at)
          and not exists (
              select from esl.webhook_inbox o
              where o.body_sha256 = d.body_sha256 and o.topic = d.topic and o.source_store_id = d.source_store_id
                and o.source_system = d.source_system and o.triggered_at is not distinct from d.triggered_at
                and o.id <> i.id)
        returning i.id, d.source_system, d.source_store_id, d.topic, d.webhook_id
    )
    select coalesce(array_agg(again::esl.kept_row), '{}') into v_kept from again;
    return v_kept;
end $$;

-- What has become of each delivery, in their order: {inserted, waiting, refused?} as if it had come alone. Of copies in
-- one call the first is the one that was kept.
create or replace function esl.told_of_each(p_deliveries jsonb, p_kept esl.kept_row[], p_not_kept text[], p_why text)
returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
    with each as materialized (
        select n, d ->> 'source_system' as system, d ->> 'source_store_id' as shop, d ->> 'topic' as topic,
               d ->> 'webhook_id' as id
        from jsonb_array_elements(p_deliveries) with ordinality as e (d, n)
    ), waiting as materialized (
        -- esl.waiting, of all at once
        select s.system, s.shop, jsonb_build_object('deliveries', coalesce(sum(w.deliveries), 0),
                                                    'bytes', coalesce(sum(w.bytes), 0)) as waiting
        from (select distinct system, shop from each) s
        left join esl.shop_waiting w on w.source_system = s.system and w.source_store_id = s.shop
        group by s.system, s.shop
    ), kept as materialized (
        select distinct source_system as system, source_store_id as shop, topic, webhook_id as id from unnest(p_kept)
    )
    select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'inserted', (k.id is not null and e.copy = 1)::int, 'waiting', w.waiting,
               'refused', case when concat_ws(' ', e.system, e.shop, e.id) = any (p_not_kept) then p_why end))
           order by e.n)
    from (select *, row_number() over (partition by system, shop, topic, id order by n) as copy from each) e
    join waiting w using (system, shop)
    left join kept k using (system, shop, topic, id));
end $$;

-- (Its plans are kept, for to plan takes longer than to do; all but those that look into the inbox, which may have
-- grown since.)
-- {deliveries: [...], unmapped_bytes?, unmapped_deliveries?} -> {received, inserted, waiting: {deliveries, bytes},
-- refused?, each?}. A delivery that is already there is not an error; 22023: none that a receiver sends
-- (esl.check_deliveries). waiting: how much of the (first) delivery's shop waits now. refused: why some were not kept
-- (esl.not_to_keep). each, of several: the same of each of them, in their order (esl.told_of_each).
-- Without state, reason and said_at a delivery is judged here (esl.judged), for receivers that cannot read its body.
-- said_at: the time in the signed body. proven: signed with a secret that only this shop has. The deliveries that say
-- that a shop has left come without their body and take effect here, in the same transaction (see esl.shop_left).
create or replace function public.esl_inbox_add(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_received jsonb := esl.judged(p -> 'deliveries'); v_number int := jsonb_array_length(v_received);
    v_deliveries jsonb;
    v_bytes bigint := coalesce((p ->> 'unmapped_bytes')::bigint, 64000000);
    v_most bigint := coalesce((p ->> 'unmapped_deliveries')::bigint, 20000);
    v_not_kept text[]; v_kept esl.kept_row[]; v_why text; v_each jsonb; v_waiting jsonb;
begin
    if v_number > 1 and jsonb_path_exists(v_received, '$[*].source_store_id ? (@ != $first)',
                                          jsonb_build_object('first', v_received #> '{0,source_store_id}')) then
        -- Of several shops: what one of them waits for holds the others up no longer. They come again, each alone.
        perform set_config('lock_timeout', '500', true);
    end if;
    perform esl.check_deliveries(v_received);
    v_not_kept := esl.not_kept(v_received, v_bytes, v_most);
    v_deliveries := v_received;
    if v_not_kept <> '{}' then
        v_why := format('no store is mapped for the shop, and no more than %s MB or %s deliveries of it may wait',
                        v_bytes / 1000000, v_most);
        select coalesce(jsonb_agg(d), '[]') into v_deliveries from jsonb_array_elements(v_received) d
        where concat_ws(' ', d ->> 'source_system', d ->> 'source_store_id', d ->> 'webhook_id') <> all (v_not_kept);
    end if;
    v_kept := esl.keep_deliveries(v_deliveries);
    if cardinality(v_kept) < jsonb_array_length(v_deliveries) then
        v_kept := v_kept || esl.take_over_unusable(v_deliveries);
    end if;
    perform esl.shops_left(v_deliveries, array(select k.id from unnest(v_kept) k));
    if cardinality(v_kept) > 0 then
        perform pg_notify('esl_inbox', '');  -- wakes a drain that waits
    end if;

    if v_number > 1 then
        v_each := esl.told_of_each(v_received, v_kept, v_not_kept, v_why);
        v_waiting := v_each #> '{0,waiting}';
    elsif v_number = 1 then
        v_waiting := to_jsonb(esl.waiting(v_received #>> '{0,source_system}', v_received #>> '{0,source_store_id}'));
    end if;
    return jsonb_strip_nulls(jsonb_build_object(
        'received', v_number, 'inserted', cardinality(v_kept), 'waiting', v_waiting, 'refused', v_why,
        'each', v_each));
end $$;

-- Notes that parties have had their turn now. In one order, so that no two wait for each other in a circle.
create or replace function esl.take_turns(p_queue text, p_parties text[]) returns void
language sql volatile set search_path = '' as $$
    insert into esl.turns (queue, party, taken_at)
    select p_queue, party, clock_timestamp() from (select distinct unnest(p_parties) as party order by 1) parties
    on conflict (party, queue) do update set taken_at = excluded.taken_at
$$;

-- What the next claim takes (ids), and what has been claimed too often (dead); arguments as of esl_inbox_claim. Shops
-- take turns: of each its oldest events, as many bytes of one as of another, whoever waited longest for its turn first.
-- Where a shop's oldest event was claimed before and never finished, something may be in it that no run survives: that
-- shop is claimed alone when it is its turn, and each time half as much of it, until the culprit stands alone and dies
-- of its attempts without company. The others never share a claim with it.
create or replace function esl.next_deliveries(p jsonb, p_now timestamptz, out ids bigint[], out dead bigint[])
language plpgsql stable set search_path = '' as $$
declare v_attempts int := (p ->> 'max_attempts')::int;
begin
    with heads as materialized (
        select s.source_system, s.source_store_id, h.id, h.attempts, t.taken_at
        from esl.shops_to_read(p) s
        cross join lateral (
            select e.id, e.attempts from esl.webhook_inbox e
            where e.source_system = s.source_system and e.source_store_id = s.source_store_id
              and (e.state = 'ready' or (e.state = 'leased' and e.lease_until < p_now))
            order by e.id limit 1) h
        left join esl.turns t on t.party = s.source_system || ':' || s.source_store_id and t.queue = 'inbox'
    ), next as (
        select h.id, h.attempts from heads h order by h.taken_at nulls first, h.id limit 1
    ), served as materialized (
        select h.*, count(*) over () as shops
        from heads h join next n on case when n.attempts > 0 then h.id = n.id else h.attempts = 0 end
    ), open_events as materialized (
        -- A few rows of each shop are enough: what it has more comes with its next turn.
        select e.*, s.taken_at, sum(e.bytes) over (partition by s.id order by e.id) - e.bytes as has_taken
        from served s cross join lateral (
            select i.id, i.attempts, coalesce(octet_length(i.body), 0) + 1000 as bytes from esl.webhook_inbox i
            where i.source_system = s.source_system and i.source_store_id = s.source_store_id and i.id >= s.id
              and (i.state = 'ready' or (i.state = 'leased' and i.lease_until < p_now))
              and (s.attempts > 0 or i.attempts = 0)
            order by i.id limit (2 * (p ->> 'limit')::int + s.shops - 1) / s.shops) e
    ), placed as (
        select id, row_number() over in_turn as place, sum(bytes) over in_turn - bytes as bytes_before,
               case when first_value(attempts) over in_turn < v_attempts - 1
                    then 2 ^ first_value(attempts) over in_turn end as part  -- null: one alone
        from open_events where attempts < v_attempts
        window in_turn as (order by has_taken, taken_at nulls first, id)
    )
    select (select array_agg(id) from placed
            where place = 1 or (place <= (p ->> 'limit')::int / part
                                and bytes_before < (p ->> 'max_bytes')::bigint / part)),
           (select array_agg(id) from open_events where attempts >= v_attempts)
    into ids, dead;
end $$;

-- The rows of these that are still open, locked; what somebody else works with is left out. (The case: of a condition
-- like that of the index of open deliveries the planner would walk all of that.)
create or replace function esl.lock_open(p_ids bigint[], p_now timestamptz) returns bigint[]
language plpgsql volatile set search_path = '' as $$
begin
    return array(
        select i.id from esl.webhook_inbox i
        where i.id = any (p_ids) and case i.state when 'leased' then i.lease_until < p_now else i.state = 'ready' end
        for update skip locked);
end $$;

-- {claim_id, limit, max_bytes, lease_seconds, max_attempts, run_id, shop?: {source_system, source_store_id},
-- label_server?, label_servers?} -> {events: [...]}, oldest first (see esl.next_deliveries). Only shops with a mapping
-- (the others' events wait), one or those of a server (see esl.shops_to_read).
-- The same claim_id again returns the same rows, so that a lost answer parks nothing.
create or replace function public.esl_inbox_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_claim uuid := (p ->> 'claim_id')::uuid; v_now timestamptz := clock_timestamp();
    v_next record; v_ids bigint[]; v_shops text[];
begin
    perform esl.know_what_grew();
    if not exists (select from esl.webhook_inbox where claim_id = v_claim and state = 'leased') then
        v_next := esl.next_deliveries(p, v_now);
        v_ids := esl.lock_open(v_next.dead, v_now);
        update esl.webhook_inbox i
        set state = 'dead', finished_at = v_now, claim_id = null, lease_until = null,
            reason = format('given up after %s attempts: the run that read it never finished', i.attempts)
        where i.id = any (v_ids);
        v_ids := esl.lock_open(v_next.ids, v_now);
        with claimed as (
            update esl.webhook_inbox i
            set state = 'leased', attempts = i.attempts + 1, claim_id = v_claim, run_id = p ->> 'run_id',
                lease_until = v_now + make_interval(secs => (p ->> 'lease_seconds')::float8)
            where i.id = any (v_ids)
            returning i.source_system || ':' || i.source_store_id as shop
        )
        select array_agg(shop) into v_shops from claimed;
        perform esl.take_turns('inbox', v_shops);
    end if;
    return jsonb_build_object('events', coalesce((
        select jsonb_agg(jsonb_build_object(
                   'id', id, 'source_system', source_system, 'source_store_id', source_store_id, 'topic', topic,
                   'webhook_id', webhook_id, 'triggered_at', triggered_at, 'received_at', received_at,
                   'body_sha256', body_sha256, 'body_base64', encode(body, 'base64')) order by id)
        from esl.webhook_inbox where claim_id = v_claim and state = 'leased'), '[]'));
end $$;

-- functions: label_fields.sql
-- The label server's names of what is on a label, which nothing else in SQL knows: pc the code, pn the name, pp the
-- price (hipoink-api.md section 5). It fills what the ledger says of foreign labels: whatever that is, nothing here
-- raises.

-- The price on a label; null where there is none that can be read.
create or replace function esl.price_of(p_label jsonb) returns numeric
language sql immutable as $$
    select case when p_label ->> 'pp' ~ '^[0-9]{1,12}([.][0-9]{1,6})?$' then (p_label ->> 'pp')::numeric end
$$;

-- A label without its content. The label server demands a name and a price.
create or replace function esl.blanked(p_label jsonb) returns jsonb
language sql immutable strict as $$
    select jsonb_object_agg(f.key, case
        when f.key = 'pc' then f.value
        when f.key = 'pn' then '"-"'
        when f.key = 'pp' then '"0.00"'
        when f.key = 'promotion' then f.value  -- it takes nothing but numbers
        when jsonb_typeof(f.value) = 'object' then (
            select coalesce(jsonb_object_agg(e.key, ''), '{}') from jsonb_each(f.value) e)
        else '""' end)
    from jsonb_each(case when jsonb_typeof(p_label) = 'object' then p_label else '{}' end) f
$$;

-- The hash that goes with a blanked label wherever it goes: into queue, log and ledger. Its first word is the mark by
-- which it is known, because its content is none: a product may be called "-" and cost nothing.
create or replace function esl.blank_hash(p_blank jsonb) returns text
language sql immutable strict as $$
    select 'blank ' || encode(sha256(convert_to(p_blank::text, 'UTF8')), 'hex')
$$;

-- Whether a label of this hash is one that was blanked.
create or replace function esl.is_blanked(p_label_hash text) returns boolean
language sql immutable as $$
    select coalesce(starts_with(p_label_hash, 'blank '), false)
$$;

-- functions: ladder.sql
-- The ladder of evidence: how far the price of each product is known to have come on its way to the shelf. Nothing is
-- reported as shown without evidence of its rung:
--   1 wanted      what is wanted there is not accepted yet, or that is in doubt
--   2 accepted    the label server has said so
--   3 stored      the newest complete list of its products had it so
--   4 triggered   it was told after that to refresh the store's labels, or is known to do so by itself
--   5 reachable   and a label is bound to the product that it calls online, with a battery above the limit, as was read
--                 lately
--   6 refreshed   and the label's row has moved after that, where a probe has shown that rows move when labels do, and
--                 the label is known to have a place for the price: no row says by which template it is drawn, and one
--                 without a price shows an old one for ever
--   7 seen        somebody has looked since, and seen it
-- The third is known once a night and each of the others for itself, so a rung says nothing of the third below it. Of a
-- product with several labels the fifth means one of them, the sixth and seventh all. What is not said here, because no
-- call tells it: that a label was bound anew elsewhere to what it was bound to, which moves its row as well.

-- What holds for all labels of a store.
create or replace function esl.shelf_facts(p_store text) returns esl.facts_row
language sql stable set search_path = '' as $$
    select coalesce(v.rows_move, false), coalesce(v.auto_triggers, false),
           (select r.begun_at from esl.refreshes r where r.store_code = p_store and r.outcome = 'accepted'
            order by r.begun_at desc limit 1),
           c.at, coalesce(c.given_up > 0, false), d.read_at,
           coalesce(d.read_at > clock_timestamp() - make_interval(mins => l.minutes), false), l.low_mv
    from (select min(esl.policy_number(m.settings, 'max_pass_age_minutes')) as minutes,
                 max(esl.policy_number(m.settings, 'low_battery_mv')) as low_mv
          from (select m.settings from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active
                union all select '{}' where not exists (
                    select from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active)) m) l
    cross join (select (esl.complete_pass(p_store)).started_at as read_at) d
    left join esl.comparisons c on c.store_code = p_store and c.complete
    left join esl.label_servers v on v.server = esl.server_of(p_store)
$$;

-- What the policies of all who feed a store, or have left labels there, expect of its labels.
create or replace function esl.shelf_policies(p_store text)
returns table (mapping_id uuid, low_mv int, late_seconds int, templates_show_price boolean, zone text, sleeps_from int,
               sleeps_to int)
language sql stable set search_path = '' as $$
    select m.id, esl.policy_number(m.settings, 'low_battery_mv'),
           60 * esl.policy_number(m.settings, 'refresh_minutes'),
           esl.policy_text(m.settings, 'templates_show_price') = 'true', s.zone, s.sleeps_from, s.sleeps_to
    from esl.store_mappings m cross join lateral esl.sleep_of(m) s
    where m.hipoink_store_code = p_store
       or m.id in (select l.mapping_id from esl.left_stores l where l.store_code = p_store)
$$;

-- Codes whose repair the newest comparison of a store has given up (see esl_drift_repair): what it lists is not ours.
create or replace function esl.given_up(p_store text, p_compared_at timestamptz) returns table (code text)
language sql stable set search_path = '' as $$
    select d.code from esl.drift d
    where d.store_code = p_store and d.at > p_compared_at - interval '14 days'
    group by d.code having count(*) >= 3
$$;

-- The products of a store, or one, as far as is known without its physical labels. What hangs as nobody's is none.
create or replace function esl.ladder(p_store text, p_code text, k esl.facts_row) returns setof esl.ladder_row
language plpgsql stable rows 20000 set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
    with ledger as materialized (
        select * from esl.hipoink_products o
        where o.store_code = p_store and (p_code is null or o.code = p_code) and o.variant_id <> ''
    ), queue as materialized (
        select o.code, o.mapping_id, o.variant_id, o.operation from esl.sync_queue o
        where o.store_code = p_store and (p_code is null or o.code = p_code) and o.variant_id <> ''
    ), sightings as materialized (
        select distinct on (o.code) o.code, o.at, o.label_hash from esl.seen_labels o
        where o.store_code = p_store and (p_code is null or o.code = p_code) order by o.code, o.at desc, o.id desc
    ), wrong as materialized (
        select g.code from esl.given_up(p_store, k.compared_at) g where k.has_given_up
    )
    select coalesce(s.code, q.code), coalesce(q.mapping_id, s.mapping_id), coalesce(q.variant_id, s.variant_id),
           s.label_hash, s.accepted_at,
           case when q.code is not null then 1 when t.is_triggered then 4
                when s.accepted_at < k.compared_at and w.code is null then 3 else 2 end,
           t.is_triggered, n.at, n.label_hash is not null,
           coalesce(n.label_hash = s.label_hash and n.at >= s.accepted_at, false)
    from ledger s full join queue q on q.code = s.code
    left join sightings n on n.code = s.code
    left join wrong w on w.code = s.code
    cross join lateral (
        select k.auto_triggers or coalesce(k.triggered_at >= s.accepted_at, false) as is_triggered) t
    where s.code is not null or q.operation = 'upsert';
end $$;

-- Since when labels of a product show something old that were right at p_at (null: it is not known when), at the latest
-- since it was accepted as it is now; and whether that costs less than what they should show.
create or replace function esl.missed(p_mapping uuid, p_variant text, p_at timestamptz, p_accepted_at timestamptz)
returns table (since timestamptz, is_rise boolean)
language sql stable as $$  -- inlined
    select least(p_accepted_at, (
               select min(h.since) from esl.price_history h
               where h.variant_id = p_variant and h.mapping_id = p_mapping and h.since > p_at)),
           coalesce((select h.price from esl.price_history h
                     where h.variant_id = p_variant and h.mapping_id = p_mapping order by h.since desc limit 1)
                    > (select h.price from esl.price_history h
                       where h.variant_id = p_variant and h.mapping_id = p_mapping
                         and h.since <= coalesce(p_at, p_accepted_at - interval '1 microsecond')
                       order by h.since desc limit 1), false)
$$;

-- How long labels were awake between two times.
create or replace function esl.awake_seconds(p_since timestamptz, p_now timestamptz, p_zone text, p_from int, p_to int)
returns float8 language plpgsql stable set search_path = '' as $$
begin
    return greatest(0, extract(epoch from p_now - p_since) - case when p_from is null then 0 else
        esl.slept(p_now at time zone p_zone, p_from, p_to) - esl.slept(p_since at time zone p_zone, p_from, p_to) end);
end $$;

-- What stands in the way of a label and its price, or of a product without a label, whatever is accepted next; the
-- first that does. p_rung: how far its price has come, p_first: without its labels (null: it is no product of a shop);
-- p_sighted_wrong: somebody has looked since and seen something else.
create or replace function esl.hindrance(p_esl text, p_product text, p_rung int, p_first int, p_accepted_at timestamptz,
                                         p_is_triggered boolean, p_is_read boolean, p_online boolean,
                                         p_is_low boolean, p_has_not_moved boolean, p_sighted_wrong boolean)
returns text language sql immutable as $$  -- inlined
    select case when p_esl is null then 'no label'
                when p_product is null then 'bound to nothing'
                when esl.is_reserved(p_product) then 'for measuring'
                when p_first is null then 'no product of a shop'
                when p_accepted_at is null then 'not accepted yet'
                when p_rung >= 6 then case when p_first = 1 then 'not accepted yet' end
                when p_sighted_wrong then 'seen otherwise'
                when not p_is_triggered then 'not triggered'
                when not p_is_read then 'not read lately'
                when p_online is not true then 'offline'
                when p_is_low then 'battery low'
                when p_has_not_moved then 'not refreshed'
                when p_first = 1 then 'not accepted yet' end
$$;

-- Since when a label shows something old, for how many seconds while it was awake, and whether that is less than its
-- price. j: a label as esl.shelf has judged it, whose row moves when it does (p_rows_move) or need not; p_triggered_at:
-- when its store was triggered last.
create or replace function esl.staleness(j esl.judged_row, p_rows_move boolean, p_triggered_at timestamptz,
                                         p_now timestamptz)
returns table (since timestamptz, seconds float8, is_rise boolean)
language sql stable as $$  -- inlined
    select n.since, esl.awake_seconds(n.since, p_now, j.zone, j.sleeps_from, j.sleeps_to), n.is_rise
    from (
        select case when j.hindrance = 'seen otherwise' then null
                    when p_rows_move then coalesce(j.moved_at, j.first_seen_at)
                    when j.hindrance = 'not triggered' then coalesce(p_triggered_at, '-infinity')
                    when not j.online then (
                        select max(c.at) from (
                            select o.at from esl.device_changes o
                            where o.esl_code = j.esl_code and o.store_code = j.store_code and o.what = 'online'
                              and o.new = 'false' offset 0) c) end as at
        offset 0) g
    cross join lateral (
        select greatest(j.bound_at, m.since) as since, m.is_rise
        from esl.missed(j.mapping_id, j.variant_id, g.at, j.accepted_at) m offset 0) n
$$;

-- Of each physical label of a store (or of one product), and each product without one, how far its price has come.
create or replace function esl.judged(p_store text, p_code text, k esl.facts_row) returns setof esl.judged_row
language plpgsql stable rows 20000 set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
    select p_store, d.esl_code, coalesce(d.product_code, l.code), l.mapping_id, l.variant_id, d.model, d.ap_code,
           d.battery_mv, d.online, e.is_low, esl.is_blanked(l.label_hash), l.accepted_at,
           case when l.rung = 1 then 1 else r.rung end,
           esl.hindrance(d.esl_code, d.product_code, r.rung, l.rung, l.accepted_at, l.is_triggered, k.is_read, d.online,
                         e.is_low, e.has_not_moved, not e.is_right and l.sighted_at >= l.accepted_at),
           e.has_moved, d.first_seen_at, d.bound_at, d.moved_at, o.late_seconds, o.zone, o.sleeps_from, o.sleeps_to
    from (select x.*, b.bound_by_hand_at from esl.devices x
          left join esl.bound_by_hand(p_store) b on b.esl_code = x.esl_code
          where x.store_code = p_store and x.gone_at is null and (p_code is null or x.product_code = p_code)) d
    full join esl.ladder(p_store, p_code, k) l on l.code = d.product_code
    left join esl.shelf_policies(p_store) o on o.mapping_id = l.mapping_id
    cross join lateral (  -- offset 0: each is worked out once
        select coalesce(d.battery_mv < coalesce(o.low_mv, k.low_mv), false) as is_low,
               coalesce(k.rows_move and d.moved_after >= greatest(l.accepted_at, d.bound_by_hand_at)
                        and d.moved_at > d.bound_at, false) as has_moved,
               k.rows_move and coalesce(d.moved_at, d.first_seen_at) < l.accepted_at and k.read_at > l.accepted_at
                   as has_not_moved,
               case when l.sighted_at >= coalesce(d.bound_at, l.sighted_at) then l.is_right end as is_right
        offset 0) e
    cross join lateral (
        select case when l.code is null then null
                    when l.is_seen and e.is_right and (d.esl_code is not null or k.read_at is null) then 7
                    when e.has_moved and coalesce(e.is_right, o.templates_show_price) then 6
                    when l.is_triggered and k.is_read and d.online and not e.is_low then 5 else l.rung end as rung
        offset 0) r;
end $$;

-- The same, with how long each has shown something old.
create or replace function esl.shelf(p_store text, p_code text default null) returns setof esl.shelf_row
language plpgsql stable rows 20000 set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare k esl.facts_row := esl.shelf_facts(p_store); v_now timestamptz := clock_timestamp();
begin
    return query
    select j.esl_code, j.product_code, j.mapping_id, j.variant_id, j.model, j.ap_code, j.battery_mv, j.online, j.is_low,
           j.is_blanked, j.accepted_at, j.rung, j.hindrance, j.has_moved, w.since, w.seconds,
           coalesce(w.seconds > j.late_seconds, false), coalesce(w.is_rise, false)
    from esl.judged(p_store, p_code, k) j
    left join lateral (
        select s.* from esl.staleness(j, k.rows_move, k.triggered_at, v_now) s
        where j.esl_code is not null and j.accepted_at is not null and j.hindrance <> 'not accepted yet'
        offset 0) w on true;
end $$;

-- The products of a store, each with the rung of the ladder that holds for it (see above), of rows of esl.shelf.
create or replace function esl.rungs(p_rows esl.shelf_row[])
returns table (code text, mapping_id uuid, rung int, is_labelled boolean)
language sql immutable set search_path = '' as $$
    select r.product_code, r.mapping_id,
           case when min(r.rung) >= 6 then min(r.rung) else least(max(r.rung), 5) end, count(r.esl_code) > 0
    from unnest(p_rows) r where r.rung is not null group by 1, 2
$$;

-- The kinds of labels and products that people ask for, each with how many there are and the first few.
--   late           labels that should show something else for longer than expected, first prices that are higher
--   offline, low   labels that the server does not reach; with a low battery
--   unbound        labels that are bound to nothing; strangers: to a product of no shop, nor of a probe; removed: to
--                  one that a shop had there and removed; blanked: to one that is blanked
--   without_label  products
--   unproven       labels whose row has moved, and of which nobody has said that they show prices at all
create or replace function esl.kinds(r esl.shelf_row, p_is_own boolean, p_was_ours boolean)
returns table (kind text, place float8)
language sql immutable as $$  -- inlined
    select t.kind, t.place from (values
        ('late', p_is_own and r.is_late, -coalesce(r.stale_seconds, 0) - case when r.is_rise then 1e12 else 0 end),
        ('offline', p_is_own and r.esl_code is not null and r.online is not true, 0),
        ('low', p_is_own and r.esl_code is not null and r.is_low, r.battery_mv),
        ('unbound', r.product_code is null, 0),
        ('strangers', r.product_code is not null and r.rung is null and not p_was_ours
                      and not esl.is_reserved(r.product_code), 0),
        ('removed', r.product_code is not null and r.rung is null and p_was_ours, 0),
        ('blanked', p_is_own and r.esl_code is not null and r.is_blanked, 0),
        ('without_label', p_is_own and r.esl_code is null and not r.is_blanked, 0),
        ('unproven', p_is_own and r.has_moved and r.rung < 6, 0)
    ) as t (kind, is_so, place) where t.is_so
$$;

-- Per kind {count, first: the first p_limit of it}; see esl.kinds. p_own: the mappings that ask.
create or replace function esl.shelf_kinds(p_store text, p_rows esl.shelf_row[], p_own uuid[], p_limit int)
returns jsonb language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with found as materialized (  -- few columns, because it is sorted
            select t.kind, t.place, coalesce(r.esl_code, '') as esl, coalesce(r.product_code, '') as product
            from unnest(p_rows) r
            left join lateral (
                select true as is_so from esl.sync_log l
                where r.rung is null and l.code = r.product_code and l.store_code = p_store limit 1) o on true
            cross join lateral esl.kinds(r, coalesce(r.mapping_id = any (p_own), false), coalesce(o.is_so, false)) t
        ), counted as (
            select f.kind, count(*) as n from found f group by f.kind
        ), first as materialized (
            select c.kind, f.* from counted c cross join lateral (
                select f.place, f.esl, f.product from found f where f.kind = c.kind
                order by f.place, f.esl, f.product limit p_limit) f
        ), told as (
            select f.kind, jsonb_agg(jsonb_build_object(
                       'esl_code', r.esl_code, 'product_code', r.product_code, 'rung', r.rung,
                       'hindrance', r.hindrance, 'ap_code', r.ap_code, 'battery_mv', r.battery_mv,
                       'stale_seconds', round(r.stale_seconds::numeric), 'is_rise', r.is_rise,
                       'price', esl.price_of(s.label)::text) order by f.place, f.esl, f.product) as first
            from first f
            join unnest(p_rows) r on coalesce(r.esl_code, '') = f.esl and coalesce(r.product_code, '') = f.product
            left join lateral esl.in_ledger(p_store, f.product) s on true
            group by f.kind
        )
        select coalesce(jsonb_object_agg(c.kind, jsonb_build_object('count', c.n, 'first', coalesce(t.first, '[]'))),
                        '{}')
        from counted c left join told t on t.kind = c.kind);
end $$;

-- How many labels there are, own ones by their rung and what is wrong with them, and of products how many on each rung.
create or replace function esl.shelf_counts(p_rows esl.shelf_row[], p_own uuid[]) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'products', p.n, 'with_label', p.labelled, 'rungs', p.rungs, 'label_rungs', l.rungs,
        'labels', l.n, 'online', l.online, 'offline', l.n - l.online, 'low', l.low, 'bound', a.bound, 'hanging', a.n,
        'stale', l.stale, 'stale_seconds', l.seconds, 'stale_rises', l.rises, 'stale_rise_seconds', l.rise_seconds,
        'late', l.late, 'late_rises', l.late_rises)
    from (select count(*) as n, count(*) filter (where g.is_labelled) as labelled, jsonb_build_object(
                     '1', count(*) filter (where g.rung = 1), '2', count(*) filter (where g.rung = 2),
                     '3', count(*) filter (where g.rung = 3), '4', count(*) filter (where g.rung = 4),
                     '5', count(*) filter (where g.rung = 5), '6', count(*) filter (where g.rung = 6),
                     '7', count(*) filter (where g.rung = 7)) as rungs
          from esl.rungs(p_rows) g where g.mapping_id = any (p_own)) p,
         (select count(*) as n, count(*) filter (where r.online) as online, count(*) filter (where r.is_low) as low,
                 count(r.since) as stale, coalesce(max(r.stale_seconds), 0) as seconds,
                 count(*) filter (where r.is_rise) as rises,
                 coalesce(max(r.stale_seconds) filter (where r.is_rise), 0) as rise_seconds,
                 count(*) filter (where r.is_late) as late,
                 count(*) filter (where r.is_late and r.is_rise) as late_rises,
                 jsonb_build_object(
                     '1', count(*) filter (where r.rung = 1), '2', count(*) filter (where r.rung = 2),
                     '3', count(*) filter (where r.rung = 3), '4', count(*) filter (where r.rung = 4),
                     '5', count(*) filter (where r.rung = 5), '6', count(*) filter (where r.rung = 6),
                     '7', count(*) filter (where r.rung = 7)) as rungs
          from unnest(p_rows) r where r.esl_code is not null and r.mapping_id = any (p_own)) l,
         (select count(r.esl_code) as n, count(r.esl_code) filter (where r.rung is not null) as bound
          from unnest(p_rows) r) a
$$;

-- Own labels by the AP that they were heard through, where any is offline: the ten with most.
create or replace function esl.offline_by_ap(p_rows esl.shelf_row[], p_own uuid[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(to_jsonb(t) order by t.offline desc, t.ap_code), '[]') from (
        select r.ap_code, count(*) filter (where not r.online) as offline, count(*) as labels
        from unnest(p_rows) r where r.esl_code is not null and r.mapping_id = any (p_own)
        group by r.ap_code having count(*) filter (where not r.online) > 0
        order by 2 desc, 1 limit 10) t
$$;

-- When batteries will be low that have been seen to run down by 50 mV or more, over three days or more, since they were
-- changed: along the straight line from then to now, which flatters none that is old.
create or replace function esl.battery_forecasts(p_store text, p_rows esl.shelf_row[], p_read_at timestamptz,
                                                 p_low_mv int)
returns table (esl_code text, product_code text, mapping_id uuid, battery_mv int, low_at timestamptz)
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with told as (
        select c.esl_code, c.at, c.new::int as mv,
               max(c.at) filter (where c.new::int > c.old::int) over (partition by c.esl_code) as changed_at
        from esl.device_changes c where c.store_code = p_store and c.what = 'battery' and c.old is not null
    ), first as (
        select distinct on (t.esl_code) t.* from told t
        where t.at >= coalesce(t.changed_at, '-infinity') order by t.esl_code, t.at
    )
    select r.esl_code, r.product_code, r.mapping_id, r.battery_mv,
           p_read_at + (p_read_at - f.at) * ((r.battery_mv - p_low_mv)::float8 / (f.mv - r.battery_mv))
    from first f join unnest(p_rows) r on r.esl_code = f.esl_code
    where f.mv - r.battery_mv >= 50 and p_read_at - f.at >= interval '3 days' and r.battery_mv >= p_low_mv
$$;

-- Batteries that will be low within 30 days: {count, first}.
create or replace function esl.dying(p_store text, p_rows esl.shelf_row[], p_own uuid[], p_limit int) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('count', count(*), 'first', coalesce(jsonb_agg(
               jsonb_build_object('esl_code', t.esl_code, 'product_code', t.product_code, 'battery_mv', t.battery_mv,
                                  'low_at', t.low_at) order by t.low_at) filter (where t.nth <= p_limit), '[]'))
    from (select f.*, row_number() over (order by f.low_at, f.esl_code) as nth
          from esl.shelf_facts(p_store) k
          cross join lateral esl.battery_forecasts(p_store, p_rows, k.read_at, k.low_mv) f
          where f.low_at < clock_timestamp() + interval '30 days' and f.mapping_id = any (p_own)) t
$$;

-- What a store's label server is known to do, and how its labels were read: {label_server, rows_move, auto_triggers,
-- probe_seconds, probed_at, knows_devices, read_at, is_read, triggered_at, compared_at, pass: newest that has ended}.
create or replace function esl.shelf_evidence(p_store text) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'label_server', n.server, 'rows_move', v.rows_move, 'auto_triggers', v.auto_triggers,
        'probe_seconds', v.probe_seconds, 'probed_at', v.probed_at, 'knows_devices', v.knows_devices,
        'read_at', k.read_at, 'is_read', k.is_read, 'triggered_at', k.triggered_at, 'compared_at', k.compared_at,
        'refreshes', esl.wants_refresh(p_store), 'pass', (
            select to_jsonb(o) from esl.device_passes o where o.store_code = p_store and o.state <> 'open'
            order by o.started_at desc limit 1))
    from esl.shelf_facts(p_store) k cross join (select esl.server_of(p_store) as server) n
    left join esl.label_servers v on v.server = n.server
$$;

-- What the policy of the one who asks allows in a store, of all who feed it the strictest: {max_unreachable_pct, …}.
create or replace function esl.shelf_limits(p_store text, p_own uuid[]) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'max_unreachable_pct', min(esl.policy_number(m.settings, 'max_unreachable_pct')),
        'max_pass_age_minutes', min(esl.policy_number(m.settings, 'max_pass_age_minutes')),
        'max_low_battery_pct', min(esl.policy_number(m.settings, 'max_low_battery_pct')),
        'low_battery_mv', max(esl.policy_number(m.settings, 'low_battery_mv')),
        'max_unbound_pct', min(esl.policy_number(m.settings, 'max_unbound_pct')),
        'max_without_label_pct', min(esl.policy_number(m.settings, 'max_without_label_pct')),
        'max_late_pct', min(esl.policy_number(m.settings, 'max_late_pct')),
        'refresh_minutes', min(esl.policy_number(m.settings, 'refresh_minutes')))
    from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active and m.id = any (p_own)
$$;

-- {shop?, store?, limit} -> {stores: [{store_code, …}]}: how the labels of stores stand, of those that a shop feeds
-- (without one: of all shops together), or of one. What is in it: esl.shelf_counts, esl.shelf_evidence; limits:
-- esl.shelf_limits; kinds: esl.shelf_kinds, with the first `limit` of each, and dying: batteries (esl.dying);
-- offline_by_ap.
create or replace function public.esl_shelf(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
declare v_stores jsonb := '[]'; v_own uuid[]; v_rows esl.shelf_row[]; v_store text; v_limit int := (p ->> 'limit')::int;
begin
    v_own := array(select m.id from esl.store_mappings m where p -> 'shop' is null
        or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'));
    for v_store in select distinct m.hipoink_store_code from esl.store_mappings m
                   where m.id = any (v_own) and m.is_active and m.hipoink_store_code
                       = coalesce(p ->> 'store', m.hipoink_store_code) order by 1 loop
        v_rows := array(select r from esl.shelf(v_store) r);
        v_stores := v_stores || (
            jsonb_build_object('store_code', v_store, 'limits', esl.shelf_limits(v_store, v_own),
                'offline_by_ap', esl.offline_by_ap(v_rows, v_own),
                'kinds', esl.shelf_kinds(v_store, v_rows, v_own, v_limit)
                         || jsonb_build_object('dying', esl.dying(v_store, v_rows, v_own, v_limit)))
            || esl.shelf_counts(v_rows, v_own) || esl.shelf_evidence(v_store));
    end loop;
    return jsonb_build_object('stores', v_stores);
end $$;

-- {store, after?: [product_code, esl_code], limit} -> {labels, next}: page by page every physical label of a store, and
-- every product without one (esl.shelf), with price and name as the label server has accepted them.
create or replace function public.esl_shelf_list(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with page as materialized (
            select r.*, coalesce(r.product_code, '') as by_product, coalesce(r.esl_code, '') as by_esl
            from esl.shelf(p ->> 'store') r
            where p -> 'after' is null or (coalesce(r.product_code, ''), coalesce(r.esl_code, ''))
                                          > (p #>> '{after,0}', p #>> '{after,1}')
            order by by_product, by_esl limit (p ->> 'limit')::int
        )
        select jsonb_build_object(
            'labels', coalesce(jsonb_agg(to_jsonb(g) - '{by_product,by_esl}'::text[] || jsonb_build_object(
                          'price', esl.price_of(s.label)::text, 'source_store_id', m.source_store_id)
                          order by g.by_product, g.by_esl), '[]'),
            'next', (select jsonb_build_array(l.by_product, l.by_esl) from page l
                     order by l.by_product desc, l.by_esl desc limit 1))
        from page g
        left join lateral esl.in_ledger(p ->> 'store', g.product_code) s on true
        left join esl.store_mappings m on m.id = g.mapping_id);
end $$;

-- {code, store?} -> {places: [{store_code, code, rung, accepted_at, is_triggered, sighted_at, is_right, labels: [rows
-- of esl.shelf]}]}: how far the price of a product has come, and what its labels say of it, wherever it is.
create or replace function public.esl_ladder(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        select jsonb_build_object('places', coalesce(jsonb_agg(
            to_jsonb(l) || jsonb_build_object(
                'store_code', k.store_code, 'rung', g.rung, 'labels', (
                    select coalesce(jsonb_agg(to_jsonb(r) order by r.esl_code), '[]')
                    from unnest(x.rows) r where r.esl_code is not null)) order by k.store_code), '[]'))
        from (select s.store_code from esl.hipoink_products s where s.code = p ->> 'code'
              union select q.store_code from esl.sync_queue q where q.code = p ->> 'code') k
        cross join lateral (select array(select r from esl.shelf(k.store_code, p ->> 'code') r) as rows) x
        cross join lateral esl.ladder(k.store_code, p ->> 'code', esl.shelf_facts(k.store_code)) l
        cross join lateral esl.rungs(x.rows) g
        where p ->> 'store' is null or k.store_code = p ->> 'store');
end $$;

-- functions: leases.sql
-- Leases: what one holder at a time may do, and how it is handed over without a gap.

-- {name, holder, seconds, relieve_in?, build?} -> {held, holder, until, successor_is_ready}: takes or renews; refused
-- while another holder's runs. relieve_in: in so many seconds the holder wants a successor. build: of its code.
create or replace function public.esl_lease_take(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_now  timestamptz := clock_timestamp();
    v_held boolean;
begin
    insert into esl.leases as l (name, holder, until, relieve_at, build)
    values (p ->> 'name', p ->> 'holder', v_now + make_interval(secs => (p ->> 'seconds')::float8),
            v_now + make_interval(secs => (p ->> 'relieve_in')::float8), (p ->> 'build')::int)
    on conflict (name) do update
    set holder = excluded.holder, until = excluded.until, relieve_at = excluded.relieve_at,
        build = excluded.build, successor = case when l.successor <> excluded.holder then l.successor end
    where l.holder = excluded.holder or l.until < v_now;
    v_held := found;
    return (select jsonb_build_object('held', v_held, 'holder', l.holder, 'until', l.until,
                                      'successor_is_ready', esl.has_successor(l) and l.successor_is_ready)
            from esl.leases l where l.name = p ->> 'name');
end $$;

-- Whether somebody waits for a lease, or was started to.
create or replace function esl.has_successor(l esl.leases) returns boolean
language sql stable set search_path = '' as $$
    select l.successor is not null and l.successor_until > clock_timestamp()
$$;

-- Whether the holder of a lease wants a successor, or is of older code than this build, and has none.
create or replace function esl.wants_relief(l esl.leases, p_build int) returns boolean
language sql stable set search_path = '' as $$
    select (coalesce(l.relieve_at <= clock_timestamp(), false) or coalesce(l.build < p_build, false))
       and not esl.has_successor(l)
$$;

-- {name, holder, seconds, ready} -> {held, waits}: takes a lease that is free, or is only kept for a holder that has
-- not started (that one named no build yet); else waits so long to be its next holder (ready: there to take over at
-- once), unless somebody else does.
create or replace function public.esl_lease_await(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_held boolean;
begin
    if (p ->> 'ready')::boolean then
        delete from esl.leases where name = p ->> 'name' and holder <> p ->> 'holder' and build is null;
    end if;
    v_held := (public.esl_lease_take(p) ->> 'held')::boolean;
    if not v_held then
        update esl.leases l
        set successor = p ->> 'holder', successor_is_ready = (p ->> 'ready')::boolean,
            successor_until = clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8)
        where l.name = p ->> 'name' and (l.successor = p ->> 'holder' or not esl.has_successor(l));
    end if;
    return jsonb_build_object('held', v_held, 'waits', not v_held and found);
end $$;

-- {name, holder, seconds} -> {released}: gives a lease back, to the successor that is ready for it.
create or replace function public.esl_lease_release(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_released boolean;
begin
    update esl.leases l
    set holder = l.successor, successor = null, relieve_at = null,
        until = clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8)
    where l.name = p ->> 'name' and l.holder = p ->> 'holder' and l.successor_is_ready and esl.has_successor(l);
    v_released := found;
    if not v_released then
        delete from esl.leases where name = p ->> 'name' and holder = p ->> 'holder';
        v_released := found;
    end if;
    return jsonb_build_object('released', v_released);
end $$;

-- functions: leave.sql
-- A store is removed: its mappings end, and their labels stay, become blank, or are removed at the label server. The
-- mapping is inactive from the first moment, and is pushed all the same (leaving) until nothing of it waits any more.
-- Its row stays for what names it.

-- The labels of a mapping that leaves are wanted no longer, what was found of them is over, and their places are
-- decided: what is to be done there is somebody's word already.
create or replace function esl.withdraw_all(m esl.store_mappings) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    select array_agg(k.store_code), array_agg(k.code) into v_stores, v_codes
    from (select l.store_code, l.code from esl.labels l where l.mapping_id = m.id and l.code is not null
          union select s.store_code, s.code from esl.hipoink_products s where s.mapping_id = m.id
          union select q.store_code, q.code from esl.sync_queue q where q.mapping_id = m.id) k;
    update esl.labels
    set state = case m.leaving when 'keep' then 'kept' when 'blank' then 'blank' else 'withdrawn' end, code = null,
        label = null, label_hash = null, precedence = null, collides = false
    where mapping_id = m.id;
    update esl.findings set resolved_at = clock_timestamp() where mapping_id = m.id and resolved_at is null;
    perform esl.requeue(v_stores, v_codes, 'removal');
    update esl.sync_queue
    set approved = true, state = case when state = 'leased' then state else 'ready' end, rejected_at = null,
        attempts = case when state = 'leased' then attempts else 0 end, next_attempt_at = now()
    where mapping_id = m.id and m.leaving <> 'keep';
end $$;

-- Of mappings that leave this store those are gone of which nothing waits or is on its way.
create or replace function esl.finish_leaving(p_store text) returns void
language plpgsql volatile set search_path = '' as $$
declare m esl.store_mappings; v_before jsonb;
begin
    for m in select * from esl.store_mappings x where x.leaving is not null and (
                 x.hipoink_store_code = p_store or exists (select from esl.left_stores l
                     where l.mapping_id = x.id and l.store_code = p_store)) loop
        delete from esl.sync_queue where mapping_id = m.id and state <> 'leased' and m.leaving = 'keep';
        continue when exists (select from esl.sync_queue q where q.mapping_id = m.id);
        v_before := esl.shown_mapping(m);
        update esl.store_mappings set leaving = null, removed_at = clock_timestamp(), updated_at = now()
        where id = m.id returning * into m;
        perform esl.note_change('stores remove', v_before, esl.shown_mapping(m));
    end loop;
end $$;

-- The mappings that are to leave (p: as for esl_operator_remove), with their stores locked.
create or replace function esl.leavers(p jsonb) returns setof esl.store_mappings
language plpgsql volatile set search_path = '' as $$
declare v_ids uuid[] := array(select c.id from esl.chosen_mappings(p) c);
begin
    if not coalesce(p ->> 'labels' in ('keep', 'blank', 'remove'), false) then
        perform esl.refuse_action('say what becomes of the labels: keep, blank or remove');
    elsif v_ids = '{}' then
        perform esl.need_store(p ->> 'store');
        perform esl.refuse_action(format('%s is not mapped to store %s: see `esl-pipeline stores list`',
                                         p #>> '{shop,source_store_id}', p ->> 'store'));
    elsif p ->> 'labels' <> 'keep' and esl.store_is_paused(p ->> 'store') then
        perform esl.refuse_action(format('store %s is paused, so its labels cannot be changed: resume it first, or '
                                         'keep them', p ->> 'store'));
    end if;
    perform esl.lock_stores(array(select esl.stores_of(v_ids)));
    return query select * from esl.store_mappings m where m.id = any (v_ids) order by m.created_at, m.id;
end $$;

-- {store, labels: keep | blank | remove, shop?} -> {store_code, label_server, mappings, labels, dropped, is_done}: no
-- shop feeds this store any more, or not this one. labels: how many hang; dropped: changes that waited and are not
-- made; is_done: false while labels are still to be blanked or removed, or on their way.
create or replace function public.esl_operator_remove(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    v_answer jsonb := esl.answered(p, 'remove'); m esl.store_mappings; v_before jsonb; v_ids uuid[] := '{}';
    v_labels bigint; v_dropped bigint := 0; v_here bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.lock_mappings();
    for m in select * from esl.leavers(p) loop
        v_ids := v_ids || m.id;
        v_before := esl.shown_mapping(m);
        select count(*) into v_here from esl.sync_queue q
        where q.mapping_id = m.id and (q.operation = 'upsert' or p ->> 'labels' = 'keep');
        v_dropped := v_dropped + v_here;
        update esl.store_mappings
        set is_active = false, is_dry_run = false, leaving = p ->> 'labels', problem = null, switched_off = null,
            awaits_read_since = null, updated_at = now()
        where id = m.id returning * into m;
        perform esl.note_change(esl.actor(p), v_before, esl.shown_mapping(m));
        perform esl.contest_again(m.source_system, m.source_store_id);
        perform esl.withdraw_all(m);
    end loop;
    select count(*) into v_labels from esl.hipoink_products s where s.mapping_id = any (v_ids);
    perform esl.finish_leaving(p ->> 'store');
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'remove', v_labels, jsonb_build_object(
        'store_code', p ->> 'store', 'label_server', esl.server_of(p ->> 'store'), 'mappings', cardinality(v_ids),
        'labels', v_labels, 'dropped', v_dropped, 'is_done', not exists (
            select from esl.store_mappings x where x.id = any (v_ids) and x.removed_at is null)));
end $$;

-- functions: locks.sql
-- Locks, no wider than what they protect, and the order in which all calls take theirs: mappings, stores, label
-- servers, labels on their way, stores' health, the rest of the queue. So no two calls wait for each other.

-- In which stores labels of these mappings may hang: those that they name and have named.
create or replace function esl.stores_of(p_mappings uuid[]) returns setof text
language sql stable set search_path = '' as $$
    select m.hipoink_store_code from esl.store_mappings m where m.id = any (p_mappings)
    union select l.store_code from esl.left_stores l where l.mapping_id = any (p_mappings)
$$;

-- Takes the places of these stores for as long as the transaction lasts: whoever decides what becomes of them does so
-- alone. With them those that a decision may touch besides: a collision that begins or ends there concerns all places
-- of its variants (esl.note_collisions), also in stores that their mappings have left.
-- By number, not by name: two names may share one.
create or replace function esl.lock_stores(p_stores text[]) returns void
language plpgsql volatile set search_path = '' as $$
declare v_key bigint;
begin
    for v_key in
        select distinct hashtextextended('esl.store ' || s.store_code, 0)
        from (select unnest(p_stores) as store_code
              union select esl.stores_of(array(
                  select m.id from esl.store_mappings m where m.hipoink_store_code = any (p_stores)))) s
        where s.store_code is not null order by 1
    loop
        perform pg_advisory_xact_lock(v_key);
    end loop;
end $$;

-- The same of all mappings of some shops (jsonb: whatever names a shop each). Who has locked them has its variants too.
create or replace function esl.stores_of_shops(p_shops jsonb) returns text[]
language sql stable set search_path = '' as $$
    select array(select esl.stores_of(array(
        select m.id from esl.store_mappings m
        where (m.source_system, m.source_store_id) in (
            select s.source_system, s.source_store_id from jsonb_populate_recordset(null::esl.shop_row, p_shops) s))))
$$;

create or replace function esl.stores_of_shop(p_source_system text, p_source_store_id text) returns text[]
language sql stable set search_path = '' as $$
    select esl.stores_of_shops(jsonb_build_array(jsonb_build_object(
        'source_system', p_source_system, 'source_store_id', p_source_store_id)))
$$;

-- Mappings are changed one at a time: what is allowed for one depends on the others.
create or replace function esl.lock_mappings() returns void
language sql volatile set search_path = '' as $$
    select pg_advisory_xact_lock(hashtextextended('esl.mappings', 0))
$$;

-- Batches of one label server are claimed one at a time, so that what is in flight is counted exactly; and none while
-- a store leaves it. Whoever has this lock takes none of a store.
create or replace function esl.lock_claims(p_server text) returns void
language sql volatile set search_path = '' as $$
    select pg_advisory_xact_lock(hashtextextended('esl.claims ' || coalesce(p_server, ''), 0))
$$;

-- For whoever is about to tell how a call ended: takes the row of the label server if that may change it, and says
-- whether it has. What is accepted as ever changes nothing, so that no store waits for another.
create or replace function esl.lock_server(p_server text, p_outcome text) returns boolean
language plpgsql volatile set search_path = '' as $$
begin
    perform from esl.label_servers s
    where s.server = p_server and (p_outcome <> 'accepted' or s.failures > 0 or s.batch_size is not null)
    for update;
    return found;
end $$;

-- functions: mappings.sql
-- Store mappings: made, changed, listed, and what follows for their labels.

-- A shop's variants are evaluated again: its labels follow the mapping, no webhook needed. Whatever is due already has
-- its own cause.
create or replace function esl.evaluate_again(p_source_system text, p_source_store_id text, p_cause text) returns void
language sql set search_path = '' as $$
    update esl.products
    set due = true, revision = nextval('esl.revision'), cause = case when due then cause else p_cause end
    where source_system = p_source_system and source_store_id = p_source_store_id
$$;

-- A mapping as callers see it.
create or replace function esl.shown_mapping(m esl.store_mappings) returns jsonb
language sql stable set search_path = '' as $$
    select to_jsonb(m) || jsonb_build_object('label_server', esl.server_of(m.hipoink_store_code))
$$;

-- {source_system, source_store_id, hipoink_store_code, label_server?, is_active?, is_dry_run?, settings?, shared?, by?}
-- -> the mapping, with a remark where there is something to know. label_server: where the store is (see
-- esl.place_store). shared: it is meant that other shops feed the store as well (else 23P01). by: who makes it, for
-- esl.mapping_changes. One that was removed lives again. 23505: exists already. 22023: settings that this database
-- cannot carry out, or no shop.
create or replace function public.esl_mapping_create(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare m esl.store_mappings; v_remark text;
begin
    perform esl.lock_mappings();
    perform esl.lock_stores(esl.stores_of_shop(p ->> 'source_system', p ->> 'source_store_id')
                            || (p ->> 'hipoink_store_code'));
    perform esl.check_settings(p -> 'settings');
    perform esl.check_shop(p ->> 'source_system', p ->> 'source_store_id');
    perform esl.check_sharing(p ->> 'source_system', p ->> 'source_store_id', p ->> 'hipoink_store_code',
                              (p ->> 'shared')::boolean);
    v_remark := esl.place_store(p ->> 'hipoink_store_code', p ->> 'label_server', null);
    insert into esl.store_mappings as o (source_system, source_store_id, hipoink_store_code, is_active, is_dry_run,
                                         settings)
    values (p ->> 'source_system', p ->> 'source_store_id', p ->> 'hipoink_store_code',
            coalesce((p ->> 'is_active')::boolean, true), coalesce((p ->> 'is_dry_run')::boolean, false),
            coalesce(p -> 'settings', '{}'))
    on conflict (source_system, source_store_id, hipoink_store_code) do update
    set is_active = excluded.is_active, is_dry_run = excluded.is_dry_run, settings = excluded.settings, problem = null,
        removed_at = null, activated_at = excluded.activated_at, updated_at = now()
    where o.removed_at is not null
    returning * into m;
    if not found then
        raise exception 'this shop is mapped to this store already' using errcode = '23505';
    end if;
    perform esl.note_change(p ->> 'by', null, esl.shown_mapping(m));
    perform esl.contest_again(m.source_system, m.source_store_id);
    perform esl.evaluate_again(m.source_system, m.source_store_id, 'policy');
    return esl.shown_mapping(m) || jsonb_strip_nulls(jsonb_build_object('remark', v_remark));
end $$;

-- The places of a mapping that no evaluation of its shop comes to: of foreign labels, also those that other mappings of
-- its store have adopted, and of variants that the shop does not have (while it awaits its first read they stay as
-- they are).
create or replace function esl.strays(m esl.store_mappings) returns table (store_code text, code text)
language sql stable set search_path = '' as $$
    select k.store_code, k.code
    from (select s.store_code, s.code, s.mapping_id, s.variant_id from esl.hipoink_products s
          union select q.store_code, q.code, q.mapping_id, q.variant_id from esl.sync_queue q) k
    where case when k.variant_id = '' then k.mapping_id = m.id or k.store_code = m.hipoink_store_code
               else k.mapping_id = m.id and m.awaits_read_since is null and not exists (
                   select from esl.products o where o.variant_id = k.variant_id
                     and o.source_store_id = m.source_store_id and o.source_system = m.source_system) end
$$;

-- What these fields make of a mapping (p: as for esl_mapping_update).
create or replace function esl.patch_mapping(p jsonb) returns esl.store_mappings
language plpgsql volatile set search_path = '' as $$
declare m esl.store_mappings;
begin
    insert into esl.left_stores (mapping_id, store_code)
    select o.id, o.hipoink_store_code from esl.store_mappings o
    where o.id = (p ->> 'id')::uuid and o.hipoink_store_code <> p ->> 'hipoink_store_code'
    on conflict do nothing;
    update esl.store_mappings o set
        source_system = coalesce(p ->> 'source_system', source_system),
        source_store_id = coalesce(p ->> 'source_store_id', source_store_id),
        hipoink_store_code = coalesce(p ->> 'hipoink_store_code', hipoink_store_code),
        is_active = coalesce((p ->> 'is_active')::boolean, is_active),
        activated_at = case when (p ->> 'is_active')::boolean and not is_active
                              or p ->> 'source_store_id' <> source_store_id
                            then clock_timestamp() else activated_at end,
        switched_off = case when p ->> 'is_active' is null then switched_off end,
        leaving = case when (p ->> 'is_active')::boolean then null else leaving end,
        is_dry_run = coalesce((p ->> 'is_dry_run')::boolean, is_dry_run),
        settings = coalesce(p -> 'settings', settings),
        -- As long as it is not evaluated again, nothing is pushed anyway.
        problem = case when p -> 'settings' <> settings then null else problem end,
        awaits_read_since = case
            when (coalesce(p ->> 'source_system', source_system), coalesce(p ->> 'source_store_id', source_store_id))
                 = (source_system, source_store_id) then awaits_read_since
            when exists (select from esl.labels l where l.mapping_id = o.id)
              or exists (select from esl.hipoink_products s where s.mapping_id = o.id) then now() end,
        updated_at = now()
    where id = (p ->> 'id')::uuid
    returning * into m;
    return m;
end $$;

-- Decides and judges again what a changed mapping touches: places of variants when they are evaluated, the others now.
create or replace function esl.follow_mapping(p_before esl.store_mappings, m esl.store_mappings) returns void
language plpgsql volatile set search_path = '' as $$
declare v_stores text[]; v_codes text[];
begin
    if (p_before.is_active, p_before.source_system, p_before.source_store_id)
       <> (m.is_active, m.source_system, m.source_store_id) then
        perform esl.contest_again(p_before.source_system, p_before.source_store_id);
        perform esl.contest_again(m.source_system, m.source_store_id);
    end if;
    if p_before.is_active and not m.is_active then
        -- Its own labels are not evaluated while it is paused, but those they collided with are free now.
        select array_agg(store_code), array_agg(code) into v_stores, v_codes
        from esl.labels where mapping_id = m.id and collides;
        perform esl.requeue(v_stores, v_codes, 'policy');
    end if;
    select array_agg(k.store_code), array_agg(k.code) into v_stores, v_codes
    from (select * from esl.strays(p_before) union select * from esl.strays(m)) k;
    perform esl.requeue(v_stores, v_codes, 'policy');
    if m.is_active then
        perform esl.evaluate_again(m.source_system, m.source_store_id, 'policy');
    end if;
end $$;

-- {id, source_system?, source_store_id?, hipoink_store_code?, label_server?, is_active?, is_dry_run?, settings?,
-- shared?, by?} -> the mapping, with a remark where there is something to know, or null. label_server: as for
-- esl_mapping_create, of the store that it names then. shared: as there, asked for where the store changes. Another
-- store: its labels are written there, then removed from the one before (see esl.guard). Another shop: it may be the
-- same under another name, so the labels stay until it has been read completely (see esl.shop_was_read). Whoever says
-- is_active ends the alarm that a message had switched it off. 22023: settings that this database cannot carry out.
create or replace function public.esl_mapping_update(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    m esl.store_mappings; v_before esl.store_mappings; v_shown_before jsonb; v_system text; v_shop text; v_remark text;
begin
    perform esl.lock_mappings();
    perform esl.check_settings(p -> 'settings');
    select * into v_before from esl.store_mappings where id = (p ->> 'id')::uuid and removed_at is null;
    if not found then
        return null;
    end if;
    v_system := coalesce(p ->> 'source_system', v_before.source_system);
    v_shop := coalesce(p ->> 'source_store_id', v_before.source_store_id);
    perform esl.lock_stores(esl.stores_of_shop(v_before.source_system, v_before.source_store_id)
                            || esl.stores_of_shop(v_system, v_shop) || (p ->> 'hipoink_store_code'));
    perform esl.check_shop(v_system, v_shop);
    if p ->> 'hipoink_store_code' <> v_before.hipoink_store_code then
        perform esl.check_sharing(v_system, v_shop, p ->> 'hipoink_store_code', (p ->> 'shared')::boolean);
    end if;
    v_shown_before := esl.shown_mapping(v_before);
    v_remark := esl.place_store(coalesce(p ->> 'hipoink_store_code', v_before.hipoink_store_code), p ->> 'label_server',
                                v_before.id);
    m := esl.patch_mapping(p);
    perform esl.note_change(p ->> 'by', v_shown_before, esl.shown_mapping(m));
    perform esl.follow_mapping(v_before, m);
    return esl.shown_mapping(m) || jsonb_strip_nulls(jsonb_build_object('remark', v_remark));
end $$;

-- Withdraws the labels of variants that the mapping's shop does not have, and decides their places and all strays'.
create or replace function esl.withdraw_absent(m esl.store_mappings) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    with gone as materialized (
        select l.variant_id, l.store_code, l.code from esl.labels l
        where l.mapping_id = m.id and not exists (
            select from esl.products o where o.variant_id = l.variant_id
              and o.source_store_id = m.source_store_id and o.source_system = m.source_system)
    ), withdrawn as (
        update esl.labels l
        set state = 'withdrawn', code = null, label = null, label_hash = null, precedence = null, collides = false
        from gone g where l.mapping_id = m.id and l.variant_id = g.variant_id
    ), resolved as (
        update esl.findings f set resolved_at = now() from gone g
        where f.mapping_id = m.id and f.variant_id = g.variant_id and f.resolved_at is null
    ), places as (
        select g.store_code, g.code from gone g where g.code is not null
        union select * from esl.strays(m)
    )
    select array_agg(store_code), array_agg(code) into v_stores, v_codes from places;
    perform esl.requeue(v_stores, v_codes, 'policy');
end $$;

-- A shop has just been read completely. Mappings that were given its name withdraw the labels of variants that it does
-- not have; and drastic changes of its stores are counted again, of which some may have left the guard's hours.
-- Takes the locks of their stores, so it comes before any row of products is locked.
create or replace function esl.shop_was_read(p_source_system text, p_source_store_id text) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare m esl.store_mappings; v_guarded text[];
begin
    select array_agg(distinct o.hipoink_store_code) into v_guarded
    from esl.store_mappings o join esl.sync_queue q on q.store_code = o.hipoink_store_code
    where o.source_system = p_source_system and o.source_store_id = p_source_store_id and q.drastic is not null
      and q.state = 'guarded';
    if v_guarded is null and not exists (
            select from esl.store_mappings o where o.source_system = p_source_system
              and o.source_store_id = p_source_store_id and o.awaits_read_since is not null) then
        return;
    end if;
    perform esl.lock_stores(esl.stores_of_shop(p_source_system, p_source_store_id));
    for m in
        update esl.store_mappings set awaits_read_since = null
        where source_system = p_source_system and source_store_id = p_source_store_id and awaits_read_since is not null
        returning *
    loop
        perform esl.withdraw_absent(m);
    end loop;
    perform esl.guard(store_code) from unnest(v_guarded) as g (store_code);
end $$;

-- {id?} -> {mappings: [...]}, with currency and taxes_included as the shop says, where that is known.
create or replace function public.esl_mapping_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('mappings', coalesce(jsonb_agg(esl.shown_mapping(m) || jsonb_build_object(
               'currency', s.currency, 'taxes_included', s.taxes_included) order by m.created_at, m.id), '[]'))
    from esl.store_mappings m
    left join esl.shops s on s.source_system = m.source_system and s.source_store_id = m.source_store_id
    where m.removed_at is null and (p ->> 'id' is null or m.id = (p ->> 'id')::uuid)
$$;

-- Of which mappings something is asked: {store?, shop?, shops?}, all of them where nothing is said.
create or replace function esl.chosen_mappings(p jsonb) returns setof esl.store_mappings
language sql stable set search_path = '' as $$
    select m.* from esl.store_mappings m
    where m.removed_at is null and (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
      and (p -> 'shop' is null
           or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
      and (p -> 'shops' is null or (m.source_system, m.source_store_id) in (
           select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')))
$$;

-- functions: night.sql
-- A night as a shop manager reads it: what each label was, what it is, and what the label server's own list said.

-- The labels that the label server has taken within {since, until, store?, limit, after?: [store_code, code]}, once
-- each, with what hung before and what its last push then said.
create or replace function esl.night_labels(p jsonb)
returns table (store_code text, code text, mapping_id uuid, variant_id text, at timestamptz, pushes bigint,
               before jsonb, after jsonb)
language sql stable set search_path = '' as $$
    with taken as (
        select l.store_code, l.code, count(*) as pushes, min(l.id) as first, max(l.id) as last
        from esl.sync_log l
        where l.kind = 'result' and l.outcome = 'accepted' and l.at >= (p ->> 'since')::timestamptz
          and l.at < (p ->> 'until')::timestamptz and (p ->> 'store' is null or l.store_code = p ->> 'store')
          and (p -> 'after' is null or (l.store_code collate "C", l.code collate "C")
               > (p #>> '{after,0}', p #>> '{after,1}'))
        group by 1, 2
        order by l.store_code collate "C", l.code collate "C" limit (p ->> 'limit')::int
    )
    select t.store_code, t.code, r.mapping_id, r.variant_id, r.at, t.pushes, esl.said_by(b.id), esl.said_by(t.last)
    from taken t join esl.sync_log r on r.id = t.last
    left join lateral (
        select l.id from esl.sync_log l
        where l.code = t.code and l.store_code = t.store_code and l.kind = 'result' and l.outcome = 'accepted'
          and l.id < t.first order by l.id desc limit 1) b on true
$$;

-- The label that a result of the audit is about, as its intent says it; null: it was taken away.
create or replace function esl.said_by(p_result bigint) returns jsonb
language sql stable set search_path = '' as $$
    select i.label from esl.sync_log r join esl.sync_log i
      on i.code = r.code and i.store_code = r.store_code and i.push_id = r.push_id and i.kind = 'intent' and i.id < r.id
    where r.id = p_result order by i.id desc limit 1
$$;

-- {store?, since, until, limit, after?} -> {labels: [{store_code, code, what, drift, source_store_id, title,
--   variant_title, price_before, price_after, at, pushes}], comparisons: [{store_code, at, complete, reason, listed,
--   given_up}]}: what was done in a night, by store and code.
-- what: new, removed, rise, cut, other or repaired: the label server's list had lost it or said something else (drift:
-- missing, different, foreign or ours; price_before is then what hung there). comparisons: the last one of each store.
create or replace function public.esl_night(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
begin
    return jsonb_build_object('comparisons', (
        select coalesce(jsonb_agg(to_jsonb(c) order by c.store_code), '[]') from (
            select x.store_code, x.at, x.complete, x.reason, x.listed, x.given_up from esl.comparisons x
            where p ->> 'store' is null or x.store_code = p ->> 'store') c),
    'labels', (
        select coalesce(jsonb_agg(to_jsonb(t) order by t.store_code collate "C", t.code collate "C"), '[]') from (
        select n.store_code, n.code, m.source_store_id, o.title, o.variant_title, n.at, n.pushes, d.kind as drift,
               esl.price_of(case when d.kind is null then n.before else d.theirs end)::text as price_before,
               esl.price_of(n.after)::text as price_after,
               case when d.kind is not null then 'repaired' when n.after is null then 'removed'
                    when n.before is null then 'new' when esl.price_of(n.after) > esl.price_of(n.before) then 'rise'
                    when esl.price_of(n.after) < esl.price_of(n.before) then 'cut' else 'other' end as what
        from esl.night_labels(p) n
        left join esl.store_mappings m on m.id = n.mapping_id
        left join esl.products o on o.variant_id = n.variant_id and o.source_system = m.source_system
                                and o.source_store_id = m.source_store_id
        left join lateral (
            select x.kind, x.theirs from esl.drift x
            where x.at >= (p ->> 'since')::timestamptz and x.at < (p ->> 'until')::timestamptz
              and x.store_code = n.store_code and x.code = n.code order by x.id desc limit 1) d on true) t));
end $$;

-- functions: numbers.sql
-- Numbers: what is counted where it happens, and what is told of it. What a call counts, it counts last of all or under
-- the lock of its store, so that no two calls wait for each other.

-- What esl.measures counts, by name:
--   pushes    labels that were pushed; kind: the outcome
--   calls     the calls that pushed them, with their seconds; kind: the outcome
--   accepted  labels accepted with news that no accepted label had, with the seconds since its webhook was received;
--             kind: rise (of the price) or other
--   wrong     labels accepted whose price was another than the shop's, with the seconds for which it was; kind: over
--             (the till asked for more than the shelf) or under
--   avoided   labels that did not have to be pushed; kind: same_product (a webhook without anything new) or same_label
--   drift     differences that were found at the label server; kind: as in esl.drift
--   refused   signatures that were wrong, of a shop; kind: none

-- Upper bounds of the buckets, in seconds; the last bucket has none.
create or replace function esl.bucket_bounds() returns float8[]
language sql immutable as $$
    select array[0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300, 900, 3600]::float8[]
$$;

-- How many of these are in each bucket.
create or replace function esl.buckets(p_seconds float8[]) returns bigint[]
language sql immutable set search_path = '' as $$
    select array_agg(coalesce(f.n, 0) order by b.i)
    from generate_series(0, cardinality(esl.bucket_bounds())) b (i)
    left join (select width_bucket(s, esl.bucket_bounds()) as i, count(*) as n
               from unnest(p_seconds) s group by 1) f on f.i = b.i
$$;

-- Both, bucket by bucket; null: no buckets.
create or replace function esl.buckets_added(p_one bigint[], p_other bigint[]) returns bigint[]
language sql immutable set search_path = '' as $$
    select array_agg(coalesce(x.a, 0) + coalesce(x.b, 0) order by x.i)
    from unnest(p_one, p_other) with ordinality x (a, b, i)
$$;

create or replace aggregate esl.all_buckets(bigint[]) (sfunc = esl.buckets_added, stype = bigint[]);

-- Counts these, in the present hour and for all time. Planned once: it is a part of every push.
create or replace function esl.measure(p_rows esl.measure_row[]) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    insert into esl.measures as m (name, party, server, kind, hour, n, total, buckets)
    select r.name, r.party, coalesce(r.server, ''), coalesce(r.kind, ''), h.hour, r.n, r.total, r.buckets
    from unnest(p_rows) r
    cross join (values ('-infinity'::timestamptz), (date_trunc('hour', clock_timestamp(), 'UTC'))) h (hour)
    where r.n > 0
    order by r.party, r.name, r.kind, r.server, h.hour
    on conflict (party, name, kind, server, hour) do update
    set n = m.n + excluded.n, total = m.total + excluded.total,
        buckets = esl.buckets_added(m.buckets, excluded.buckets);
end $$;

-- When a window of prices that may rise opened last; null: there is none, or it cannot be read.
create or replace function esl.window_opened(p_window jsonb, p_now timestamptz) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare v_zone text := coalesce(p_window ->> 'time_zone', 'UTC'); v_at timestamp;
begin
    if p_window is null or p_window = 'null' or esl.window_problem(p_window) is not null then
        return null;
    end if;
    v_at := date_trunc('day', p_now at time zone v_zone) + (p_window ->> 'opens')::time;
    return (case when v_at > p_now at time zone v_zone then v_at - interval '1 day' else v_at end) at time zone v_zone;
end $$;

-- What an accepted push says of the labels that are still this worker's, for esl.measure. To be asked before the ledger
-- takes it. A rise that waited for its window is late since that opened. news_at: when the first of a label's webhooks
-- came, where it is news for this place: no label that was accepted there was made of it, and the place has been queued
-- because of it and not of something later.
create or replace function esl.acceptances(p_push uuid, p_store text, p_server text, p_mine esl.pushed_row[])
returns esl.measure_row[] language plpgsql stable set search_path = '' as $$
declare v_now timestamptz := clock_timestamp();
begin
    return array(
        with pushed as materialized (
            select esl.price_of(i.label) as price, q.created_at, n.news_at,
                   case when not esl.is_blanked(i.label_hash) and not esl.is_blanked(s.label_hash)
                        then esl.price_of(s.label) end as shown,
                   case when q.is_rise then esl.window_opened(m.settings -> 'raise_window', v_now) end as opened_at
            from unnest(p_mine) r
            join esl.sync_log i on i.push_id = p_push and i.code = r.code and i.kind = 'intent'
            join esl.sync_queue q on q.code = r.code and q.store_code = p_store
            join esl.store_mappings m on m.id = i.mapping_id
            left join esl.hipoink_products s on s.code = r.code and s.store_code = p_store
            left join lateral (
                select min(w.received_at) as news_at from esl.webhook_inbox w
                where coalesce(i.cause, 'new version') = 'new version'  -- rows of before migration 110 have none
                  and w.id = any (i.event_ids) and w.finished_at > q.created_at - interval '10 minutes'
                  and not exists (
                    select from esl.sync_log l
                    where l.push_id = s.push_id and l.code = r.code and l.event_ids && i.event_ids)) n on true
            where i.operation = 'upsert'
        ), timed as (
            select 'accepted' as name, case when p.price > p.shown then 'rise' else 'other' end as kind,
                   p.news_at as since
            from pushed p where p.news_at is not null
            union all
            select 'wrong', case when p.price > p.shown then 'over' else 'under' end,
                   greatest(least(p.created_at, p.news_at), p.opened_at)
            from pushed p where p.price <> p.shown
        ), seconds as (
            select t.name, t.kind, greatest(0, extract(epoch from v_now - t.since))::float8 as took from timed t
        )
        select row(s.name, p_store, p_server, s.kind, count(*), sum(s.took), esl.buckets(array_agg(s.took)))
               ::esl.measure_row
        from seconds s group by s.name, s.kind);
end $$;

-- Counts one call (p: as for esl_push_finish) with these labels, of which some are still this worker's.
create or replace function esl.measure_push(p jsonb, p_codes text[], p_mine esl.pushed_row[]) returns void
language plpgsql volatile set search_path = '' as $$
declare
    v_store   text := p ->> 'store_code';
    v_server  text := esl.server_in(p);
    v_seconds float8 := (p ->> 'duration_ms')::float8 / 1000;
    v_rows    esl.measure_row[];
begin
    if cardinality(p_codes) = 0 then  -- said before
        return;
    end if;
    v_rows := array[row('pushes', v_store, v_server, p ->> 'outcome', cardinality(p_codes), null, null)]
              ::esl.measure_row[];
    if v_seconds is not null then
        v_rows := v_rows || row('calls', v_store, v_server, p ->> 'outcome', 1, v_seconds,
                                esl.buckets(array[v_seconds]))::esl.measure_row;
    end if;
    if p ->> 'outcome' = 'accepted' and cardinality(p_mine) > 0 then
        v_rows := v_rows || esl.acceptances((p ->> 'push_id')::uuid, v_store, v_server, p_mine);
    end if;
    perform esl.measure(v_rows);
end $$;

-- Counts labels of these stores, one each, whose push was lost.
create or replace function esl.measure_lost(p_stores text[]) returns void
language sql volatile set search_path = '' as $$
    select esl.measure(array(
        select row('pushes', s.store, esl.server_of(s.store), 'lost', count(*), null, null)::esl.measure_row
        from unnest(p_stores) s (store) group by s.store))
$$;

-- Counts the labels of variants that a webhook told of (rows as for esl_variants_merge) and that it has not changed.
create or replace function esl.measure_unchanged(p_variants jsonb) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    perform esl.measure(array(
        select row('avoided', m.hipoink_store_code, esl.server_of(m.hipoink_store_code), 'same_product', count(*),
                   null, null)::esl.measure_row
        from (select distinct d.source_system, d.source_store_id, d.variant_id
              from jsonb_populate_recordset(null::esl.variant_row, p_variants) d) d
        join esl.products o on o.variant_id = d.variant_id and o.source_store_id = d.source_store_id
                           and o.source_system = d.source_system
        join esl.store_mappings m on m.source_system = d.source_system and m.source_store_id = d.source_store_id
        where o.changed_at < now() and not o.removed and m.is_active and not m.is_dry_run
        group by m.hipoink_store_code));
end $$;

-- Counts evaluated labels that the label server has as they are.
create or replace function esl.measure_same(p_labels esl.label_row[]) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    perform esl.measure(array(
        select row('avoided', l.store_code, esl.server_of(l.store_code), 'same_label', count(*), null, null)
               ::esl.measure_row
        from unnest(p_labels) l
        join esl.hipoink_products s on s.code = l.code and s.store_code = l.store_code and s.label_hash = l.label_hash
        where l.state = 'publish'
          and not exists (select from esl.sync_queue q where q.code = l.code and q.store_code = l.store_code)
        group by l.store_code));
end $$;

-- Counts the drift that this transaction has noted of these places.
create or replace function esl.measure_drift(p_store text, p_codes text[]) returns void
language sql volatile set search_path = '' as $$
    select esl.measure(array(
        select row('drift', p_store, esl.server_of(p_store), d.kind, count(*), null, null)::esl.measure_row
        from esl.drift d where d.code = any (p_codes) and d.store_code = p_store and d.at >= now() group by d.kind))
$$;

-- Counts what a receiver says that it refused (as for esl_refusals_note) beyond what it has said of the same series. To
-- be asked before that is kept.
create or replace function esl.measure_refused(p jsonb) returns void
language sql volatile set search_path = '' as $$
    select esl.measure(array(
        select row('refused', r.source_system || ':' || r.source_store_id, '', '',
                   max(r.refused) - coalesce(max(o.refused), 0), null, null)::esl.measure_row
        from jsonb_populate_recordset(null::esl.refused_row, p -> 'refused') r
        left join esl.refused_signatures o
          on o.source_system = r.source_system and o.source_store_id = r.source_store_id
         and o.receiver = p ->> 'receiver' and o.refused <= r.refused
         and abs(extract(epoch from o.since - r.since)) < 3600
        where r.since is not null and r.last_at is not null and esl.is_mapped(r.source_system, r.source_store_id)
        group by r.source_system, r.source_store_id))
$$;

-- Forgets the hours of five weeks ago, how many rows; what was counted of all time stays.
create or replace function esl.forget_hours(p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_rows int;
begin
    delete from esl.measures where ctid = any (array(
        select ctid from esl.measures
        where hour > '-infinity' and hour < now() - interval '35 days' limit p_limit for update skip locked));
    get diagnostics v_rows = row_count;
    return v_rows;
end $$;

-- What waits in the inbox and how the deliveries that no longer wait have ended, by shop.
create or replace function esl.inbox_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(to_jsonb(t) order by t.shop), '[]') from (
        select k.source_system || ':' || k.source_store_id as shop, w.deliveries as waiting,
               (select extract(epoch from now() - i.received_at)::float8 from esl.webhook_inbox i
                where i.source_system = k.source_system and i.source_store_id = k.source_store_id
                  and i.state in ('ready', 'leased') order by i.id limit 1) as oldest_seconds,
               jsonb_build_object('done', d.done, 'superseded', d.superseded, 'unusable', d.unusable, 'dead', d.dead,
                                  'not_kept', d.not_kept, 'expired', d.expired) as ended
        from (select source_system, source_store_id from esl.shop_deliveries
              union select source_system, source_store_id from esl.shop_waiting
              union select source_system, source_store_id from esl.store_mappings) k
        cross join lateral esl.waiting(k.source_system, k.source_store_id) w
        left join esl.shop_deliveries d using (source_system, source_store_id)) t
$$;

-- What of the queue waits, by store and state (window: for the hours in which prices may rise), how long, and how many
-- labels of it show a price that is wrong meanwhile. Of mappings that are active and not in dry run.
create or replace function esl.queue_numbers() returns jsonb
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select m.id, esl.window_is_open(m.settings -> 'raise_window') as is_open from esl.store_mappings m
        where m.is_active and not m.is_dry_run
    ), waiting as materialized (
        select q.store_code as store, q.created_at, q.is_rise,
               case when q.state = 'ready' and q.is_rise and not q.in_doubt and not m.is_open then 'window'
                    when q.state = 'leased' then 'ready' else q.state end as state,
               case when not esl.is_blanked(q.label_hash) and not esl.is_blanked(s.label_hash)
                    then sign(esl.price_of(q.label) - esl.price_of(s.label)) end as wrong
        from esl.sync_queue q join mappings m on m.id = q.mapping_id
        left join esl.hipoink_products s on s.code = q.code and s.store_code = q.store_code
    )
    select jsonb_build_object(
        'queue', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store, t.state), '[]') from (
            select store, state, count(*) as labels, count(*) filter (where is_rise) as rises,
                   extract(epoch from now() - min(created_at))::float8 as oldest_seconds,
                   extract(epoch from now() - min(created_at) filter (where is_rise))::float8 as oldest_rise_seconds
            from waiting group by store, state) t),
        'wrong', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store, t.kind), '[]') from (
            select store, case when wrong > 0 then 'over' else 'under' end as kind, count(*) as labels,
                   sum(extract(epoch from now() - created_at))::float8 as seconds
            from waiting where wrong <> 0 and state <> 'window' group by 1, 2) t))
$$;

-- How the labels of each active mapping stand, as far as that is cheap: accuracy as it was counted last.
create or replace function esl.mapping_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(to_jsonb(t) order by t.store, t.shop), '[]') from (
        select m.hipoink_store_code as store, m.source_system || ':' || m.source_store_id as shop,
               a.at as counted_at, a.publishable, a.accurate, a.unsettled,
               (select count(*) from esl.labels l where l.mapping_id = m.id and (l.state = 'held' or l.collides))
               as held_back
        from esl.store_mappings m left join esl.accuracies a on a.mapping_id = m.id
        where m.is_active and not m.is_dry_run) t
$$;

-- The label servers of mapped stores, their breakers, and whether a drain of theirs is alive; stores that pause,
-- or that somebody has paused.
create or replace function esl.server_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'servers', (select coalesce(jsonb_agg(jsonb_build_object(
                'server', s.state ->> 'server', 'failures', coalesce((s.state ->> 'failures')::int, 0),
                'down_seconds', extract(epoch from now() - (s.state ->> 'down_since')::timestamptz)::float8,
                'drain_is_alive', exists (select from esl.leases l
                                          where l.name = 'event_sync:' || (s.state ->> 'server') and l.until > now())
            ) order by s.state ->> 'server'), '[]') from jsonb_array_elements(esl.server_states()) s (state)),
        'paused', (select coalesce(jsonb_agg(k.store_code order by k.store_code), '[]') from (
                       select h.store_code from esl.store_health h where h.until > now() and esl.is_doubted(h)
                       union select s.store_code from esl.store_pauses s
                       where s.ended_at is null and esl.store_is_paused(s.store_code)) k),
        'comparisons', (select coalesce(jsonb_agg(jsonb_build_object('store', c.store_code, 'at', c.at,
                            'complete', c.complete, 'given_up', c.given_up) order by c.store_code), '[]')
                        from esl.comparisons c))
$$;

-- All of it, as esl_numbers tells it.
create or replace function esl.all_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'at', clock_timestamp(), 'bounds', esl.bucket_bounds(),
        'measures', (select coalesce(jsonb_agg(to_jsonb(m) - 'hour' order by m.name, m.party, m.kind, m.server), '[]')
                     from esl.measures m where m.hour = '-infinity'),
        'inbox', esl.inbox_numbers(), 'mappings', esl.mapping_numbers())
        || esl.queue_numbers() || esl.server_numbers()
$$;

-- {seconds?} -> {at, bounds, measures: [{name, party, server, kind, n, total, buckets}], inbox, mappings, queue, wrong,
-- servers, paused, comparisons}: how things stand, not older than so many seconds (5), or than it took twenty times to
-- count, so that asking often costs little. Who comes while it is counted is told the answer before.
create or replace function public.esl_numbers(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare
    v_began  timestamptz := clock_timestamp();
    v_answer jsonb;
    k        esl.number_answers;
begin
    select * into k from esl.number_answers;
    if k.at > v_began - make_interval(secs => greatest(coalesce((p ->> 'seconds')::float8, 5), 20 * k.took)) then
        return k.answer;
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended('esl.numbers', 0)) then
        return coalesce(k.answer, esl.all_numbers());
    end if;
    v_answer := esl.all_numbers();
    insert into esl.number_answers as a (at, took, answer)
    values (v_began, extract(epoch from clock_timestamp() - v_began), v_answer)
    on conflict (is_only) do update set at = excluded.at, took = excluded.took, answer = excluded.answer;
    return v_answer;
end $$;

-- The first row of the audit that is not older than this, by halving: its ids and times grow together.
create or replace function esl.first_logged(p_since timestamptz) returns bigint
language plpgsql stable set search_path = '' as $$
declare
    v_low  bigint := (select coalesce(min(id), 0) from esl.sync_log) - 1;
    v_high bigint := (select coalesce(max(id), 0) from esl.sync_log) + 1;
    v_mid  bigint;
begin
    while v_high - v_low > 1 loop
        v_mid := (v_low + v_high) / 2;
        if (select l.at from esl.sync_log l where l.id >= v_mid order by l.id limit 1) < p_since then
            v_low := v_mid;
        else
            v_high := v_mid;
        end if;
    end loop;
    return v_high;
end $$;

-- The labels that were pushed most often since then, of the newest 500,000 rows of the audit at most. contents: how
-- many different labels these were.
create or replace function esl.changing(p_since timestamptz, p_store text, p_limit int) returns jsonb
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_first bigint := greatest(esl.first_logged(p_since), (select max(id) from esl.sync_log) - 500000);
begin
    return (select coalesce(jsonb_agg(to_jsonb(t) order by t.pushes desc, t.store_code, t.code), '[]') from (
        select f.*, o.title, o.variant_title from (
            select l.store_code, l.code, count(*) as pushes, count(distinct l.label_hash) as contents,
                   max(l.at) as last_at
            from esl.sync_log l
            where l.id >= v_first and l.kind = 'result' and l.outcome = 'accepted' and l.operation = 'upsert'
              and (p_store is null or l.store_code = p_store)
            group by 1, 2 having count(*) > 1
            order by 3 desc, 1, 2 limit p_limit) f
        left join esl.hipoink_products s on s.code = f.code and s.store_code = f.store_code
        left join esl.store_mappings m on m.id = s.mapping_id
        left join esl.products o on o.variant_id = s.variant_id and o.source_store_id = m.source_store_id
                                and o.source_system = m.source_system) t);
end $$;

-- {since, store?, limit} -> {since, bounds, measures: as of esl_numbers, since the hour in which that is, changing:
-- [{store_code, code, title, variant_title, pushes, contents, last_at}]}: for people, of all stores or of one and the
-- shops that feed it.
create or replace function public.esl_stats(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare
    v_since   timestamptz := date_trunc('hour', (p ->> 'since')::timestamptz, 'UTC');
    v_parties text[];
begin
    if p ->> 'store' is not null then
        v_parties := array(
            select m.source_system || ':' || m.source_store_id from esl.store_mappings m
            where m.hipoink_store_code = p ->> 'store') || (p ->> 'store');
    end if;
    return jsonb_build_object(
        'since', v_since, 'bounds', esl.bucket_bounds(),
        'measures', (
            select coalesce(jsonb_agg(to_jsonb(t) order by t.name, t.party, t.kind, t.server), '[]') from (
                select m.name, m.party, m.server, m.kind, sum(m.n)::bigint as n, sum(m.total) as total,
                       esl.all_buckets(m.buckets) as buckets
                from esl.measures m
                where m.hour >= v_since and (v_parties is null or m.party = any (v_parties))
                group by m.name, m.party, m.server, m.kind) t),
        'changing', esl.changing(v_since, p ->> 'store', (p ->> 'limit')::int));
end $$;

-- functions: operator.sql
-- What operators do: push again, pause, replay, redrive, try, approve and reject. Each call does all of it or nothing,
-- and keeps who wanted it: {by, verified?, run_id?, action_id?} besides what it needs. (Stores are removed in
-- leave.sql.)

-- Nothing is done, and this is why, in words for whoever asked.
create or replace function esl.refuse_action(p_why text) returns void
language plpgsql set search_path = '' as $$
begin
    raise exception '%', p_why using errcode = 'ESL01';
end $$;

-- What is left of a wish without who wishes it: as it is kept, and known again.
create or replace function esl.asked(p jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select p - '{by,verified,run_id,action_id,store,label_servers}'::text[]
$$;

-- Refuses a text that is empty, for it would mean everything, or has no end.
create or replace function esl.need_words(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare t record;
begin
    for t in select k.key, k.value #>> '{}' as says from jsonb_each(p) k where jsonb_typeof(k.value) = 'string' loop
        if trim(t.says) = '' then
            perform esl.refuse_action(format('%s must not be empty', replace(t.key, '_', ' ')));
        elsif length(t.says) > 1000 then
            perform esl.refuse_action(format('%s is longer than 1000 characters', replace(t.key, '_', ' ')));
        end if;
    end loop;
end $$;

-- Of an earlier build.
drop function if exists esl.answered(jsonb);

-- What was answered to this wish before; null: it is new, and nobody else does it meanwhile. (action: as it is kept.)
create or replace function esl.answered(p jsonb, p_action text) returns jsonb
language plpgsql volatile set search_path = '' as $$
declare a esl.operator_actions; v_times text[] := '{since,until}';  -- "2h" is another time when it is said again
begin
    perform esl.need_words(p);
    if p ->> 'action_id' is null then
        return null;
    end if;
    perform pg_advisory_xact_lock(hashtextextended('esl.action ' || (p ->> 'action_id'), 0));
    select * into a from esl.operator_actions o where o.action_id = (p ->> 'action_id')::uuid;
    if found and (a.action, a.store_code, a.asked - v_times)
                 is distinct from (p_action, p ->> 'store', esl.asked(p) - v_times) then
        perform esl.refuse_action('this was sent before with another wish in it: nothing was done');
    end if;
    return a.answer;
end $$;

create or replace function esl.actor(p jsonb) returns text
language sql stable set search_path = '' as $$
    select coalesce(p ->> 'by', 'role:' || session_user)
$$;

-- Keeps what was done, and gives the answer back.
create or replace function esl.keep_action(p jsonb, p_action text, p_how_many bigint, p_answer jsonb) returns jsonb
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.operator_actions (action_id, by, verified, run_id, action, store_code, asked, answer, how_many)
    values (coalesce((p ->> 'action_id')::uuid, gen_random_uuid()), esl.actor(p),
            coalesce((p ->> 'verified')::boolean, false), p ->> 'run_id', p_action, p ->> 'store',
            esl.asked(p), p_answer, p_how_many);
    return p_answer;
end $$;

-- Refuses a store that no mapping names, or has named before.
create or replace function esl.need_store(p_store text) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if not exists (select from esl.store_mappings m left join esl.left_stores l on l.mapping_id = m.id
                   where p_store in (m.hipoink_store_code, l.store_code) and m.removed_at is null) then
        perform esl.refuse_action(format('no shop is mapped to store %s: see `esl-pipeline stores list`', p_store));
    end if;
end $$;

-- The first of these, for a sentence.
create or replace function esl.some_of(p_names text[]) returns text
language sql immutable set search_path = '' as $$
    select array_to_string(p_names[:10], ', ') || case when cardinality(p_names) > 10
           then format(' and %s more', cardinality(p_names) - 10) else '' end
$$;

-- The places of a store that are meant: {store} and one of {codes, product, sku, vendor, tag, product_type, whole}.
-- Of a store whole also what hangs or waits there and is no variant's any more.
create or replace function esl.meant_places(p jsonb) returns setof text
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select l.code
    from esl.store_mappings m
    join esl.labels l on l.mapping_id = m.id and l.store_code = m.hipoink_store_code and l.code is not null
    join esl.products o on o.variant_id = l.variant_id and o.source_store_id = m.source_store_id
                       and o.source_system = m.source_system
    where m.hipoink_store_code = p ->> 'store' and m.removed_at is null and not p ? 'codes'
      and (p ->> 'product' is null or p ->> 'product' in (o.product_id, o.handle))
      and (p ->> 'sku' is null or o.sku = p ->> 'sku')
      and (p ->> 'vendor' is null or lower(o.vendor) = lower(p ->> 'vendor'))
      and (p ->> 'product_type' is null or lower(o.product_type) = lower(p ->> 'product_type'))
      and (p ->> 'tag' is null or exists (
          select from unnest(string_to_array(lower(o.tags), ',')) as t (tag) where trim(t.tag) = lower(p ->> 'tag')))
    union
    select k.code
    from (select s.code from esl.hipoink_products s where s.store_code = p ->> 'store'
          union all select q.code from esl.sync_queue q where q.store_code = p ->> 'store'
          union all select l.code from esl.labels l
                    where p ? 'codes' and l.store_code = p ->> 'store'
                      and l.code in (select jsonb_array_elements_text(p -> 'codes'))) k
    where case when p ? 'codes' then p -> 'codes' ? k.code else coalesce((p ->> 'whole')::boolean, false) end
$$;

-- The codes that are meant; refused where a code is unknown, or nothing is meant.
create or replace function esl.need_places(p jsonb) returns text[]
language plpgsql volatile set search_path = '' as $$
declare
    v_ways    text[] := array(select k from jsonb_object_keys(p) as k (k) where k = any (
        '{codes,product,sku,vendor,tag,product_type,whole}'));
    v_found   text[] := array(select c from esl.meant_places(p) as c (c) order by c collate "C");
    v_unknown text[];
begin
    if cardinality(v_ways) <> 1 then
        perform esl.refuse_action('say which labels in one way: codes, product, SKU, vendor, tag, product type, or all '
                                  'of the store');
    elsif p ? 'codes' then
        v_unknown := array(select c.code from jsonb_array_elements_text(p -> 'codes') as c (code)
                           where c.code <> all (v_found) order by c.code collate "C");
        if v_unknown <> '{}' then
            perform esl.refuse_action(format('store %s has no label %s: nothing was done', p ->> 'store',
                                             esl.some_of(v_unknown)));
        end if;
    end if;
    if v_found = '{}' then
        perform esl.refuse_action(case when p ? 'whole' then format('store %s has no labels yet', p ->> 'store')
            else format('no label of store %s has the %s %s', p ->> 'store', replace(v_ways[1], '_', ' '),
                        p ->> v_ways[1]) end);
    end if;
    return v_found;
end $$;

-- What is wrong with pushing to a store, or null: none of its mappings is live.
create or replace function esl.why_not_live(p_store text) returns text
language sql stable set search_path = '' as $$
    select case when bool_and(m.is_dry_run) then 'is in dry run: end that first (`esl-pipeline stores set`)'
                when not bool_or(m.is_active) then 'is inactive: activate it first (`esl-pipeline stores set`)'
                when not bool_or(m.is_active and not m.is_dry_run) then 'is inactive, or in dry run' end
    from esl.store_mappings m where m.hipoink_store_code = p_store and m.removed_at is null
$$;

-- What hinders a queued label, for counts; null: nothing but its turn.
create or replace function esl.hindrance(q esl.sync_queue, m esl.store_mappings) returns text
language sql stable set search_path = '' as $$
    select case when q.state = 'leased' then 'under_way'
                when q.rejected_at is not null then 'rejected'
                when q.state = 'guarded' then 'waits_for_approval'
                when q.is_rise and not q.in_doubt and not esl.window_is_open(m.settings -> 'raise_window')
                then 'waits_for_window' end
$$;

-- Queues these places of a store as the ledger has them, in doubt: what is wanted there is sent once more, but after
-- what has changed. -> how many.
create or replace function esl.push_once_more(p_store text, p_codes text[]) returns bigint
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_codes text[];
begin
    with again as (
        insert into esl.sync_queue (store_code, code, mapping_id, variant_id, operation, label, label_hash, priority,
                                    in_doubt, cause)
        select s.store_code, s.code, s.mapping_id, s.variant_id, 'upsert', s.label, s.label_hash, 2, true, 'push again'
        from esl.hipoink_products s where s.store_code = p_store and s.code = any (p_codes) order by s.code
        on conflict do nothing
        returning code
    )
    select coalesce(array_agg(code), '{}') into v_codes from again;
    perform esl.requeue(array_fill(p_store, array[cardinality(v_codes)]), v_codes, 'push again');
    update esl.sync_queue set priority = 2 where store_code = p_store and code = any (v_codes) and priority < 2;
    return cardinality(v_codes);
end $$;

-- {store, codes | product | sku | vendor | tag | product_type | whole} -> {labels, pushed_again, already_due,
-- under_way, waits_for_window, waits_for_approval, rejected, held_back, paused}: labels of a store go out once more.
-- What is queued is due now, with a clean count; what is on its way goes again after that; what waits for its window or
-- for somebody's word goes on waiting. held_back: what hangs nowhere and is not wanted there either.
create or replace function public.esl_operator_push(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare
    v_answer jsonb := esl.answered(p, 'push'); v_store text := p ->> 'store'; v_codes text[]; v_again bigint;
    v_why text;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(v_store);
    perform esl.lock_stores(array[v_store]);
    v_codes := esl.need_places(p);
    v_why := esl.why_not_live(v_store);
    if v_why is not null then
        perform esl.refuse_action(format('store %s %s', v_store, v_why));
    end if;
    with queued as (
        select q.code, esl.hindrance(q, m) as hindrance
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.store_code = v_store and q.code = any (v_codes)
    ), due as (
        update esl.sync_queue q
        set redo = q.redo or q.state = 'leased',
            attempts = case when q.state = 'leased' then q.attempts else 0 end,
            state = case when q.state = 'leased' then q.state else 'ready' end, refusals = 0, refused_at = null,
            next_attempt_at = now(), max_batch = 1000,
            cause = case when q.state = 'leased' then q.cause else 'push again' end
        from queued k
        where q.store_code = v_store and q.code = k.code and coalesce(k.hindrance, 'under_way') = 'under_way'
    )
    select jsonb_build_object('labels', cardinality(v_codes),
               'already_due', count(*) filter (where hindrance is null),
               'under_way', count(*) filter (where hindrance = 'under_way'),
               'waits_for_window', count(*) filter (where hindrance = 'waits_for_window'),
               'waits_for_approval', count(*) filter (where hindrance = 'waits_for_approval'),
               'rejected', count(*) filter (where hindrance = 'rejected'),
               'held_back', cardinality(v_codes) - count(*), 'paused', esl.store_is_paused(v_store))
    into v_answer from queued;
    v_again := esl.push_once_more(v_store, v_codes);
    perform pg_notify('esl_inbox', '');  -- wakes a drain that waits
    return esl.keep_action(p, 'push', v_again + (v_answer ->> 'already_due')::int, v_answer || jsonb_build_object(
        'pushed_again', v_again, 'held_back', (v_answer ->> 'held_back')::int - v_again));
end $$;

-- Whether somebody has paused a store. (That refusals have is esl.store_health.)
create or replace function esl.store_is_paused(p_store text) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return exists (select from esl.store_pauses s
                   where s.store_code = p_store and s.ended_at is null and coalesce(s.until > clock_timestamp(), true));
end $$;

-- The pause of a store that holds now, for people: {since, until, reason, by}, or null.
create or replace function esl.pause_of(p_store text) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('since', s.since, 'until', s.until, 'reason', s.reason, 'by', s.by)
    from esl.store_pauses s
    where s.store_code = p_store and s.ended_at is null and coalesce(s.until > clock_timestamp(), true)
$$;

-- {store, reason, until?} -> {store_code, since, until, reason, by}: nothing is pushed to a store until then, or until
-- somebody resumes it: what is under way ends, and what comes waits. Another pause takes the place of the one before.
create or replace function public.esl_operator_pause(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_answer jsonb := esl.answered(p, 'pause'); v_until timestamptz := (p ->> 'until')::timestamptz;
    v_now timestamptz := clock_timestamp();
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    if v_until <= v_now then
        perform esl.refuse_action(format('a pause until %s would be over already', esl.utc(v_until)));
    end if;
    perform esl.lock_stores(array[p ->> 'store']);
    update esl.store_pauses set ended_at = least(until, v_now),
           ended_by = case when until <= v_now then 'its end' else esl.actor(p) end
    where store_code = p ->> 'store' and ended_at is null;
    insert into esl.store_pauses (store_code, since, until, reason, by, verified, run_id)
    values (p ->> 'store', v_now, v_until, trim(p ->> 'reason'), esl.actor(p),
            coalesce((p ->> 'verified')::boolean, false), p ->> 'run_id');
    return esl.keep_action(p, 'pause', 1, jsonb_build_object('store_code', p ->> 'store')
                                          || esl.pause_of(p ->> 'store'));
end $$;

-- {store} -> {store_code, since, until, reason, by, waiting}: ends the pause of a store. waiting: labels that go out.
create or replace function public.esl_operator_resume(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_answer jsonb := esl.answered(p, 'resume'); v_pause jsonb; v_waiting bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    perform esl.lock_stores(array[p ->> 'store']);
    v_pause := esl.pause_of(p ->> 'store');
    if v_pause is null then
        perform esl.refuse_action(format('store %s is not paused', p ->> 'store'));
    end if;
    update esl.store_pauses set ended_at = clock_timestamp(), ended_by = esl.actor(p)
    where store_code = p ->> 'store' and ended_at is null;
    select count(*) into v_waiting from esl.sync_queue q where q.store_code = p ->> 'store' and q.state = 'ready';
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'resume', 1, jsonb_build_object('store_code', p ->> 'store', 'waiting', v_waiting)
                                           || v_pause);
end $$;

-- {store?, limit} -> {pauses: [{store_code, since, until, reason, by, verified, run_id, ended_at, ended_by, holds}]},
-- newest first. One that has ended by itself has its end as ended_at.
create or replace function public.esl_operator_pauses(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('pauses', coalesce(jsonb_agg(to_jsonb(t) - 'id' order by t.id desc), '[]')) from (
        select s.id, s.store_code, s.since, s.until, s.reason, s.by, s.verified, s.run_id,
               coalesce(s.ended_at, case when s.until <= clock_timestamp() then s.until end) as ended_at,
               coalesce(s.ended_by, case when s.until <= clock_timestamp() then 'its end' end) as ended_by,
               s.ended_at is null and coalesce(s.until > clock_timestamp(), true) as holds
        from esl.store_pauses s where p ->> 'store' is null or s.store_code = p ->> 'store'
        order by s.id desc limit (p ->> 'limit')::int) t
$$;

-- The finished deliveries that are meant (p: as for esl_operator_replay), and those that wait anyway.
create or replace function esl.meant_deliveries(p jsonb) returns table (id bigint, state text, has_body boolean)
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with named as (
        select i.id from esl.webhook_inbox i where p ? 'ids' and i.id in (
            select n.name::bigint from jsonb_array_elements_text(p -> 'ids') as n (name)
            where n.name ~ '^[0-9]{1,18}$')
        union
        select i.id from esl.webhook_inbox i
        where p ? 'ids' and i.webhook_id in (select jsonb_array_elements_text(p -> 'ids'))
    )
    select i.id, i.state, i.body is not null from esl.webhook_inbox i
    where (not p ? 'ids' or i.id in (select n.id from named n))
      and (p -> 'shop' is null or (i.source_system, i.source_store_id)
           = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
      and (p ->> 'since' is null or i.received_at >= (p ->> 'since')::timestamptz)
      and (p ->> 'until' is null or i.received_at < (p ->> 'until')::timestamptz)
      and (p ->> 'reason' is null or strpos(lower(i.reason), lower(p ->> 'reason')) > 0)
      and (p ->> 'state' is null or i.state = p ->> 'state')
    order by i.id limit (p ->> 'limit')::int + 1
$$;

-- Refuses what names no delivery.
create or replace function esl.need_deliveries(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_unknown text[];
begin
    if not p ?| '{ids,shop,since,until,reason,state}' then
        perform esl.refuse_action('say which deliveries: by id, shop, time, reason or state');
    elsif p ? 'shop' and not exists (
            select from esl.shop_deliveries d where d.source_system = p #>> '{shop,source_system}'
              and d.source_store_id = p #>> '{shop,source_store_id}') and not esl.is_mapped(
            p #>> '{shop,source_system}', p #>> '{shop,source_store_id}') then
        perform esl.refuse_action(format('nothing is known of a shop %s', p #>> '{shop,source_store_id}'));
    elsif not coalesce(p ->> 'state' in ('done', 'superseded', 'unusable', 'dead'), true) then
        perform esl.refuse_action('a delivery that has ended is done, superseded, unusable or dead');
    end if;
    v_unknown := array(
        select n.name from jsonb_array_elements_text(coalesce(p -> 'ids', '[]')) as n (name)
        where not exists (select from esl.webhook_inbox i where i.webhook_id = n.name)
          and not exists (select from esl.webhook_inbox i where n.name ~ '^[0-9]{1,18}$'
                          and i.id = (case when n.name ~ '^[0-9]{1,18}$' then n.name end)::bigint));
    if v_unknown <> '{}' then
        perform esl.refuse_action(format('there is no delivery %s: nothing was done', esl.some_of(v_unknown)));
    end if;
end $$;

-- {ids?, shop?, since?, until?, reason?, state?, limit, dry_run?} -> {deliveries, without_body, waiting, more}:
-- finished deliveries are read again, as if they had just come. What they tell is compared with what is known by now,
-- so an older one changes nothing.
create or replace function public.esl_operator_replay(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare v_answer jsonb := esl.answered(p, 'replay'); v_ids bigint[]; v_found bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_deliveries(p);
    with meant as materialized (
        select d.*, row_number() over (order by d.id) as n from esl.meant_deliveries(p) d
    ), within as (
        select * from meant where n <= (p ->> 'limit')::int
    )
    select array(select w.id from within w where w.has_body and w.state not in ('ready', 'leased')),
           count(*), jsonb_build_object(
               'without_body', count(*) filter (where not has_body and state not in ('ready', 'leased')),
               'waiting', count(*) filter (where state in ('ready', 'leased')),
               'more', (select count(*) from meant) > count(*))
    into v_ids, v_found, v_answer from within;
    if v_found = 0 then
        perform esl.refuse_action('no delivery is so: nothing was done');
    end if;
    v_answer := v_answer || jsonb_build_object('deliveries', cardinality(v_ids));
    if coalesce((p ->> 'dry_run')::boolean, false) then
        return v_answer;
    end if;
    perform esl.read_again(v_ids);
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'replay', cardinality(v_ids), v_answer);
end $$;

-- Refuses names of stores, labels and reasons that nothing has (p: as for esl_redrive).
create or replace function esl.need_redrivable(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if p ->> 'store' is not null then
        perform esl.need_store(p ->> 'store');
    end if;
    if p ->> 'code' is not null and not exists (
            select from (select l.store_code from esl.labels l where l.code = p ->> 'code'
                         union all select q.store_code from esl.sync_queue q where q.code = p ->> 'code'
                         union all select s.store_code from esl.hipoink_products s where s.code = p ->> 'code') k
            where p ->> 'store' is null or k.store_code = p ->> 'store') then
        perform esl.refuse_action(format('nothing is known of a label %s%s', p ->> 'code',
                                         ' in store ' || (p ->> 'store')));
    end if;
end $$;

-- The labels that are meant: refused, failed and dead (p: as for esl_redrive).
create or replace function esl.redrivable(p jsonb) returns setof esl.sync_queue
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select q.* from esl.sync_queue q
    where (q.state in ('failed', 'dead') or (q.state = 'ready' and q.refused_at is not null))
      and (p ->> 'store' is null or q.store_code = p ->> 'store') and (p ->> 'code' is null or q.code = p ->> 'code')
      and (p ->> 'reason' is null or strpos(lower(q.last_error), lower(p ->> 'reason')) > 0)
$$;

-- Whatever keeps label servers and stores from being tried is over (p: as for esl_redrive).
create or replace function esl.forget_waits(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if not p ?| '{store,code,reason}' then
        update esl.label_servers set probe_at = now() where probe_at > now();
        update esl.refresh_marks set lease_until = now() where lease_until is not null;
    end if;
    if not p ?| '{code,reason}' then
        update esl.store_health
        set refusals = 0, refused_at = null, pauses = 0, until = null, reason = null, unanswered = false
        where p ->> 'store' is null or store_code = p ->> 'store';
    end if;
end $$;

-- {store?, code?, reason?} -> {labels, deliveries}: refused, failed and dead pushes, and dead deliveries (without store
-- and code), are due again with a clean count of attempts; without code and reason, stores that pause are tried at
-- once. reason: part of what was said last of them. A delivery whose body is no longer kept stays dead.
create or replace function public.esl_redrive(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_answer jsonb := esl.answered(p, 'redrive'); v_labels int; v_deliveries bigint[] := '{}';
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_redrivable(p);
    perform esl.lock_stores(array(
        select distinct q.store_code from esl.sync_queue q
        where q.state in ('ready', 'failed', 'dead') and (p ->> 'store' is null or q.store_code = p ->> 'store')));
    perform esl.forget_waits(p);
    update esl.sync_queue q
    set state = 'ready', attempts = 0, refusals = 0, refused_at = null, next_attempt_at = now(), max_batch = 1000,
        cause = 'redrive'
    from esl.redrivable(p) r where q.code = r.code and q.store_code = r.store_code;
    get diagnostics v_labels = row_count;
    if not p ?| '{store,code}' then
        v_deliveries := array(
            select i.id from esl.webhook_inbox i where i.state = 'dead' and i.body is not null
              and (p ->> 'reason' is null or strpos(lower(i.reason), lower(p ->> 'reason')) > 0));
        perform esl.read_again(v_deliveries);
    end if;
    if p ? 'reason' and v_labels + cardinality(v_deliveries) = 0 then
        perform esl.refuse_action(format('of nothing that was refused or given up the reason has %s in it',
                                         to_json(p ->> 'reason')));
    end if;
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'redrive', v_labels + cardinality(v_deliveries),
                           jsonb_build_object('labels', v_labels, 'deliveries', cardinality(v_deliveries)));
end $$;

-- {label_server, label_servers?} -> {label_server, was_down, since, waiting}: the wait is over until a label server
-- that is down is tried again: one label goes out at once, and if that passes the others. label_servers: those that the
-- settings name. waiting: labels that wait for it.
create or replace function public.esl_operator_try(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_answer jsonb := esl.answered(p, 'try'); v_name text := p ->> 'label_server'; s esl.label_servers;
    v_waiting bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    select * into s from esl.label_servers l where l.server = v_name for update;
    if not found and not coalesce(p -> 'label_servers' ? v_name, false)
       and not exists (select from esl.stores t where t.label_server = v_name) then
        perform esl.refuse_action(format('there is no label server %s: see `esl-pipeline status`', v_name));
    end if;
    -- What it could not take waits until then as well.
    update esl.sync_queue q set next_attempt_at = now()
    where s.down_since is not null and q.state = 'ready' and q.next_attempt_at > now()
      and q.next_attempt_at <= s.probe_at and esl.server_of(q.store_code) = v_name;
    update esl.label_servers set probe_at = now() where server = v_name and down_since is not null;
    select count(*) into v_waiting from esl.sync_queue q
    where q.state = 'ready' and esl.server_of(q.store_code) = v_name;
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'try', 1, jsonb_build_object(
        'label_server', v_name, 'was_down', s.down_since is not null, 'since', s.down_since, 'waiting', v_waiting));
end $$;

-- Removals of a store that waited and then the guard held back are approved: they wait once more, so that a mistaken
-- approval can be taken back as well.
create or replace function esl.wait_again(p_store text) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_codes text[];
begin
    with again as (
        update esl.graces g set since = clock_timestamp(), approved = true from esl.sync_queue q
        where q.store_code = p_store and q.operation = 'delete' and q.approved and q.state = 'ready'
          and g.code = q.code and g.store_code = q.store_code and not g.approved
        returning g.code
    ) select array_agg(code) into v_codes from again;
    perform esl.requeue(array_fill(p_store, array[coalesce(cardinality(v_codes), 0)]), v_codes, 'approval');
end $$;

-- The price that a queued change leads to; null: no label, or a blank one.
create or replace function esl.price_after(q esl.sync_queue) returns text
language sql stable set search_path = '' as $$
    select case when not esl.is_blanked(q.label_hash) then esl.price_of(q.label)::text end
$$;

-- Refuses codes of a store that do not wait for somebody's word, or are other changes than were looked at ({store,
-- codes?, seen?: {code: [kind, after]}}; see esl_operator_changes).
create or replace function esl.need_changes(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_others text[] := array(
    select c.code from jsonb_array_elements_text(coalesce(p -> 'codes', '[]')) as c (code)
    where not exists (select from esl.sync_queue q where q.store_code = p ->> 'store' and q.code = c.code
                      and q.drastic is not null and q.state = 'guarded') order by 1);
begin
    if v_others <> '{}' then
        perform esl.refuse_action(format('of store %s no change of %s waits for approval: see `esl-pipeline changes '
                                         'list`; nothing was done', p ->> 'store', esl.some_of(v_others)));
    end if;
    v_others := array(
        select s.code from jsonb_each(p -> 'seen') as s (code, change)
        join esl.sync_queue q on q.store_code = p ->> 'store' and q.code = s.code
        where s.change <> jsonb_build_array(q.drastic, esl.price_after(q)) order by 1);
    if v_others <> '{}' then
        perform esl.refuse_action(format('of store %s %s changed since you looked: look again; nothing was done',
                                         p ->> 'store', esl.some_of(v_others)));
    end if;
end $$;

-- {store, codes?, seen?, by} -> {removals, prices}: the drastic changes of a store that wait may go on, these
-- (rejected ones as well), or all but the rejected ones. Kept in esl.approvals.
create or replace function public.esl_changes_approve(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_answer jsonb := esl.answered(p, 'approve'); v_removals int; v_prices int;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    perform esl.lock_stores(array[p ->> 'store']);
    perform esl.need_changes(p);
    with released as (
        update esl.sync_queue
        set state = 'ready', approved = true, next_attempt_at = now(), rejected_at = null,
            cause = 'approval'
        where store_code = p ->> 'store' and drastic is not null and state = 'guarded'
          and case when p ? 'codes' then p -> 'codes' ? code else rejected_at is null end
        returning drastic
    )
    select count(*) filter (where drastic = 'removal'), count(*) filter (where drastic = 'price')
    into v_removals, v_prices from released;
    if v_removals + v_prices > 0 then
        insert into esl.approvals (store_code, removals, prices, by, codes)
        values (p ->> 'store', v_removals, v_prices, esl.actor(p),
                case when p ? 'codes' then array(select jsonb_array_elements_text(p -> 'codes')) end);
        perform esl.wait_again(p ->> 'store');
        perform pg_notify('esl_inbox', '');
    end if;
    return esl.keep_action(p, 'approve', v_removals + v_prices,
                           jsonb_build_object('removals', v_removals, 'prices', v_prices));
end $$;

-- {store, codes, seen?, reason?} -> {removals, prices}: these drastic changes are not made: their labels stay as they
-- are until something else is wanted of them (see esl.requeue), or somebody approves them after all.
create or replace function public.esl_operator_reject(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_answer jsonb := esl.answered(p, 'reject'); v_removals int; v_prices int;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    perform esl.lock_stores(array[p ->> 'store']);
    perform esl.need_changes(p);
    with rejected as (
        update esl.sync_queue
        set rejected_at = clock_timestamp(), rejected_by = esl.actor(p), rejection = p ->> 'reason'
        where store_code = p ->> 'store' and drastic is not null and state = 'guarded' and p -> 'codes' ? code
        returning drastic
    )
    select count(*) filter (where drastic = 'removal'), count(*) filter (where drastic = 'price')
    into v_removals, v_prices from rejected;
    return esl.keep_action(p, 'reject', v_removals + v_prices,
                           jsonb_build_object('removals', v_removals, 'prices', v_prices));
end $$;

-- {store?, after?: [store, code], limit} -> {changes: [{store_code, code, variant_id, source_store_id, title,
-- variant_title, kind, operation, before, after, since, rejected_at, rejected_by, reason}]}: what waits for somebody's
-- word, or was rejected. before, after: prices; null: no label, or a blank one.
create or replace function public.esl_operator_changes(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select jsonb_build_object('changes', coalesce(jsonb_agg(to_jsonb(t) order by t.store_code, t.code collate "C"),
                                                  '[]'))
    from (
        select q.store_code, q.code, q.variant_id, m.source_store_id, o.title, o.variant_title, q.drastic as kind,
               q.operation, esl.price_of(s.label)::text as before,
               esl.price_after(q) as after,
               q.created_at as since, q.rejected_at,
               case when q.rejected_at is not null then q.rejected_by end as rejected_by,
               case when q.rejected_at is not null then q.rejection end as reason
        from esl.sync_queue q
        join esl.store_mappings m on m.id = q.mapping_id
        left join esl.hipoink_products s on s.code = q.code and s.store_code = q.store_code
        left join esl.products o on o.variant_id = q.variant_id and o.source_store_id = m.source_store_id
                                and o.source_system = m.source_system
        where q.drastic is not null and q.state = 'guarded'
          and (p ->> 'store' is null or q.store_code = p ->> 'store')
          and (p -> 'after' is null or (q.store_code, q.code collate "C") > (p #>> '{after,0}', p #>> '{after,1}'))
        order by q.store_code, q.code collate "C" limit (p ->> 'limit')::int) t
$$;

-- {store?, action?, limit} -> {actions: [{at, by, verified, db_user, run_id, action, store_code, asked, answer,
-- how_many}]}: what operators did, newest first.
create or replace function public.esl_operator_actions(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('actions', coalesce(jsonb_agg(to_jsonb(a) - 'id' order by a.id desc), '[]')) from (
        select * from esl.operator_actions o
        where (p ->> 'store' is null or o.store_code = p ->> 'store')
          and (p ->> 'action' is null or o.action = p ->> 'action')
        order by o.id desc limit (p ->> 'limit')::int) a
$$;

-- functions: owners.sql
-- Whose things are, of sources whose ids are unique over all their shops.

-- Of events that are done (see esl_variants_merge), those that may be another shop's body under this shop's name: only
-- the signature says for which secret a body was made, and only a header says for which shop. So nothing of a shop with
-- a secret of its own is suspected, and nothing that such a shop has counts against others: their signatures differ.
-- Where a secret is shared, a thing is whose it was settled to be (esl.contests); else an active shop that has it keeps
-- it and the other one waits, whatever came first, until it is settled. Concluded absence (body_sha256 '') is no claim.
-- settled: by evidence.
create or replace function esl.suspects(p_events jsonb)
returns table (id bigint, source_system text, source_store_id text, thing text, owner text, is_settled boolean)
language sql stable set search_path = '' as $$
    with claimed as (
        select i.id, i.source_system, i.source_store_id, e.product_id, e.inventory_item_id, e.thing,
               bool_or(i.proven) over (partition by i.source_system, i.source_store_id, e.thing) as proven,
               esl.has_active_mapping(i.source_system, i.source_store_id) as is_active
        from (select x.id, x.product_id, x.inventory_item_id,
                     coalesce('product:' || x.product_id, 'inventory_item:' || x.inventory_item_id) as thing
              from jsonb_populate_recordset(null::esl.event_row, p_events) x
              where x.state = 'done' and num_nonnulls(x.product_id, x.inventory_item_id) > 0) e
        join esl.webhook_inbox i on i.id = e.id
        where i.source_system in (select s.system from esl.sources() s where s.ids_are_global)
    ), met as (
        select c.*, (array_agg(c.source_store_id) filter (where c.is_active and not c.proven) over (
                         partition by c.source_system, c.thing order by c.id
                         rows between unbounded preceding and unbounded following))[1] as first_shop
        from claimed c
    ), judged as (
        select m.*, k.owner as settled, case when k.owner is not null then k.owner
                    when m.source_store_id <> all (o.shops) then coalesce(
                        (select min(s.shop) from unnest(o.shops) as s (shop)
                         where esl.has_active_mapping(m.source_system, s.shop) and not exists (
                             select from esl.shop_deliveries d where d.source_store_id = s.shop
                               and d.source_system = m.source_system and d.own_secret)),
                        m.first_shop) end as owner
        from met m
        -- An owner without any mapping is a shop that was renamed, or that nobody knows any more.
        left join esl.contests k on k.thing = m.thing and k.source_system = m.source_system
            and exists (select from esl.store_mappings o
                        where o.source_system = k.source_system and o.source_store_id = k.owner)
        cross join lateral (
            select coalesce(array_agg(h.source_store_id), '{}') as shops from (
                select v.source_store_id from esl.product_versions v
                where v.product_id = m.product_id and v.source_system = m.source_system
                  and not (v.deleted and v.body_sha256 = '')
                union all
                select p.source_store_id from esl.products p
                where p.inventory_item_id = m.inventory_item_id and p.source_system = m.source_system and not p.removed
                union all
                select l.source_store_id from esl.inventory_levels l
                where l.inventory_item_id = m.inventory_item_id and l.source_system = m.source_system
                  and not (l.gone and l.body_sha256 = '')) h) o
        where not m.proven
    )
    select j.id, j.source_system, j.source_store_id, j.thing, j.owner, j.settled is not null
    from judged j where j.owner <> j.source_store_id
$$;

-- What esl_variants_merge is given, without what is suspected: those events become unusable, and are read again when it
-- is settled; the contest is kept for people. suspected: [{id, reason}].
create or replace function esl.set_aside(p jsonb, out rest jsonb, out suspected jsonb)
language plpgsql set search_path = '' as $$
declare v_reasons jsonb; v_foreign text[];
begin
    rest := p;
    with suspects as materialized (
        select * from esl.suspects(p -> 'events')
    ), waiting as (
        update esl.webhook_inbox i set contested = s.thing from suspects s where i.id = s.id
    ), contests as (
        insert into esl.contests as k (source_system, thing, shops)
        select s.source_system, s.thing, array_agg(distinct x.shop order by x.shop)
        from suspects s cross join lateral (values (s.owner), (s.source_store_id)) x (shop)
        where not s.is_settled and esl.has_active_mapping(s.source_system, s.source_store_id)
        group by 1, 2 order by 1, 2
        on conflict (thing, source_system) do update set
            shops = (select array_agg(distinct x order by x) from unnest(k.shops || excluded.shops) x),
            owner = null, settled_at = null, settled_by = null, db_user = null,
            since = case when k.owner is null then k.since else clock_timestamp() end
    )
    select jsonb_object_agg(s.id, format(
               'replay suspected: %s %s shop %s''s', replace(replace(s.thing, ':', ' '), '_', ' '),
               case when s.is_settled then 'is' else 'is known as' end, s.owner)),
           array_agg(concat_ws(' ', s.source_system, s.source_store_id, s.thing))
    into v_reasons, v_foreign from suspects s;
    if v_reasons is null then
        return;
    end if;
    rest := p || jsonb_build_object(
        'events', (select jsonb_agg(case when v_reasons ? (e ->> 'id') then
                       e || jsonb_build_object('state', 'unusable', 'reason', v_reasons ->> (e ->> 'id')) else e end)
                   from jsonb_array_elements(p -> 'events') e),
        'products', esl.without(p -> 'products', 'product_id', 'product:', v_foreign),
        'variants', esl.without(p -> 'variants', 'product_id', 'product:', v_foreign),
        'levels', esl.without(p -> 'levels', 'inventory_item_id', 'inventory_item:', v_foreign));
    suspected := (select jsonb_agg(jsonb_build_object('id', r.key::bigint, 'reason', r.value))
                  from jsonb_each_text(v_reasons) r);
end $$;

create or replace function esl.without(p_rows jsonb, p_column text, p_kind text, p_foreign text[]) returns jsonb
language sql immutable set search_path = '' as $$
    select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(p_rows) d
    where concat_ws(' ', d ->> 'source_system', d ->> 'source_store_id', p_kind || (d ->> p_column)) <> all (p_foreign)
$$;

-- A thing is p_owner's. What the other claimants have stored of it goes (it is not theirs, so their labels of it leave
-- under the guard of mass changes), and what p_owner said of it is read again, also what an earlier word had put out of
-- use.
create or replace function esl.settle(p_system text, p_thing text, p_owner text, p_by text) returns void
language plpgsql set search_path = '' as $$
declare k esl.contests; v_product text := substring(p_thing from '^product:(.*)$'); v_redo boolean;
begin
    update esl.contests set owner = p_owner, settled_at = clock_timestamp(), settled_by = p_by, db_user = session_user
    where thing = p_thing and source_system = p_system returning * into k;
    update esl.product_versions v set deleted = true, body_sha256 = '', missing_variants = 0
    where v.product_id = v_product and v.source_system = p_system and v.source_store_id = any (k.shops)
      and v.source_store_id <> p_owner and not v.deleted;
    update esl.products o
    set removed = true, event_ids = '{}', cause = 'read', revision = nextval('esl.revision'), due = true,
        changed_at = now()
    where o.product_id = v_product and o.source_system = p_system and o.source_store_id = any (k.shops)
      and o.source_store_id <> p_owner and not o.removed;
    v_redo := exists (select from esl.product_versions v where v.product_id = v_product and v.source_store_id = p_owner
                      and v.source_system = p_system and v.deleted and v.body_sha256 = '');
    perform esl.read_again(array(
        select i.id from esl.webhook_inbox i
        where i.contested = p_thing and i.source_store_id = p_owner and i.source_system = p_system
          and i.state = 'unusable'
        union all
        select i.id from esl.webhook_inbox i
        where v_redo and i.thing = p_thing and i.source_store_id = p_owner and i.source_system = p_system
          and i.state in ('done', 'superseded')));
end $$;

create or replace function esl.read_again(p_ids bigint[]) returns void
language sql set search_path = '' as $$
    update esl.webhook_inbox set state = 'ready', attempts = 0, reason = null, finished_at = null, contested = null
    where id = any (p_ids) and body is not null
$$;

-- A shop's own Admin API does not know the thing, so it is not the shop's; of one claimant that is left, it is.
create or replace function esl.give_up_claim(p_system text, p_thing text, p_shop text) returns void
language plpgsql set search_path = '' as $$
declare v_left text[];
begin
    update esl.contests set shops = array_remove(shops, p_shop)
    where thing = p_thing and source_system = p_system and owner is null returning shops into v_left;
    if cardinality(v_left) = 1 then
        perform esl.settle(p_system, p_thing, v_left[1], format('the Admin API of %s does not know it', p_shop));
    end if;
end $$;

-- What a read of a shop says of things that are contested (arguments as of esl_variants_merge): the Admin API answers
-- for its shop alone, so what it names is the shop's, and what it does not find when asked for it is not. What it names
-- stands above every other evidence, a person's word too.
create or replace function esl.settle_by_read(p jsonb) returns void
language plpgsql set search_path = '' as $$
declare r record;
begin
    if not exists (select from esl.contests) then
        return;
    end if;
    for r in
        select k.source_system, k.thing, s.source_store_id, bool_and(s.is_absent) as is_absent
        from esl.contests k join (
            select d.source_system, d.source_store_id, 'product:' || d.product_id as thing, d.deleted as is_absent
            from jsonb_populate_recordset(null::esl.product_row, p -> 'products') d
            union all
            select d.source_system, d.source_store_id, 'inventory_item:' || d.inventory_item_id, false
            from jsonb_populate_recordset(null::esl.item_row, (p -> 'variants') || (p -> 'levels')) d
        ) s on s.thing = k.thing and s.source_system = k.source_system
        where k.owner is null or (k.owner <> s.source_store_id and not s.is_absent
                                  and k.settled_by <> 'the Admin API of ' || k.owner)
        group by 1, 2, 3 order by 2, 1
    loop
        if r.is_absent then
            perform esl.give_up_claim(r.source_system, r.thing, r.source_store_id);
        else
            perform esl.settle(r.source_system, r.thing, r.source_store_id, 'the Admin API of ' || r.source_store_id);
        end if;
    end loop;
end $$;

-- All of a shop was read, from p_as_of on: what was contested by then and is not settled by it is not the shop's.
create or replace function esl.settle_by_absence(p_system text, p_shop text, p_as_of timestamptz) returns void
language sql set search_path = '' as $$
    select esl.give_up_claim(k.source_system, k.thing, p_shop) from esl.contests k
    where k.owner is null and k.source_system = p_system and p_shop = any (k.shops) and k.since < p_as_of
$$;

-- A shop's mapping has been made, changed or switched: only active shops contest anything. Where fewer than two are
-- left of them, what waited is read again; so is what waited of this shop.
create or replace function esl.contest_again(p_system text, p_shop text) returns void
language plpgsql set search_path = '' as $$
declare v_over text[];
begin
    with over as (
        delete from esl.contests k
        where k.owner is null and k.source_system = p_system and p_shop = any (k.shops) and 2 > (
            select count(*) from unnest(k.shops) as s (shop) where esl.has_active_mapping(k.source_system, s.shop))
        returning k.thing
    ) select coalesce(array_agg(thing), '{}') into v_over from over;
    perform esl.read_again(array(
        select i.id from esl.webhook_inbox i
        where i.contested is not null and i.state = 'unusable' and i.source_system = p_system
          and (i.source_store_id = p_shop or i.contested = any (v_over))
          and esl.has_active_mapping(i.source_system, i.source_store_id)));
end $$;

-- {source_system, source_store_id, thing?, by} -> {things}: a person says that the thing (product:1, inventory_item:1),
-- or without it all that is open of what this shop claims, is this shop's. things: those that are its own now.
create or replace function public.esl_owner_settle(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    perform esl.settle(k.source_system, k.thing, p ->> 'source_store_id',
                       coalesce(p ->> 'by', 'role:' || session_user))
    from esl.contests k
    where k.source_system = p ->> 'source_system' and p ->> 'source_store_id' = any (k.shops)
      and k.owner is distinct from p ->> 'source_store_id'
      and case when p ->> 'thing' is null then k.owner is null else k.thing = p ->> 'thing' end;
    return jsonb_build_object('things', (
        select coalesce(jsonb_agg(k.thing order by k.thing), '[]') from esl.contests k
        where k.source_system = p ->> 'source_system' and k.owner = p ->> 'source_store_id'
          and (p ->> 'thing' is null or k.thing = p ->> 'thing')));
end $$;

-- functions: people.sql
-- For people: how things stand, what was found, what a push would change, and their word on what waits.

-- When a field of a mapping became what it is, and by whom: {at, by}.
create or replace function esl.last_set(p_mapping uuid, p_field text) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('at', c.at, 'by', c.by) from esl.mapping_changes c
    where c.mapping_id = p_mapping and c.new -> p_field is distinct from c.old -> p_field
    order by c.id desc limit 1
$$;

-- How the labels of these mappings stand, for esl_status. Of the queue: what waits for its window alone (window, until
-- window_opens) is not among what waits.
create or replace function esl.store_states(p jsonb) returns jsonb
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select m.id, esl.window_opens(m.settings -> 'raise_window') as opens from esl.chosen_mappings(p) m
    ), shown as (
        select mapping_id, count(*) as on_labels, max(accepted_at) as last_accepted_at
        from esl.hipoink_products where mapping_id in (select id from mappings) group by 1
    ), held as (
        select mapping_id, count(*) as held_back
        from esl.labels where (state = 'held' or collides) and mapping_id in (select id from mappings) group by 1
    ), queues as (
        select q.mapping_id, jsonb_build_object(
                   'waiting', count(*) filter (where q.state in ('ready', 'leased') and not w.rise),
                   'window', count(*) filter (where w.rise),
                   'guarded', count(*) filter (where q.state = 'guarded' and q.rejected_at is null),
                   'rejected', count(*) filter (where q.rejected_at is not null),
                   'failed', count(*) filter (where q.state = 'failed'),
                   'dead', count(*) filter (where q.state = 'dead'),
                   'oldest', min(q.created_at) filter (where q.state in ('ready', 'leased') and not w.rise),
                   'last_error', max(q.last_error)) as queue
        from esl.sync_queue q join mappings m on m.id = q.mapping_id
        cross join lateral (select esl.waits_for_window(q, m.opens) as rise) w group by 1
    )
    select coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.source_store_id), '[]') from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code,
            esl.server_of(m.hipoink_store_code) as label_server, m.is_active, m.activated_at, m.switched_off,
            case when not m.is_active then esl.last_set(m.id, 'is_active') end as inactive_since, m.is_dry_run,
            case when m.is_dry_run then esl.last_set(m.id, 'is_dry_run') end as dry_run_since,
            esl.mapping_problem(m) as problem, coalesce(s.on_labels, 0) as on_labels,
            coalesce(h.held_back, 0) as held_back, o.opens as window_opens,
            coalesce(q.queue, jsonb_build_object('waiting', 0, 'window', 0, 'guarded', 0, 'rejected', 0, 'failed', 0,
                                                 'dead', 0, 'oldest', null, 'last_error', null)) as queue,
            (select jsonb_build_object('since', s.refused_at, 'until', s.until, 'reason', s.reason)
             from esl.store_health s
             where s.store_code = m.hipoink_store_code and s.until > now()) as paused,
            esl.pause_of(m.hipoink_store_code) as pause, m.leaving,
            s.last_accepted_at
        from mappings o join esl.store_mappings m on m.id = o.id
        left join shown s on s.mapping_id = m.id left join held h on h.mapping_id = m.id
        left join queues q on q.mapping_id = m.id) t
$$;

-- How the deliveries of these shops stand, for esl_status. Reads what is open and esl.shop_deliveries, nothing over.
create or replace function esl.shop_states(p jsonb) returns jsonb
language sql stable set search_path = '' as $$
    with wanted as (
        select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')
    ), open_deliveries as (
        select source_system, source_store_id, count(*) as waiting, min(received_at) as oldest_waiting,
               max(received_at) as last_received_at
        from esl.webhook_inbox
        where state in ('ready', 'leased')
          and (p -> 'shops' is null or (source_system, source_store_id) in (select * from wanted))
        group by 1, 2
    ), ended as (
        select * from esl.shop_deliveries
        where p -> 'shops' is null or (source_system, source_store_id) in (select * from wanted)
    ), to_fetch as (
        select source_system, source_store_id, sum(missing_variants) as variants
        from esl.product_versions where missing_variants > 0 and not deleted group by 1, 2
    )
    select coalesce(jsonb_agg(to_jsonb(t) order by t.source_system, t.source_store_id), '[]') from (
        select source_system, source_store_id,
            coalesce(o.waiting, 0) + coalesce(e.done + e.superseded + e.unusable + e.dead, 0) as deliveries,
            coalesce(o.waiting, 0) as waiting,
            (select w.bytes from esl.waiting(source_system, source_store_id) w) as waiting_bytes,
            coalesce(e.not_kept, 0) as not_kept, e.last_not_kept_at, coalesce(e.expired, 0) as expired,
            coalesce(e.done, 0) as done, coalesce(e.superseded, 0) as superseded,
            coalesce(e.unusable, 0) as unusable, coalesce(e.replays, 0) as replays, coalesce(e.dead, 0) as dead,
            o.oldest_waiting, greatest(o.last_received_at, e.last_received_at) as last_received_at,
            coalesce(e.refused_in_a_row, 0) as refused_in_a_row, e.last_refusal,
            esl.is_mapped(k.source_system, k.source_store_id) as mapped,
            coalesce(f.variants, 0) as variants_to_fetch, coalesce(c.things, 0) as contested, c.shops as contested_by
        from (select source_system, source_store_id from ended
              union select source_system, source_store_id from open_deliveries) k
        left join ended e using (source_system, source_store_id)
        left join open_deliveries o using (source_system, source_store_id)
        left join to_fetch f using (source_system, source_store_id)
        left join lateral (
            select count(distinct c.thing) as things, array_agg(distinct s.shop order by s.shop) as shops
            from esl.contests c cross join unnest(c.shops) as s (shop)
            where c.owner is null and c.source_system = k.source_system and k.source_store_id = any (c.shops)
              and s.shop <> k.source_store_id) c on true) t
$$;

-- What several shops claim and nobody owns yet, of all or with one of these ({shops?}).
create or replace function esl.open_contests(p jsonb) returns setof esl.contests
language sql stable set search_path = '' as $$
    select k.* from esl.contests k
    where k.owner is null and (p -> 'shops' is null or exists (
        select from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops') w
        where w.source_system = k.source_system and w.source_store_id = any (k.shops)))
$$;

-- {shops?: [{source_system, source_store_id}]} -> {stores: [...], shops: [...], findings: [...], outages: [...],
--  servers: [{server, stores, ...}] (see esl.server_states),
--  contests: [{source_system, thing, shops, since}], contested, erasures: [{source_system, source_store_id,
--  requested_at, not_before}], refreshes: {...}, refused: see esl.refused}: counts for operators, of all
-- shops or of these.
create or replace function public.esl_status(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with wanted as (
        select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')
    )
    select jsonb_build_object(
        'stores', esl.store_states(p),
        'shops', esl.shop_states(p),
        'refused', (select coalesce(jsonb_agg(to_jsonb(r) order by r.source_system, r.source_store_id), '[]')
            from esl.refused() r
            where p -> 'shops' is null or (r.source_system, r.source_store_id) in (select * from wanted)),
        'outages', (select coalesce(jsonb_agg(jsonb_build_object('server', server, 'since', down_since,
                        'probe_at', probe_at, 'reason', last_error) order by server), '[]')
                    from esl.label_servers where down_since is not null),
        'servers', esl.server_states(),
        'contests', (select coalesce(jsonb_agg(to_jsonb(t) order by t.since, t.thing), '[]') from (
            select k.source_system, k.thing, k.shops, k.since from esl.open_contests(p) k
            order by k.since, k.thing limit 20) t),
        'contested', (select count(*) from esl.open_contests(p)),
        'erasures', (select coalesce(jsonb_agg(jsonb_build_object('source_system', r.source_system,
                        'source_store_id', r.source_store_id, 'requested_at', r.requested_at,
                        'not_before', r.not_before) order by r.id), '[]') from esl.redactions r
                     where r.finished_at is null and (p -> 'shops' is null
                           or (r.source_system, r.source_store_id) in (select * from wanted))),
        'refreshes', esl.refresh_state(),
        'findings', (select coalesce(jsonb_agg(to_jsonb(t) order by t.level, t.n desc, t.check_name), '[]') from (
            select f.check_name, f.level, count(*) as n from esl.findings f
            where f.resolved_at is null
              and (p -> 'shops' is null or f.mapping_id in (select m.id from esl.chosen_mappings(p) m))
            group by 1, 2) t))
$$;

-- Warnings that nearly every variant of a mapping has (four of five, and five at least): they are the store's.
create or replace function esl.shared_findings(p jsonb)
returns table (mapping_id uuid, hipoink_store_code text, source_store_id text, check_name text, level text, reason text,
               action text, variants bigint, of_variants bigint)
language sql stable set search_path = '' as $$
    select c.mapping_id, m.hipoink_store_code, m.source_store_id, c.check_name, 'warning', c.reason, c.action,
           c.variants, n.of_variants
    from (select f.mapping_id, f.check_name, count(*) as variants, min(f.reason) as reason, min(f.action) as action
          from esl.findings f
          where f.resolved_at is null and f.level = 'warning'
            and (p ->> 'check' is null or f.check_name = p ->> 'check')
          group by 1, 2 having count(*) >= 5) c
    join esl.store_mappings m on m.id = c.mapping_id and (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
    cross join lateral (select count(*) as of_variants from esl.labels l
                        where l.mapping_id = c.mapping_id and l.state <> 'withdrawn') n
    where c.variants * 5 >= n.of_variants * 4 and (p ->> 'level' is null or p ->> 'level' = 'warning')
$$;

-- {mapping_id?, store?, level?, check?, fold?, limit, after?: [level, check_name, variant_id, mapping_id]} ->
-- {findings: [...], shared: [...] with fold}: the open ones in that order, with the variant they are about. fold:
-- without the warnings that a whole store shares, of which shared has a row each.
create or replace function public.esl_findings(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_shared jsonb := case when (p ->> 'fold')::boolean then (
    select coalesce(jsonb_agg(to_jsonb(s) order by s.hipoink_store_code, s.check_name), '[]')
    from esl.shared_findings(p) s) end;
begin
    return (select jsonb_build_object('findings', coalesce(jsonb_agg(to_jsonb(t)), '[]')) from (
        select f.*, o.title, o.variant_title, o.sku, m.source_store_id, m.hipoink_store_code
        from esl.findings f join esl.store_mappings m on m.id = f.mapping_id
        left join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                                and o.variant_id = f.variant_id
        where f.resolved_at is null and (p ->> 'mapping_id' is null or f.mapping_id = (p ->> 'mapping_id')::uuid)
          and (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
          and (p ->> 'level' is null or f.level = p ->> 'level')
          and (p ->> 'check' is null or f.check_name = p ->> 'check')
          and (p -> 'after' is null or (f.level, f.check_name, f.variant_id, f.mapping_id)
               > (p #>> '{after,0}', p #>> '{after,1}', p #>> '{after,2}', (p #>> '{after,3}')::uuid))
          and not (f.level = 'warning' and coalesce(v_shared @> jsonb_build_array(jsonb_build_object(
                  'mapping_id', f.mapping_id, 'check_name', f.check_name)), false))
        order by f.level, f.check_name, f.variant_id, f.mapping_id limit (p ->> 'limit')::int) t)
        || case when v_shared is null then '{}' else jsonb_build_object('shared', v_shared) end;
end $$;

-- {store?, shop?, shops?, limit} -> {mappings: [{mapping_id, source_system, source_store_id, hipoink_store_code,
--   is_active, is_dry_run, max_held_share_pct, to_evaluate, published, held, duplicates, guarded, new, changed,
--   removed, grace: {places, bound, next_at}, changes: [{store_code, code, variant_id, title, variant_title, operation,
--   state, before, after}]}]}
-- How each mapping's labels stand, and what of them differs from the label server: what a push would change.
create or replace function public.esl_preview(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with chosen as (
        select * from esl.chosen_mappings(p)
    ), differences as (
        select q.mapping_id, q.store_code, q.code, q.variant_id, q.operation,
               case when q.rejected_at is not null then 'rejected' else q.state end as state, s.label as before,
               q.label as after, q.priority, q.created_at
        from esl.sync_queue q left join esl.hipoink_products s using (store_code, code)
        where q.mapping_id in (select id from chosen)
    )
    select jsonb_build_object('mappings',
        coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.mapping_id), '[]'))
    from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code, m.is_active, m.is_dry_run,
               esl.policy_number(m.settings, 'max_held_share_pct') as max_held_share_pct,
               (select count(*) from esl.products o where o.due and o.source_system = m.source_system
                   and o.source_store_id = m.source_store_id) as to_evaluate,
               l.*, d.*, esl.grace_state(m.id) as grace,
               (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from (
                    select x.store_code, x.code, x.variant_id, o.title, o.variant_title, x.operation, x.state, x.before,
                           x.after
                    from differences x
                    left join esl.products o on o.variant_id = x.variant_id and o.source_system = m.source_system
                                            and o.source_store_id = m.source_store_id
                    where x.mapping_id = m.id
                    order by x.priority, x.created_at, x.code limit (p ->> 'limit')::int) c) as changes
        from chosen m
        cross join lateral (
            select count(*) filter (where b.state = 'publish' and not b.collides) as published,
                   count(*) filter (where b.state = 'held' or b.collides) as held,
                   count(*) filter (where b.collides) as duplicates
            from esl.labels b where b.mapping_id = m.id) l
        cross join lateral (
            select count(*) filter (where x.operation = 'upsert' and x.before is null) as new,
                   count(*) filter (where x.operation = 'upsert' and x.before is not null) as changed,
                   count(*) filter (where x.operation = 'delete') as removed,
                   count(*) filter (where x.state = 'guarded') as guarded
            from differences x where x.mapping_id = m.id) d) t
$$;

-- functions: policy.sql
-- What SQL reads of a mapping's settings. SQL may write them too: whatever they hold, nothing here raises, for it would
-- raise on paths that serve all.

-- What holds where a mapping's settings say nothing, of all that SQL reads of them. (labels/policy.py has the same.)
create or replace function esl.policy_defaults() returns jsonb
language sql immutable as $$
    select '{"max_change_pct": 80, "guard_labels": 5, "guard_share_pct": 20, "guard_hours": 24,
             "max_held_share_pct": 20, "raise_window": null, "show_compare_at": "never", "refresh": "after_push",
             "refresh_seconds": 20, "refresh_minutes": 15, "sleep_hours": null, "templates_show_price": false,
             "low_battery_mv": 2660, "max_low_battery_pct": 5, "max_unreachable_pct": 5, "max_pass_age_minutes": 60,
             "max_unbound_pct": 10, "max_without_label_pct": 100, "max_late_pct": 5,
             "unbind_grace_hours": 24, "during_grace": "blank", "probe_label": null, "owns_store": false}'::jsonb
$$;

-- The least and the most of each number among them.
create or replace function esl.policy_bounds() returns jsonb
language sql immutable as $$
    select '{"max_change_pct": [1, 1000000000], "guard_labels": [0, 1000000000], "guard_share_pct": [0, 100],
             "guard_hours": [1, 720], "max_held_share_pct": [0, 100], "refresh_seconds": [1, 3600],
             "refresh_minutes": [1, 10080], "low_battery_mv": [1000, 10000], "max_low_battery_pct": [0, 100],
             "max_unreachable_pct": [0, 100], "max_pass_age_minutes": [1, 10080], "max_unbound_pct": [0, 100],
             "max_without_label_pct": [0, 100], "max_late_pct": [0, 100], "unbind_grace_hours": [0, 8760]}'::jsonb
$$;

-- A whole number of the settings; the default where there is none within its bounds.
create or replace function esl.policy_number(p_settings jsonb, p_name text) returns int
language sql immutable as $$  -- without a query in it, so that it is inlined
    select coalesce(
        case when jsonb_typeof(p_settings -> p_name) = 'number' then
            case when (p_settings ->> p_name)::numeric between (esl.policy_bounds() -> p_name ->> 0)::int
                                                           and (esl.policy_bounds() -> p_name ->> 1)::int
                  and (p_settings ->> p_name)::numeric = trunc((p_settings ->> p_name)::numeric)
                 then (p_settings ->> p_name)::numeric::int end end,
        (esl.policy_defaults() ->> p_name)::int)
$$;

-- Any other setting, as text.
create or replace function esl.policy_text(p_settings jsonb, p_name text) returns text
language sql immutable as $$
    select coalesce(p_settings ->> p_name, esl.policy_defaults() ->> p_name)
$$;

-- What of a window of {opens, closes, time_zone} cannot be carried out here, in words; null: nothing, or there is none.
create or replace function esl.window_problem(p_window jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare v_time text := '^([01][0-9]|2[0-3]):[0-5][0-9]$';
begin
    if p_window is null or p_window = 'null' then
        return null;
    end if;
    if (p_window ->> 'opens' ~ v_time and p_window ->> 'closes' ~ v_time) is not true then
        return 'raise_window: opens and closes must be times of day such as 07:30; until then prices rise at any time';
    end if;
    perform now() at time zone coalesce(p_window ->> 'time_zone', 'UTC');
    return null;
exception when data_exception then
    return format('raise_window: this database knows no time zone %s; until it is corrected prices rise at any time',
                  p_window -> 'time_zone');
end $$;

-- Whether prices may rise now: {opens, closes, time_zone}, past midnight when it closes before it opens. Without a
-- window, or with one that cannot be read: always.
create or replace function esl.window_is_open(p_window jsonb, p_now timestamptz default now()) returns boolean
language plpgsql stable set search_path = '' as $$
declare v_opens time; v_closes time; v_here time;
begin
    if p_window is null or p_window = 'null' or esl.window_problem(p_window) is not null then
        return true;
    end if;
    v_opens := p_window ->> 'opens';
    v_closes := p_window ->> 'closes';
    v_here := p_now at time zone coalesce(p_window ->> 'time_zone', 'UTC');
    return case when v_opens <= v_closes then v_here >= v_opens and v_here < v_closes
                else v_here >= v_opens or v_here < v_closes end;
end $$;

-- When a closed window opens next; null: it is open, or there is none; infinity: it never does. (On the days on which
-- the clocks change this may be up to an hour late.)
create or replace function esl.window_opens(p_window jsonb, p_now timestamptz default now()) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare v_zone text; v_here timestamp; v_opens timestamp;
begin
    if esl.window_is_open(p_window, p_now) then
        return null;
    end if;
    if p_window ->> 'opens' = p_window ->> 'closes' then
        return 'infinity';
    end if;
    v_zone := coalesce(p_window ->> 'time_zone', 'UTC');
    v_here := p_now at time zone v_zone;
    v_opens := v_here::date + (p_window ->> 'opens')::time;
    return (case when v_opens > v_here then v_opens else v_opens + interval '1 day' end) at time zone v_zone;
end $$;

-- When the labels of a mapping sleep: from and to, in seconds of the day in the shop's zone; nulls: never, or what its
-- settings say cannot be read.
create or replace function esl.sleep_of(m esl.store_mappings, out zone text, out sleeps_from int, out sleeps_to int)
language plpgsql stable set search_path = '' as $$
declare v_hours text := esl.policy_text(m.settings, 'sleep_hours');
begin
    if (v_hours ~ '^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$') is not true then
        return;
    end if;
    select coalesce(s.time_zone, 'UTC') into zone from (select 1) one
    left join esl.shops s on s.source_store_id = m.source_store_id and s.source_system = m.source_system;
    begin
        perform now() at time zone zone;
    exception when data_exception then
        zone := 'UTC';
    end;
    sleeps_from := extract(epoch from left(v_hours, 5)::time);
    sleeps_to := extract(epoch from right(v_hours, 5)::time);
end $$;

-- For how many seconds labels had slept until this time of theirs, since 1970.
create or replace function esl.slept(p_local timestamp, p_from int, p_to int) returns float8
language plpgsql immutable set search_path = '' as $$
declare
    v_days float8 := floor(extract(epoch from p_local) / 86400);
    v_time float8 := extract(epoch from p_local::time);
begin
    return v_days * ((p_to - p_from + 86400) % 86400)
        + case when p_from < p_to then least(greatest(v_time - p_from, 0), p_to - p_from)
               else least(v_time, p_to) + greatest(v_time - p_from, 0) end;
end $$;

-- Refuses settings that this database could not carry out; all else of them is judged by labels/policy.py.
create or replace function esl.check_settings(p_settings jsonb) returns void
language plpgsql set search_path = '' as $$
declare v_problem text := esl.window_problem(p_settings -> 'raise_window');
begin
    if v_problem is not null then
        raise exception '%', v_problem using errcode = '22023';
    end if;
end $$;

-- Why a mapping's labels may not be what they should be, in words for people; null: nothing is known to be wrong.
create or replace function esl.mapping_problem(m esl.store_mappings) returns text
language sql stable set search_path = '' as $$
    select nullif(concat_ws('; ', m.problem, esl.window_problem(m.settings -> 'raise_window'),
        case when m.awaits_read_since is not null then format(
            'waits for the first complete read of %s: until then labels of variants that it has not told of stay',
            m.source_store_id) end), '')
$$;

-- Whether a policy has labels show for a while that their price was cut.
create or replace function esl.shows_cuts(p_settings jsonb) returns boolean
language sql immutable as $$
    select coalesce(p_settings #>> '{promotion,when}' = 'price_cut', false)
$$;

-- For how many days.
create or replace function esl.cut_days(p_settings jsonb) returns numeric
language sql immutable as $$
    select case when jsonb_typeof(p_settings #> '{promotion,days}') = 'number'
                then (p_settings #>> '{promotion,days}')::numeric else 14 end
$$;

-- Whether a policy says that nobody else keeps labels in a store.
create or replace function esl.store_is_owned(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active
                   and esl.policy_text(m.settings, 'owns_store') = 'true')
$$;

-- functions: prices.sql
-- The history of prices (esl.price_history; esl_push_finish adds to it what the label server has accepted).

-- The lowest price that a variant's label showed in the 30 days before its present price; null while there are not 30
-- days of prices (Directive 98/6/EC, Art. 6a).
create or replace function esl.prior_price(p_mapping uuid, p_variant text, p_price numeric) returns numeric
language sql stable set search_path = '' as $$
    with shown as (
        select price, since, lead(since) over (order by since) as until from esl.price_history
        where mapping_id = p_mapping and variant_id = p_variant
    ), reduction as (
        select coalesce((select since from shown where until is null and price = p_price), now()) as at
    )
    select min(s.price) from shown s, reduction r
    -- In hours: a day of a session in another time zone has 23 or 25 where its clocks change.
    where s.since < r.at and coalesce(s.until, r.at) > r.at - interval '720 hours'
      and exists (select from shown o where o.since <= r.at - interval '720 hours')
$$;

-- How many whole days ago the price of a variant's label was cut to this one, 0 where that is still to come; null where
-- its last change was none.
create or replace function esl.days_since_cut(p_mapping uuid, p_variant text, p_price numeric) returns int
language sql stable set search_path = '' as $$
    with shown as (
        select price, since from esl.price_history
        where mapping_id = p_mapping and variant_id = p_variant order by since desc limit 2
    ), changes as (
        select price, since, lead(price) over byage as before, row_number() over byage as n
        from shown window byage as (order by since desc)
    )
    select case when p_price < price then 0
                when p_price = price and price < before then floor(extract(epoch from now() - since) / 86400)::int end
    from changes where n = 1
$$;

-- A shop was read: labels that show a cut for longer than their policy says are evaluated again. (The days end by
-- themselves, without any news of the variant.)
create or replace function esl.end_cuts(p_system text, p_shop text) returns void
language plpgsql volatile set search_path = '' as $$
begin
    update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'plan'
    from esl.store_mappings m
    join esl.labels l on l.mapping_id = m.id and l.state = 'publish'
    where m.source_system = p_system and m.source_store_id = p_shop and m.is_active and esl.shows_cuts(m.settings)
      and l.label ->> 'promotion' = m.settings #>> '{promotion,scene}'
      and l.label ->> 'promotion' <> coalesce(m.settings #>> '{promotion,otherwise}', '1')
      and coalesce(esl.days_since_cut(m.id, l.variant_id, esl.price_of(l.label)) >= esl.cut_days(m.settings), true)
      and o.variant_id = l.variant_id and o.source_store_id = p_shop and o.source_system = p_system and not o.due;
end $$;

-- functions: probe.sql
-- The probe: a label that somebody dedicates to it tells what its label server does: whether it refreshes labels by
-- itself, whether a label's row moves when the label does, and how long that takes (stages/probe.py).

-- Whether a product is a probe's: nobody's variant may have such a code, and whatever compares, counts or removes
-- leaves it alone. Whatever the case: a server may change that.
create or replace function esl.is_reserved(p_code text) returns boolean
language sql immutable as $$  -- inlined
    select coalesce(starts_with(upper(p_code), 'ESLPROBE'), false)
$$;

-- The code of the product that a probe label shows.
create or replace function esl.probe_code(p_esl text) returns text
language sql immutable set search_path = '' as $$
    select 'ESLPROBE-' || left(regexp_replace(p_esl, '[^0-9A-Za-z._-]', '', 'g'), 23)
$$;

-- {probe_id, store, esl_code, by, run_id?, seconds, label_server?}
-- -> {outcome, code, rows_move, auto_triggers, error?}: a probe of the store has begun and takes so long at most
-- (outcome open; the same probe_id again returns the same), or why it has not: busy, elsewhere, not_known, down.
-- rows_move, auto_triggers: what is known of the label server so far.
create or replace function public.esl_probe_begin(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_store text := p ->> 'store'; v_server text := esl.server_in(p);
    v_why jsonb; d esl.probes; s esl.label_servers;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.probes ' || v_store, 0));
    select * into d from esl.probes where id = (p ->> 'probe_id')::uuid;
    if not found then
        v_why := coalesce(esl.why_no_pass(v_store, v_server), (
            select jsonb_build_object('outcome', 'busy', 'error', format('%s probes the store since %s', o.by,
                                      to_char(o.started_at at time zone 'UTC', 'HH24:MI"Z"')))
            from esl.probes o
            where o.store_code = v_store and o.outcome = 'open' and o.until > clock_timestamp() limit 1));
        if v_why is not null then
            return v_why;
        end if;
        update esl.probes set outcome = 'failed', finished_at = clock_timestamp(), reason = 'it was not ended'
        where store_code = v_store and outcome = 'open';
        insert into esl.probes (id, store_code, label_server, esl_code, code, by, run_id, until)
        values ((p ->> 'probe_id')::uuid, v_store, v_server, p ->> 'esl_code', esl.probe_code(p ->> 'esl_code'),
                p ->> 'by', p ->> 'run_id', clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8))
        returning * into d;
    end if;
    select * into s from esl.label_servers where server = v_server;
    return jsonb_build_object('outcome', 'open', 'code', d.code, 'rows_move', s.rows_move,
                              'auto_triggers', s.auto_triggers);
end $$;

-- {store, since?} -> {at, triggered}: the time here, and whether anybody of ours may have triggered the store since.
create or replace function public.esl_probe_clock(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('at', clock_timestamp(), 'triggered',
        exists (select from esl.refreshes r where r.store_code = p ->> 'store'
                and r.at >= (p ->> 'since')::timestamptz)
        or exists (select from esl.refresh_marks k where k.store_code = p ->> 'store' and k.lease_until is not null))
$$;

-- Whether a label server's rows are known to move, once a probe of it has ended. A label that was refreshed late, or
-- not at all, is no proof that rows do not move: three in a row are, or one probe that tried all.
create or replace function esl.rows_move_after(p_known boolean, d esl.probes) returns boolean
language sql stable set search_path = '' as $$
    select case d.outcome
        when 'moves' then true
        when 'itself' then false
        when 'silent' then case
            when d.is_full or p_known is null or not exists (
                select from (select o.outcome from esl.probes o
                             where o.label_server = d.label_server and o.finished_at is not null
                               and o.outcome <> 'failed' order by o.finished_at desc limit 3) l
                where l.outcome <> 'silent') then false
            else p_known end
        else p_known end
$$;

-- {probe_id, outcome, is_full, rounds, auto_triggers?, seconds?, reason?} -> {rows_move, auto_triggers, seconds}: the
-- probe has ended, and this is known of its label server.
create or replace function public.esl_probe_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare d esl.probes; s esl.label_servers;
begin
    update esl.probes
    set outcome = p ->> 'outcome', is_full = (p ->> 'is_full')::boolean, rounds = (p ->> 'rounds')::int,
        auto_triggers = (p ->> 'auto_triggers')::boolean, seconds = (p ->> 'seconds')::numeric,
        reason = p ->> 'reason', finished_at = clock_timestamp()
    where id = (p ->> 'probe_id')::uuid and outcome = 'open' returning * into d;
    if found and d.outcome <> 'failed' then
        insert into esl.label_servers (server) values (d.label_server) on conflict do nothing;
        update esl.label_servers l
        set rows_move = esl.rows_move_after(l.rows_move, d), auto_triggers = coalesce(d.auto_triggers, l.auto_triggers),
            probe_seconds = case when esl.rows_move_after(l.rows_move, d) then coalesce(d.seconds, l.probe_seconds) end,
            probed_at = d.finished_at
        where l.server = d.label_server;
    end if;
    select l.* into s from esl.probes o join esl.label_servers l on l.server = o.label_server
    where o.id = (p ->> 'probe_id')::uuid;
    return jsonb_build_object('rows_move', s.rows_move, 'auto_triggers', s.auto_triggers, 'seconds', s.probe_seconds);
end $$;

-- {label_servers} -> {stores: [{store_code, label_server, esl_code}]}: the stores of live mappings at these servers
-- whose policy dedicates a label to probes, as far as their labels can be read now.
create or replace function public.esl_probe_stores(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('stores', coalesce(jsonb_agg(to_jsonb(t) order by t.store_code), '[]')) from (
        select m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as label_server,
               min(esl.policy_text(m.settings, 'probe_label')) as esl_code
        from esl.store_mappings m where m.is_active and not m.is_dry_run group by 1) t
    where t.esl_code is not null and p -> 'label_servers' ? t.label_server
      and esl.why_no_pass(t.store_code, t.label_server) is null and not esl.store_is_paused(t.store_code)
$$;

-- {} -> {stores: [{store_code, label_server, labels, bound, online, read_at, failed, probe}]}: how the physical labels
-- of each active store were read last (failed: why not, the last time), and the newest probe of it that has ended.
create or replace function public.esl_shelf_state(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('stores', coalesce(jsonb_agg(jsonb_build_object(
               'store_code', k.store_code, 'label_server', esl.server_of(k.store_code), 'labels', d.labels,
               'bound', d.bound, 'online', d.online, 'read_at', (esl.complete_pass(k.store_code)).started_at,
               'failed', f.error, 'probe', b.probe) order by k.store_code), '[]'))
    from (select distinct m.hipoink_store_code as store_code from esl.store_mappings m where m.is_active) k
    left join lateral (
        select count(*) as labels, count(o.product_code) as bound, count(*) filter (where o.online) as online
        from esl.devices o where o.store_code = k.store_code and o.gone_at is null) d on true
    left join lateral (
        select case when o.state = 'failed' then o.error end as error from esl.device_passes o
        where o.store_code = k.store_code and o.state <> 'open' order by o.started_at desc limit 1) f on true
    left join lateral (
        select jsonb_build_object('esl_code', o.esl_code, 'outcome', o.outcome, 'reason', o.reason,
                                  'at', o.finished_at) as probe
        from esl.probes o where o.store_code = k.store_code and o.finished_at is not null
        order by o.finished_at desc limit 1) b on true
$$;

-- functions: products.sql
-- What sources say of products and their stock, merged by version. (Row sets from JSON are never joined with each
-- other: the planner takes them for 100 rows and would compare all with all.)

-- Content has three values: said, said empty (null), and not said (no key). What a source does not say of a variant
-- stays as it is stored; what nobody has ever said is named in esl.products.unsaid, and fetched. So what only some
-- sources ever say (origin) is not named here.
create or replace function esl.content_columns() returns text[]
language sql immutable as $$
    select array['inventory_item_id', 'title', 'variant_title', 'barcode', 'sku', 'price', 'compare_at_price',
                 'image_url', 'status', 'published_at', 'vendor', 'product_type', 'tags', 'handle', 'option1',
                 'option2', 'option3', 'source_created_at']
$$;

-- A variant's content, to be compared: "10.0" and "10.00" are the same price.
create or replace function esl.content(o esl.products) returns text[]
language sql immutable as $$  -- without a search_path of its own, so that it is inlined
    select array[o.product_id, o.inventory_item_id, o.title, o.variant_title, o.barcode, o.sku,
                 esl.plain_price(o.price), esl.plain_price(o.compare_at_price), o.image_url, o.status, o.published_at,
                 o.vendor, o.product_type, o.tags, o.handle, o.option1, o.option2, o.option3, o.source_created_at,
                 o.origin]
$$;

create or replace function esl.plain_price(p_price text) returns text
language sql immutable as $$
    select case when p_price ~ '^[0-9]{1,12}([.][0-9]{1,6})?$' then trim_scale(p_price::numeric)::text else p_price end
$$;

-- What is still not said of a variant (null: not stored yet) when a source says this.
create or replace function esl.unsaid(p_said jsonb, o esl.products) returns text[]
language sql immutable as $$
    select case when o.unsaid = '{}' or p_said ?& esl.content_columns() then '{}'
                else esl.still_unsaid(p_said, coalesce(o.unsaid, esl.content_columns())) end
$$;

create or replace function esl.still_unsaid(p_said jsonb, p_unsaid text[]) returns text[]
language sql immutable set search_path = '' as $$
    select coalesce(array_agg(c order by c), '{}') from unnest(p_unsaid) c where not p_said ? c
$$;

create or replace function esl.product_key(p_row jsonb) returns text
language sql stable as $$
    select concat_ws(' ', p_row ->> 'source_system', p_row ->> 'source_store_id', p_row ->> 'product_id')
$$;

-- What all variants of a product say alike stands in its row, once: by esl.product_key.
create or replace function esl.told(p_products jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select jsonb_object_agg(esl.product_key(e), e - array['variant_ids', 'deleted', 'missing_variants', 'step'])
    from jsonb_array_elements(p_products) e
$$;

-- All that a variant's row says: with what its product's row says for it (esl.told), unless it has a version of its
-- own.
create or replace function esl.said(p_own jsonb, p_told jsonb) returns jsonb
language sql stable as $$
    select case when p_own ? 'version_at' then p_own else (p_told -> esl.product_key(p_own)) || p_own end
$$;

-- When the last complete read of each shop began, and that of its stock.
create or replace function esl.last_reads()
returns table (source_system text, source_store_id text, as_of timestamptz, stock_as_of timestamptz)
language sql stable as $$  -- inlined as well
    select s.source_system, s.source_store_id, max(s.as_of), max(s.stock_as_of) from esl.snapshots s
    where s.state = 'finished' group by 1, 2
$$;

-- A complete read buries what it does not find (esl_snapshot_finish). A product that was not known then, and of which
-- only now something older is told, is as gone: the order of the two makes no difference.
create or replace function esl.bury_unread_products(p_products jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.product_versions (source_system, source_store_id, product_id, version_at, triggered_at, body_sha256,
                                      deleted)
    select distinct d.source_system, d.source_store_id, d.product_id, r.as_of, r.as_of, '', true
    from jsonb_populate_recordset(null::esl.product_row, p_products) d
    join esl.last_reads() r on r.source_system = d.source_system and r.source_store_id = d.source_store_id
    where greatest(d.version_at, d.triggered_at) < r.as_of
    on conflict do nothing;
end $$;

-- The versions that are newer than the stored ones; how many. One is applied only when (version_at, triggered_at,
-- body_sha256) is not older than the stored one; whether a row belongs to the version that stands is looked up there.
create or replace function esl.merge_versions(p_products jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_applied int;
begin
    insert into esl.product_versions as v (source_system, source_store_id, product_id, version_at, triggered_at,
                                           body_sha256, deleted, missing_variants)
    select distinct on (source_system, source_store_id, product_id)
           source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted, missing_variants
    from jsonb_populate_recordset(null::esl.product_row, p_products) d
    where not exists (
        select from esl.product_versions o
        where o.source_system = d.source_system and o.source_store_id = d.source_store_id
          and o.product_id = d.product_id
          and (o.version_at, o.triggered_at, o.body_sha256) >= (d.version_at, d.triggered_at, d.body_sha256))
    order by source_system, source_store_id, product_id, version_at desc, triggered_at desc,
             body_sha256 collate "C" desc
    on conflict (source_system, source_store_id, product_id) do update
    set version_at = excluded.version_at, triggered_at = excluded.triggered_at, body_sha256 = excluded.body_sha256,
        deleted = excluded.deleted, missing_variants = excluded.missing_variants
    where (excluded.version_at, excluded.triggered_at, excluded.body_sha256)
        > (v.version_at, v.triggered_at, v.body_sha256);
    get diagnostics v_applied = row_count;
    return v_applied;
end $$;

-- Why a variant is evaluated of which something new is known: it was in deliveries, or a read has found it.
create or replace function esl.cause_of_news(p_events bigint[]) returns text
language sql immutable as $$
    select case when p_events <> '{}' then 'new version' else 'read' end
$$;

-- The variants of versions that stand, with what their products' rows tell; how many have changed. Unchanged rows are
-- left out before the upsert: it would lock and log each of them.
create or replace function esl.merge_variants(p_variants jsonb, p_told jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_changed int;
begin
    insert into esl.products as o (source_system, source_store_id, variant_id, product_id, inventory_item_id, title,
        variant_title, barcode, sku, price, compare_at_price, image_url, status, published_at, vendor, product_type,
        tags, handle, option1, option2, option3, source_created_at, origin, source_updated_at, unsaid, event_ids,
        cause)
    select distinct on (d.source_system, d.source_store_id, d.variant_id)
           d.source_system, d.source_store_id, d.variant_id, d.product_id, n.inventory_item_id, n.title,
           n.variant_title, n.barcode, n.sku, n.price, n.compare_at_price, n.image_url, n.status, n.published_at,
           n.vendor, n.product_type, n.tags, n.handle, n.option1, n.option2, n.option3, n.source_created_at,
           n.origin, d.version_at, esl.unsaid(e.said, b), n.event_ids, esl.cause_of_news(n.event_ids)
    from jsonb_array_elements(p_variants) as w (own)
    cross join lateral (select esl.said(w.own, p_told) as said offset 0) e  -- said once a row, not at each use
    cross join lateral jsonb_populate_record(null::esl.variant_row, e.said) d
    join esl.product_versions v
      on v.source_system = d.source_system and v.source_store_id = d.source_store_id and v.product_id = d.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (d.version_at, d.triggered_at, d.body_sha256)
    left join esl.products b
      on b.source_system = d.source_system and b.source_store_id = d.source_store_id and b.variant_id = d.variant_id
    cross join lateral jsonb_populate_record(b, e.said) n
    where b.variant_id is null or b.removed or esl.content(n) is distinct from esl.content(b)
       or esl.unsaid(e.said, b) <> b.unsaid
    order by d.source_system, d.source_store_id, d.variant_id, d.version_at desc
    on conflict (source_system, source_store_id, variant_id) do update
    set product_id = excluded.product_id, inventory_item_id = excluded.inventory_item_id, title = excluded.title,
        variant_title = excluded.variant_title, barcode = excluded.barcode, sku = excluded.sku,
        price = excluded.price, compare_at_price = excluded.compare_at_price, image_url = excluded.image_url,
        status = excluded.status, published_at = excluded.published_at, vendor = excluded.vendor,
        product_type = excluded.product_type, tags = excluded.tags, handle = excluded.handle,
        option1 = excluded.option1, option2 = excluded.option2, option3 = excluded.option3,
        source_created_at = excluded.source_created_at, origin = excluded.origin,
        source_updated_at = excluded.source_updated_at,
        unsaid = excluded.unsaid, event_ids = excluded.event_ids, cause = excluded.cause, removed = false,
        revision = nextval('esl.revision'), due = true, changed_at = now()
    where excluded.source_updated_at >= o.source_updated_at;
    get diagnostics v_changed = row_count;
    return v_changed;
end $$;

-- Variants that are not in the body (of Shopify's those beyond the first 100): what they share with their product is,
-- so a draft's labels go, all of them.
create or replace function esl.merge_unnamed(p_products jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    update esl.products o
    set title = n.title, handle = n.handle, status = n.status, published_at = n.published_at, vendor = n.vendor,
        product_type = n.product_type, tags = n.tags, origin = n.origin, unsaid = esl.unsaid(e.said, b),
        source_updated_at = a.version_at, event_ids = n.event_ids, cause = esl.cause_of_news(n.event_ids),
        revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_array_elements(p_products) as e (said)
    cross join lateral jsonb_populate_record(null::esl.product_row, e.said) a
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    join esl.products b
      on b.source_system = a.source_system and b.source_store_id = a.source_store_id and b.product_id = a.product_id
    cross join lateral jsonb_populate_record(b, e.said) n
    where o.source_system = b.source_system and o.source_store_id = b.source_store_id and o.variant_id = b.variant_id
      and not b.removed and not a.deleted and (a.missing_variants > 0 or a.variant_ids is null)
      and (esl.content(n) is distinct from esl.content(b) or esl.unsaid(e.said, b) <> b.unsaid);
end $$;

-- A variant that a version that stands no longer names is gone, all of them when the product is deleted; how many.
create or replace function esl.remove_variants(p_products jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_removed int;
begin
    update esl.products o
    set removed = true, source_updated_at = a.version_at, event_ids = a.event_ids,
        cause = esl.cause_of_news(a.event_ids),
        revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_populate_recordset(null::esl.product_row, p_products) a
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    where o.source_system = a.source_system and o.source_store_id = a.source_store_id
      and o.product_id = a.product_id and not o.removed
      and (a.deleted or o.variant_id <> all (a.variant_ids));
    get diagnostics v_removed = row_count;
    return v_removed;
end $$;

-- Rows of one step (see esl_variants_merge).
create or replace function esl.of_step(p_rows jsonb, p_step int) returns jsonb
language sql immutable set search_path = '' as $$
    select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(p_rows) d
    where coalesce((d ->> 'step')::int, 0) = p_step
$$;

-- Products and their variants, each at most once a step, as for esl_variants_merge.
create or replace function esl.merge_products(p_products jsonb, p_variants jsonb, out products_applied int,
                                              out variants_changed int, out variants_removed int)
language plpgsql volatile set search_path = '' as $$
declare
    v_last int := (select coalesce(max((d ->> 'step')::int), 0) from jsonb_array_elements(p_products) d);
    v_products jsonb := p_products; v_variants jsonb := p_variants;
begin
    products_applied := 0; variants_changed := 0; variants_removed := 0;
    for v_step in 0 .. v_last loop
        if v_last > 0 then
            v_products := esl.of_step(p_products, v_step);
            v_variants := esl.of_step(p_variants, v_step);
        end if;
        perform esl.bury_unread_products(v_products);
        products_applied := products_applied + esl.merge_versions(v_products);
        variants_changed := variants_changed + esl.merge_variants(v_variants, esl.told(v_products));
        perform esl.merge_unnamed(v_products);
        variants_removed := variants_removed + esl.remove_variants(v_products);
    end loop;
end $$;

-- As with products: what a complete read of the stock did not find stays gone for what is older and comes later.
create or replace function esl.bury_unread_levels(p_levels jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.inventory_levels (source_system, source_store_id, inventory_item_id, location_id, gone, updated_at,
                                      triggered_at)
    select distinct d.source_system, d.source_store_id, d.inventory_item_id, d.location_id, true, r.stock_as_of,
           r.stock_as_of
    from jsonb_populate_recordset(null::esl.inventory_levels, p_levels) d
    join esl.last_reads() r on r.source_system = d.source_system and r.source_store_id = d.source_store_id
    where greatest(d.updated_at, d.triggered_at) < r.stock_as_of
    on conflict do nothing;
end $$;

-- Stock, at most one statement per level after this; how many levels it changed. Their versions are those of products.
-- gone: the item is no longer stocked there.
create or replace function esl.merge_levels(p_levels jsonb, p_events jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_levels int;
begin
    perform esl.bury_unread_levels(p_levels);

    with incoming as (
        select distinct on (source_system, source_store_id, inventory_item_id, location_id)
               source_system, source_store_id, inventory_item_id, location_id, available, updated_at,
               coalesce(triggered_at, updated_at) as triggered_at, coalesce(body_sha256, '') as body_sha256,
               coalesce(gone, false) as gone
        from jsonb_populate_recordset(null::esl.inventory_levels, p_levels) d
        order by source_system, source_store_id, inventory_item_id, location_id, updated_at desc,
                 coalesce(triggered_at, updated_at) desc, d.body_sha256 desc
    ), stored as (
        insert into esl.inventory_levels as o select * from incoming
        on conflict (source_system, source_store_id, inventory_item_id, location_id) do update
        set available = excluded.available, updated_at = excluded.updated_at, triggered_at = excluded.triggered_at,
            body_sha256 = excluded.body_sha256, gone = excluded.gone
        where (excluded.updated_at, excluded.triggered_at, excluded.body_sha256)
            > (o.updated_at, o.triggered_at, o.body_sha256)
        returning source_system, source_store_id, inventory_item_id
    ), marked as (
        update esl.products o
        set due = true, revision = nextval('esl.revision'), stock_event_ids = e.ids, cause = esl.cause_of_news(e.ids)
        from stored s cross join lateral (
            select coalesce(array_agg(e.id order by e.id), '{}') as ids
            from jsonb_populate_recordset(null::esl.event_row, p_events) e
            where e.inventory_item_id = s.inventory_item_id) e
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id
          and o.inventory_item_id = s.inventory_item_id and not o.removed
    )
    select count(*) into v_levels from stored;
    return v_levels;
end $$;

-- What only a source's API says of variants; they are evaluated again where it has changed.
create or replace function esl.merge_details(p_details jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    with stored as (
        insert into esl.variant_details as o
        select distinct on (source_system, source_store_id, variant_id) d.*
        from jsonb_populate_recordset(null::esl.variant_details, p_details) d
        where not exists (
            select from esl.variant_details o
            where o.source_system = d.source_system and o.source_store_id = d.source_store_id
              and o.variant_id = d.variant_id and (o.gift_card, o.unit_price, o.unit_price_measurement)
                  is not distinct from (d.gift_card, d.unit_price, d.unit_price_measurement))
        on conflict (source_system, source_store_id, variant_id) do update
        set gift_card = excluded.gift_card, unit_price = excluded.unit_price,
            unit_price_measurement = excluded.unit_price_measurement
        returning source_system, source_store_id, variant_id
    )
    update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'read'
    from stored s
    where o.source_system = s.source_system and o.source_store_id = s.source_store_id
      and o.variant_id = s.variant_id and not o.due;
end $$;

-- What a shop's prices are. Another currency or tax: every label of the shop is judged again.
create or replace function esl.merge_shops(p_shops jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_shop record;
begin
    for v_shop in
        insert into esl.shops as o
        select d.* from jsonb_populate_recordset(null::esl.shops, p_shops) d
        where not exists (
            select from esl.shops o
            where o.source_system = d.source_system and o.source_store_id = d.source_store_id
              and (o.updated_at > d.updated_at or (o.currency, o.taxes_included, o.time_zone)
                  is not distinct from (d.currency, d.taxes_included, d.time_zone)))
        on conflict (source_system, source_store_id) do update
        set currency = excluded.currency, taxes_included = excluded.taxes_included, time_zone = excluded.time_zone,
            updated_at = excluded.updated_at
        returning source_system, source_store_id
    loop
        perform esl.evaluate_again(v_shop.source_system, v_shop.source_store_id, 'read');
    end loop;
end $$;

-- The claim's events end as they say, or superseded where something newer is stored; how many were superseded.
create or replace function esl.finish_events(p_claim uuid, p_events jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_superseded int;
begin
    with finished as (
        update esl.webhook_inbox i
        set state = case
                when e.state = 'done' and (
                    exists (select from esl.product_versions v
                            where v.source_system = i.source_system and v.source_store_id = i.source_store_id
                              and v.product_id = e.product_id
                              and (v.version_at, v.triggered_at, v.body_sha256)
                                > (e.version_at, e.triggered_at, e.body_sha256))
                    or exists (select from esl.inventory_levels l
                               where l.source_system = i.source_system and l.source_store_id = i.source_store_id
                                 and l.inventory_item_id = e.inventory_item_id and l.location_id = e.location_id
                                 and (l.updated_at, l.triggered_at, l.body_sha256)
                                   > (e.version_at, e.triggered_at, e.body_sha256)))
                then 'superseded' else e.state end,
            reason = e.reason, thing = coalesce('product:' || e.product_id, 'inventory_item:' || e.inventory_item_id),
            finished_at = clock_timestamp(), claim_id = null, lease_until = null
        from jsonb_populate_recordset(null::esl.event_row, p_events) e
        where i.id = e.id and i.claim_id = p_claim
        returning i.state
    )
    select count(*) filter (where state = 'superseded') into v_superseded from finished;
    return v_superseded;
end $$;

-- {claim_id, products: [{source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted,
--   missing_variants, variant_ids: [...], event_ids: [...], title, handle, status, published_at, vendor, product_type,
--   tags, step?}],
--  variants: [{source_system, source_store_id, product_id, variant_id, ..., step?, and unless its product's row says
--   all of this: version_at, triggered_at, body_sha256, event_ids, ...}],
--  levels: [{source_system, source_store_id, inventory_item_id, location_id, available, gone?, updated_at,
--   triggered_at, body_sha256}],
--  details: [{source_system, source_store_id, variant_id, gift_card, unit_price, unit_price_measurement}],
--  shops: [{source_system, source_store_id, currency, taxes_included, time_zone, updated_at}],
--  events: [{id, state, reason, product_id?, inventory_item_id?, location_id?, version_at?, triggered_at?,
--   body_sha256?}]}
-- -> {products_applied, variants_changed, variants_removed, levels_changed, superseded, replays: [{id, reason}]}
-- replays: events that claim what is another shop's; they are unusable, and nothing of them is stored (esl.suspects).
-- Without claim_id: a read of the shop through its own API, which settles what is contested.
-- Content that has no key was not said (see esl.content_columns). step: an older version of the same product that says
-- what a newer one leaves out comes in an earlier step. variant_ids null: the body does not say which variants there
-- are, so none is removed. One transaction: the inbox events are finished exactly when their effect is stored.
create or replace function public.esl_variants_merge(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare v_merged record; v_levels int; v_superseded int; v_suspected jsonb;
begin
    perform esl.know_what_grew();
    select a.rest, a.suspected into p, v_suspected from esl.set_aside(p) a;
    v_merged := esl.merge_products(p -> 'products', p -> 'variants');
    v_levels := esl.merge_levels(p -> 'levels', p -> 'events');
    if p ->> 'claim_id' is null then
        perform esl.settle_by_read(p);
    end if;
    perform esl.merge_details(p -> 'details');
    perform esl.merge_shops(p -> 'shops');
    v_superseded := esl.finish_events((p ->> 'claim_id')::uuid, p -> 'events');
    if p ->> 'claim_id' is not null then
        perform esl.measure_unchanged(p -> 'variants');
    end if;
    return to_jsonb(v_merged) || jsonb_build_object(
        'levels_changed', v_levels, 'superseded', v_superseded, 'replays', coalesce(v_suspected, '[]'));
end $$;

-- functions: push.sql
-- Pushes: a batch is claimed, with its intents, and finished, with its results.

-- A worker that died after its claim leaves intents without a result: what became of them is unknown. Something may be
-- in its batch that no run survives: each time the batch is halved, until the culprit stands alone and dies of its
-- attempts, with growing pauses, while the others pass.
create or replace function esl.take_back_lost(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_stores text[];
begin
    with lost as materialized (
        select q.store_code, q.code, q.push_id from esl.sync_queue q
        where q.state = 'leased' and q.lease_until < now()
        order by q.store_code, q.code for update skip locked
    ), sized as (
        select l.*, (count(*) over (partition by l.push_id))::int as size from lost l
    ), released as (
        update esl.sync_queue q
        set state = case when s.size = 1 and q.attempts >= (p ->> 'max_attempts')::int then 'dead' else 'ready' end,
            max_batch = case when s.size > 1 then (s.size + 1) / 2 else q.max_batch end,
            attempts = case when s.size > 1 then q.attempts - 1 else q.attempts end,
            next_attempt_at = case when s.size > 1 then now()
                else now() + (q.attempts - 1) * make_interval(secs => (p ->> 'lease_seconds')::float8) end,
            lease_until = null, last_error = 'the run ended before the answer of the label server was recorded'
        from sized s where q.store_code = s.store_code and q.code = s.code
        returning q.*
    ), landed as (
        delete from esl.flights f using lost l where f.push_id = l.push_id
    ), noted as (
        insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label_hash,
                                  attempt, run_id, outcome, message, cause)
        select 'result', push_id, store_code, code, mapping_id, variant_id, operation, label_hash, attempts,
               p ->> 'run_id', 'lost', last_error, cause
        from released where push_id is not null
        returning store_code
    )
    select array_agg(store_code) into v_stores from noted;
    if v_stores is not null then
        perform esl.measure_lost(v_stores);
    end if;
end $$;

-- Takes a batch behind this label: of the same mapping, store, operation and max_batch; none if there are too few.
-- -> how many labels.
create or replace function esl.lease_batch(p_push uuid, p_head esl.sync_queue, m esl.store_mappings, p_fewest int,
                                           p_limit int, p_until timestamptz)
returns int language plpgsql set search_path = '' as $$
declare v_leased int;
begin
    -- Label after label, so that whatever the planner believes of the queue, it walks along the index; then locked.
    with recursive chosen as (
        select q.ctid as at, q.priority, q.next_attempt_at, q.created_at, q.code, 1 as place
        from esl.sync_queue q where q.code = p_head.code and q.store_code = p_head.store_code
        union all
        select n.*, c.place + 1 from chosen c cross join lateral (
            select q.ctid, q.priority, q.next_attempt_at, q.created_at, q.code from esl.sync_queue q
            where q.state = 'ready' and q.mapping_id = p_head.mapping_id and q.store_code = p_head.store_code
              and (q.priority, q.next_attempt_at, q.created_at, q.code collate "C")
                  > (c.priority, c.next_attempt_at, c.created_at, c.code collate "C")
              and q.operation = p_head.operation and q.max_batch = p_head.max_batch
              and q.next_attempt_at <= now() and esl.may_push(q, m)
            order by q.priority, q.next_attempt_at, q.created_at, q.code collate "C" limit 1) n
        where c.place < p_limit
    ), batch as (
        select q.store_code, q.code from chosen c join esl.sync_queue q on q.ctid = c.at
        where c.place <= p_limit and q.state = 'ready' and q.operation = p_head.operation
          and (select count(*) from chosen) >= p_fewest
        for update of q skip locked
    )
    update esl.sync_queue q
    set state = 'leased', push_id = p_push, attempts = q.attempts + 1, in_doubt = true, was_in_doubt = q.in_doubt,
        lease_until = p_until
    from batch b where q.store_code = b.store_code and q.code = b.code;
    get diagnostics v_leased = row_count;
    return v_leased;
end $$;

-- A mapping had its turn; a jump of its rises (see esl.has_jump) is no turn of all.
create or replace function esl.note_turn(p_head esl.sync_queue) returns void
language plpgsql set search_path = '' as $$
declare
    v_server text := esl.server_of(p_head.store_code);
    v_jumped boolean := p_head.priority = 0 and esl.has_jump(
        v_server, (select t.taken_at from esl.turns t where t.party = p_head.mapping_id::text and t.queue = 'push'));
begin
    perform esl.take_turns('push', array[p_head.mapping_id::text]);
    if not v_jumped then
        perform esl.take_turns('bulk', array[v_server]);
    end if;
end $$;

-- Claims the batch of this label, of one alone where that is a try (p_probes, or of a store in doubt, which is kept
-- from the others meanwhile), and writes its intents (p: as for esl_push_claim). -> how many labels.
create or replace function esl.claim_batch(p jsonb, p_head esl.sync_queue, p_probes boolean, p_until timestamptz)
returns int language plpgsql set search_path = '' as $$
declare
    v_push    uuid := (p ->> 'claim_id')::uuid;
    v_server  text := esl.server_in(p);
    v_limit   int;
    v_claimed int;
    v_doubted boolean;
    h         esl.store_health;
    m         esl.store_mappings;
begin
    select * into m from esl.store_mappings where id = p_head.mapping_id;
    select * into h from esl.store_health x where x.store_code = p_head.store_code and esl.is_doubted(x) for update;
    v_doubted := found;
    v_limit := least((p ->> 'limit')::int, case when p_probes or v_doubted then 1 else p_head.max_batch end,
                     esl.most_labels(v_server, p_head.store_code));
    v_claimed := esl.lease_batch(v_push, p_head, m, case when p_probes or v_doubted then 1
                                 else esl.fewest_labels(p, p_head.store_code, v_limit) end, v_limit, p_until);
    if v_claimed > 0 then
        insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label,
                                  label_hash, attempt, run_id, asset, partition, event_ids, cause, queued_at)
        select 'intent', v_push, q.store_code, q.code, q.mapping_id, q.variant_id, q.operation, q.label,
               q.label_hash, q.attempts, p ->> 'run_id', p ->> 'asset',
               m.source_system || ':' || m.source_store_id, q.event_ids, q.cause, q.queued_at
        from esl.sync_queue q where q.push_id = v_push and q.state = 'leased';
        insert into esl.flights (push_id, store_code, label_server, run_id, until, probes)
        values (v_push, p_head.store_code, v_server, p ->> 'run_id', p_until, p_probes);
        perform esl.note_turn(p_head);
        if v_doubted then
            update esl.store_health set until = p_until where store_code = p_head.store_code;
        end if;
    end if;
    return v_claimed;
end $$;

-- Claims what is due now at a label server, if anything (p: as for esl_push_claim). -> whether something is due that
-- has to wait for what is under way.
create or replace function esl.claim_next(p jsonb) returns boolean
language plpgsql set search_path = '' as $$
declare
    v_server  text := esl.server_in(p);
    v_until   timestamptz := clock_timestamp() + make_interval(secs => (p ->> 'lease_seconds')::float8);
    v_probes  boolean := esl.take_probe(v_server, v_until);
    v_claimed int := 0;
    n         record;
begin
    if exists (select from esl.sync_queue where state = 'leased' and lease_until < now()) then
        perform esl.take_back_lost(p);
    end if;
    if not v_probes and esl.is_down(v_server) then
        return false;
    end if;
    select * into n from esl.next_push(p, v_probes);
    if not n.is_held then
        v_claimed := esl.claim_batch(p, n.head, v_probes, v_until);
    end if;
    if v_probes and v_claimed = 0 then
        perform esl.give_probe_back(v_server);
    end if;
    return v_claimed = 0 and p ->> 'concurrency' is not null and n.is_held is not null;
end $$;

-- {claim_id, limit, lease_seconds, max_attempts, run_id, asset, partition?, shop?, label_server?, concurrency?} ->
-- {push_id, store_code, operation, rows: [{code, label, generation, event_ids, attempt}], has_more, again_seconds,
-- is_paced}.
-- rows empty: nothing is due, or (again_seconds) what is has to wait for what is under way, where concurrency says how
-- many calls there may be at a time; is_paced: for the pace, that keeps back whatever may come meanwhile. has_more:
-- anything else is queued. One batch is one call at the label server: one mapping, one store, one operation (see
-- esl.next_push). Writes an intent per label. While the label server is down, or a store in doubt, one worker at a
-- time may try one label. The same claim_id again returns the same rows.
create or replace function public.esl_push_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_push uuid := (p ->> 'claim_id')::uuid;
    v_held boolean := false;
    v_pace interval;
begin
    perform esl.know_what_grew();
    if not exists (select from esl.sync_queue where push_id = v_push and state = 'leased') then
        perform esl.lock_claims(esl.server_in(p));
        v_held := esl.claim_next(p);
        v_pace := esl.until_next_call(esl.server_in(p));
    end if;
    return (select jsonb_build_object(
        'push_id', v_push, 'store_code', min(q.store_code), 'operation', min(q.operation),
        'again_seconds', case when v_held then least(0.25, extract(epoch from v_pace)) end,
        'is_paced', v_pace is not null, 'has_more', exists (select from esl.sync_queue where state = 'ready'),
        'rows', coalesce(jsonb_agg(jsonb_build_object(
            'code', q.code, 'label', q.label, 'generation', q.generation, 'attempt', q.attempts,
            'source_system', m.source_system, 'source_store_id', m.source_store_id, 'variant_id', q.variant_id,
            'event_ids', q.event_ids) order by q.code collate "C"), '[]'))
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.push_id = v_push and q.state = 'leased');
end $$;

-- Of a push the labels whose answer is not known yet (a repeated call, whose first answer was lost, finds none): mine
-- are those that this worker still holds, stale the codes of the others.
create or replace function esl.unfinished(p_push uuid, p_store text, p_rows jsonb, out codes text[],
                                          out mine esl.pushed_row[], out stale text[])
language plpgsql volatile set search_path = '' as $$
declare v_known text[]; v_held text[];
begin
    v_known := array(select l.code from esl.sync_log l
                     where l.push_id = p_push and l.kind = 'result' and l.outcome <> 'lost');
    v_held := array(  -- locked, so that nobody takes them for lost meanwhile
        select r.code from jsonb_populate_recordset(null::esl.pushed_row, p_rows) r
        join esl.sync_queue q on q.code = r.code and q.store_code = p_store
        where q.push_id = p_push and q.state = 'leased' order by q.code for update of q);
    select coalesce(array_agg(r.code), '{}'), coalesce(array_agg(r) filter (where r.code = any (v_held)), '{}'),
           coalesce(array_agg(r.code) filter (where r.code <> all (v_held)), '{}')
    into codes, mine, stale
    from jsonb_populate_recordset(null::esl.pushed_row, p_rows) r where r.code <> all (v_known);
end $$;

-- The answer to these labels of a push, beside their intents (p: as for esl_push_finish).
create or replace function esl.note_results(p jsonb, p_codes text[]) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label_hash,
        attempt, run_id, asset, partition, event_ids, cause, outcome, http_status, error_code, message, answer,
        duration_ms)
    select 'result', i.push_id, i.store_code, i.code, i.mapping_id, i.variant_id, i.operation, i.label_hash,
           i.attempt, i.run_id, i.asset, i.partition, i.event_ids, i.cause, p ->> 'outcome', (p ->> 'http_status')::int,
           (p ->> 'error_code')::numeric, p ->> 'message', p ->> 'answer', (p ->> 'duration_ms')::int
    from esl.sync_log i
    where i.push_id = (p ->> 'push_id')::uuid and i.kind = 'intent' and i.code = any (p_codes);
end $$;

-- The ledger takes what was pushed, and the price history the prices that are new on labels.
create or replace function esl.enter_in_ledger(p_push uuid, p_store text, p_codes text[]) returns void
language plpgsql set search_path = '' as $$
declare v_now timestamptz := clock_timestamp();
begin
    insert into esl.hipoink_products as s (store_code, code, mapping_id, variant_id, label, label_hash, push_id,
                                           accepted_at)
    select i.store_code, i.code, i.mapping_id, i.variant_id, i.label, i.label_hash, p_push, v_now
    from esl.sync_log i
    where i.push_id = p_push and i.kind = 'intent' and i.operation = 'upsert' and i.code = any (p_codes)
    on conflict (store_code, code) do update
    set mapping_id = excluded.mapping_id, variant_id = excluded.variant_id, label = excluded.label,
        label_hash = excluded.label_hash, push_id = excluded.push_id, accepted_at = excluded.accepted_at;

    insert into esl.price_history (variant_id, mapping_id, since, price)
    select distinct on (i.variant_id, i.mapping_id) i.variant_id, i.mapping_id, v_now, i.price
    from (select l.variant_id, l.mapping_id, esl.price_of(l.label) as price from esl.sync_log l
          where l.push_id = p_push and l.kind = 'intent' and l.operation = 'upsert' and l.code = any (p_codes)
            and not esl.is_blanked(l.label_hash)) i  -- which asks no price
    where i.price is not null and i.price is distinct from (
        select h.price from esl.price_history h
        where h.variant_id = i.variant_id and h.mapping_id = i.mapping_id order by h.since desc limit 1)
    on conflict do nothing;

    delete from esl.hipoink_products s using esl.sync_log i
    where i.push_id = p_push and i.kind = 'intent' and i.operation = 'delete' and i.code = any (p_codes)
      and s.store_code = p_store and s.code = i.code;
end $$;

-- Whether prices on labels rise with this push. To be asked before the ledger takes it.
create or replace function esl.has_rise(p_push uuid, p_store text, p_codes text[]) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return exists (
        select from esl.sync_log i
        join esl.hipoink_products s on s.code = i.code and s.store_code = p_store
        where i.push_id = p_push and i.kind = 'intent' and i.operation = 'upsert' and i.code = any (p_codes)
          and esl.price_of(i.label) > esl.price_of(s.label));
end $$;

-- The label server has accepted these labels of a push.
create or replace function esl.take_accepted(p_push uuid, p_store text, p_mine esl.pushed_row[]) returns void
language plpgsql set search_path = '' as $$
declare
    v_codes text[] := array(select r.code from unnest(p_mine) r);
    v_rises boolean := esl.has_rise(p_push, p_store, v_codes);
begin
    perform esl.note_drastic(p_push, p_store, v_codes);
    perform esl.enter_in_ledger(p_push, p_store, v_codes);
    -- Done, unless the label has changed while it was on its way (generation moved on) or must go out again. What is
    -- done needs no new decision: whatever would have changed it meanwhile has asked for one, and that would have
    -- changed the queue. But where a removal waits, its time begins now, or is over.
    delete from esl.sync_queue q using unnest(p_mine) r
    where q.store_code = p_store and q.code = r.code and q.generation = r.generation and not q.redo;
    with open as (
        update esl.sync_queue q
        set state = 'ready', in_doubt = q.redo, redo = false, attempts = 0, next_attempt_at = clock_timestamp(),
            lease_until = null, last_error = null, refused_at = null, refusals = 0,
            cause = case when q.redo and q.cause is distinct from 'moved' then 'correction' else q.cause end
        where q.store_code = p_store and q.code = any (v_codes)
        returning q.code
    )
    select coalesce(array_agg(k.code), '{}') into v_codes
    from (select o.code from open o
          union select g.code from esl.graces g where g.store_code = p_store and g.code = any (v_codes)) k;
    if v_codes = '{}' then
        perform esl.guard(p_store);  -- which counts the labels that hang
    else
        perform esl.requeue(array_fill(p_store, array[cardinality(v_codes)]), v_codes);
    end if;
    perform esl.want_refresh(p_store, v_rises);
end $$;

-- These labels of a push were not accepted (p, p_size labels: as for esl_push_finish): again later, with growing delay,
-- at last failed or dead. p_probe: when the label server is tried again that is down. All of them together: one delay
-- is drawn for all, as long as the one that was tried most often has to wait.
-- A batch is halved until the culprit stands alone: at once when it was refused or its outcome is unknown, else after
-- some tries. What is not a label's own fault is no attempt of it: in company, or while store or server are in doubt.
-- Too large a batch (p_blame 'size') is nobody's.
create or replace function esl.put_back(p jsonb, p_size int, p_mine esl.pushed_row[], p_blame text,
                                        p_probe timestamptz)
returns void language plpgsql set search_path = '' as $$
declare
    v_now     timestamptz := clock_timestamp();
    v_large   boolean := coalesce(p_blame, '') = 'size';
    v_refused boolean := esl.is_refusal(p ->> 'outcome') and not v_large;
    v_halved  boolean;
    v_counts  boolean;
    v_again   timestamptz;
    worst     record;
begin
    select max(q.attempts) as attempts, max(q.refusals) as refusals into worst
    from unnest(p_mine) r
    join esl.sync_queue q on q.store_code = p ->> 'store_code' and q.code = r.code and q.generation = r.generation;
    v_halved := p_probe is null and p_size > 1 and (
        v_refused or v_large or p ->> 'outcome' = 'unknown'
        or coalesce(worst.attempts, 0) >= least(3, (p ->> 'max_attempts')::int));
    v_counts := p_probe is null and not v_halved and (not v_refused or p_blame = 'label');
    v_again := case when v_halved and (v_refused or v_large) then v_now
                    when p_probe is not null then p_probe
                    else v_now + esl.pause_before(p, worst.attempts, case when v_counts then worst.refusals else 0 end)
               end;

    update esl.sync_queue q
    set lease_until = null, redo = false, last_error = p ->> 'message', state = n.state, attempts = n.attempts,
        refused_at = n.refused_at, refusals = n.refusals, next_attempt_at = n.at,
        max_batch = case when v_halved then (p_size + 1) / 2 else q.max_batch end
    from unnest(p_mine) r
    join esl.sync_queue o on o.store_code = p ->> 'store_code' and o.code = r.code
    cross join lateral (
        -- A label that changed while it was on its way starts afresh.
        select 'ready' as state, 0 as attempts, null::timestamptz as refused_at, 0 as refusals, v_now as at
        where o.generation <> r.generation
        union all
        select case when not v_counts then 'ready'
                    when v_refused and o.refusals + 1 >= (p ->> 'max_refusals')::int then 'failed'
                    when not v_refused and o.attempts >= (p ->> 'max_attempts')::int then 'dead'
                    else 'ready' end,
               case when v_counts then o.attempts else o.attempts - 1 end,
               case when v_refused then coalesce(o.refused_at, v_now) else o.refused_at end,
               case when v_refused and v_counts then o.refusals + 1 else o.refusals end,
               v_again
        where o.generation = r.generation) n
    where q.store_code = o.store_code and q.code = o.code;
end $$;

-- What a late worker pushed may stand on these labels now (of a refused batch, a part of it): what the ledger says (or
-- a removal) is queued in doubt, and requeue puts the wanted label in its place.
create or replace function esl.doubt_late(p_push uuid, p_store text, p_codes text[]) returns void
language plpgsql set search_path = '' as $$
begin
    insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                     priority, in_doubt, event_ids, cause)
    select i.store_code, i.code, i.mapping_id, i.variant_id,
           case when s.code is null then 'delete' else 'upsert' end, s.label, s.label_hash, 0, true, i.event_ids,
           'correction'
    from esl.sync_log i left join esl.hipoink_products s using (store_code, code)
    where i.push_id = p_push and i.kind = 'intent' and i.code = any (p_codes)
    on conflict (store_code, code) do update set in_doubt = true, redo = q.state = 'leased';
    perform esl.requeue(array_fill(p_store, array[cardinality(p_codes)]), p_codes, 'correction');
end $$;

-- These labels of a push were not sent after all: as if they had not been claimed.
create or replace function esl.take_unsent(p_store text, p_mine esl.pushed_row[]) returns void
language plpgsql set search_path = '' as $$
declare v_codes text[] := array(select r.code from unnest(p_mine) r);
begin
    update esl.sync_queue q
    set state = 'ready', attempts = greatest(0, q.attempts - 1), in_doubt = q.was_in_doubt or q.redo, redo = false,
        next_attempt_at = clock_timestamp(), lease_until = null
    where q.store_code = p_store and q.code = any (v_codes);
    perform esl.requeue(array_fill(p_store, array[cardinality(v_codes)]), v_codes);
end $$;

-- What an answer says of a store, a label server and these labels, told of one call as esl_push_finish is (p_size
-- labels, p_mine of them still this worker's). blame: see esl.blame, or 'size'. probe: when the label server is tried
-- again that is down.
create or replace function esl.judge(p jsonb, p_flight esl.flights, p_size int, p_mine esl.pushed_row[],
                                     out blame text, out probe timestamptz)
language plpgsql volatile set search_path = '' as $$
declare
    v_store   text := p ->> 'store_code';
    v_outcome text := p ->> 'outcome';
    v_locked  boolean := esl.lock_server(esl.server_in(p), v_outcome);
begin
    perform esl.note_size(p, p_size, v_locked);
    if v_outcome = 'accepted' and p_size > 0 then
        perform esl.note_passing(p);
    elsif v_outcome = 'rejected' and p ->> 'http_status' = '413' and p_size > 1 then
        blame := 'size';
    elsif esl.is_refusal(v_outcome) and cardinality(p_mine) > 0 then
        select esl.blame(p, p_size = 1, min(q.refused_at), max(q.attempts) > 1) into blame
        from unnest(p_mine) r join esl.sync_queue q on q.store_code = v_store and q.code = r.code;
    end if;
    if cardinality(p_mine) > 0 and (blame = 'size' or not (v_outcome = 'accepted' or esl.is_refusal(v_outcome))) then
        update esl.store_health set until = null where store_code = v_store and pauses + refusals > 0;
    end if;
    if v_outcome = 'not_sent' and p_flight.probes then
        perform esl.give_probe_back(esl.server_in(p));
    end if;
    probe := esl.note_health(
        case when blame = 'server' and p ? 'label_server' then p || '{"server_failed": true}' else p end,
        p_flight.claimed_at, v_locked);
end $$;

-- {push_id, outcome, http_status, error_code, message, answer, duration_ms, retry_after_seconds, run_id,
--  rows: [{code, generation}], store_code, operation, batch_size?,
--  max_attempts, initial_delay_seconds, multiplier, max_delay_seconds, max_refusals, refused_delay_seconds,
--  refused_multiplier, max_refused_delay_seconds, pause_seconds, max_pause_seconds,
--  label_server?, server_failed? (none: no call was made), down_after?, probe_seconds?, max_probe_seconds?}
-- -> {accepted, retried, failed, dead, stale}
-- accepted: the ledger takes the pushed labels. transient/unknown: again later, at last dead. rejected/authentication:
-- a refusal (see esl.blame); at the label's own fault again with long delays, at last failed. not_sent: due as before.
-- A worker whose lease is gone changes nothing but what its push may have done: those labels are pushed again.
create or replace function public.esl_push_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_push    uuid := (p ->> 'push_id')::uuid;
    v_store   text := p ->> 'store_code';
    v_outcome text := p ->> 'outcome';
    v_flight  esl.flights;
    t         record;
    j         record;
begin
    perform esl.know_what_grew();
    perform esl.lock_stores(array[v_store]);
    select * into v_flight from esl.flights where push_id = v_push;
    select u.codes, u.mine, u.stale into t from esl.unfinished(v_push, v_store, p -> 'rows') u;
    perform esl.note_results(p, t.codes);
    perform esl.measure_push(p, t.codes, t.mine);
    select * into j from esl.judge(p, v_flight, cardinality(t.codes), t.mine);

    if v_outcome = 'accepted' then
        perform esl.take_accepted(v_push, v_store, t.mine);
    elsif v_outcome = 'not_sent' then
        perform esl.take_unsent(v_store, t.mine);
    else
        perform esl.put_back(p, cardinality(t.codes), t.mine, j.blame, j.probe);
    end if;
    if cardinality(t.stale) > 0 and v_outcome in ('accepted', 'unknown', 'rejected') then
        perform esl.doubt_late(v_push, v_store, t.stale);
    end if;
    perform esl.finish_leaving(v_store);
    delete from esl.flights where push_id = v_push;
    delete from esl.calls where recorded_as = v_push;  -- last, for whoever asks for a call waits for it

    return (select jsonb_build_object(
        'accepted', case when v_outcome = 'accepted' then cardinality(t.mine) else 0 end,
        'retried', count(*) filter (where v_outcome <> 'accepted' and q.state = 'ready'),
        'failed', count(*) filter (where q.state = 'failed'),
        'dead', count(*) filter (where q.state = 'dead'),
        'stale', cardinality(t.stale))
        from unnest(t.mine) r join esl.sync_queue q on q.store_code = v_store and q.code = r.code);
end $$;

-- {shop} -> {labels}: for the nightly run; the shop's failed and dead labels are due once more. They keep their counts,
-- so that one more refusal of the same kind puts them back at once.
create or replace function public.esl_push_again(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_labels int;
begin
    update esl.sync_queue q set state = 'ready', next_attempt_at = now(), cause = 'push again'
    from esl.store_mappings m
    where m.id = q.mapping_id and q.state in ('failed', 'dead')
      and m.source_system = p #>> '{shop,source_system}' and m.source_store_id = p #>> '{shop,source_store_id}';
    get diagnostics v_labels = row_count;
    return jsonb_build_object('labels', v_labels);
end $$;

-- functions: refresh.sql
-- The refresh trigger: what the label server has accepted reaches the physical labels of a store after esl/bind_task.
-- Level-triggered as everything here: the mark of a store says that something was accepted since its last trigger was
-- begun; whoever works next makes one call for all of it. Nothing here holds up or fails a label.

-- Something was accepted for this store, with prices that rise or without: in the transaction that says so, so that no
-- crash comes between.
create or replace function esl.want_refresh(p_store text, p_rises boolean default false) returns void
language sql volatile set search_path = '' as $$
    insert into esl.refresh_marks as r (store_code, since, rise_since)
    values (p_store, clock_timestamp(), case when p_rises then clock_timestamp() end)
    on conflict (store_code) do update
    set since = coalesce(r.since, excluded.since), rise_since = coalesce(r.rise_since, excluded.rise_since),
        next_at = r.not_before
    where r.since is null or r.next_at > r.not_before or (r.rise_since is null and excluded.rise_since is not null)
$$;

-- How long after its begin a burst is refreshed at the latest, by the strictest policy of a store.
create or replace function esl.refresh_seconds(p_store text) returns int
language sql stable set search_path = '' as $$
    select coalesce(min(esl.policy_number(m.settings, 'refresh_seconds')),
                    esl.policy_number('{}', 'refresh_seconds'))
    from esl.store_mappings m
    where m.hipoink_store_code = p_store and m.is_active and not m.is_dry_run
$$;

-- Whether the trigger of a mark waits for no more labels of its burst: none can be pushed now, or it has waited long
-- enough. Whoever asks more at the till than the label says has less time: p_rise_seconds.
create or replace function esl.has_settled(r esl.refresh_marks, p_rise_seconds float8) returns boolean
language sql volatile set search_path = '' as $$
    select coalesce(r.claimed_since, r.since)
               <= clock_timestamp() - make_interval(secs => esl.refresh_seconds(r.store_code))
        or coalesce(coalesce(r.claimed_rise_since, r.rise_since)
               <= clock_timestamp() - make_interval(secs => p_rise_seconds), false)
        or not esl.has_push(r.store_code)
$$;

-- Whether one of the live mappings of a store wants its labels refreshed; or what they have left there, when none names
-- the store any more.
create or replace function esl.wants_refresh(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select coalesce(bool_or((m.is_active or m.leaving is not null) and not m.is_dry_run
                            and esl.policy_text(m.settings, 'refresh') <> 'never'), true)
    from esl.store_mappings m where m.hipoink_store_code = p_store and m.removed_at is null
$$;

-- The marks that a trigger may be begun for now at a label server, also those whose worker was not heard of again.
create or replace function esl.refreshable(p_server text) returns setof esl.refresh_marks
language sql stable set search_path = '' as $$
    select r.* from esl.refresh_marks r
    where case when r.lease_until is null then r.since is not null and r.next_at <= clock_timestamp()
               else r.lease_until < clock_timestamp() end
      and esl.server_of(r.store_code) = p_server
      and esl.wants_refresh(r.store_code)
      and not esl.store_is_paused(r.store_code)
      and not esl.is_down(p_server)
      and not exists (select from esl.label_servers s
                      where s.server = p_server and s.refresh_again_at > clock_timestamp())
$$;

-- Whether a store has as many pushes under way as it may have calls beside others: all but one of `concurrency`, where
-- that is said.
create or replace function esl.has_enough_calls(p jsonb, p_store text) returns boolean
language sql stable set search_path = '' as $$
    select p ->> 'concurrency' is not null and esl.has_company(p_store)
       and (select count(*) from esl.flights f where f.store_code = p_store and f.until > now())
           >= greatest(1, (p ->> 'concurrency')::int - 1)
$$;

-- {claim_id, run_id, lease_seconds, rise_seconds, concurrency?, label_server?, shop?} -> {store_code} (null: nothing is
-- due).
-- One store at a time, first those with prices that rise, then whose labels have waited longest: when its burst has
-- settled (see esl.has_settled), so that a burst is one trigger. With a shop: of the stores that it feeds.
-- The same claim_id again returns the same store.
create or replace function public.esl_refresh_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_claim uuid := (p ->> 'claim_id')::uuid;
    v_now   timestamptz := clock_timestamp();
    v_store text;
    r       esl.refresh_marks;
begin
    select store_code into v_store from esl.refresh_marks where claim_id = v_claim;
    if found then
        return jsonb_build_object('store_code', v_store);
    end if;
    for r in
        select c.* from esl.refreshable(esl.server_in(p)) c
        where p -> 'shop' is null or exists (
            select from esl.store_mappings m where m.hipoink_store_code = c.store_code
              and (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
        order by coalesce(c.claimed_rise_since, c.rise_since) nulls last, coalesce(c.claimed_since, c.since),
                 c.store_code
    loop
        continue when not esl.has_settled(r, (p ->> 'rise_seconds')::float8) or esl.has_enough_calls(p, r.store_code);
        -- Chosen without a lock: somebody else may have been faster.
        select * into r from esl.refresh_marks m
        where m.store_code = r.store_code and (m.lease_until < v_now or (m.lease_until is null and m.since is not null))
        for update;
        continue when not found;
        if r.lease_until is not null then
            insert into esl.refreshes (claim_id, store_code, wanted_since, begun_at, run_id, outcome, message)
            values (r.claim_id, r.store_code, r.claimed_since, r.claimed_at, r.run_id, 'lost',
                    'the run ended before the answer of the label server was recorded');
        end if;
        update esl.refresh_marks
        set claim_id = v_claim, run_id = p ->> 'run_id', claimed_at = v_now, since = null, rise_since = null,
            claimed_since = coalesce(r.claimed_since, r.since),
            claimed_rise_since = coalesce(r.claimed_rise_since, r.rise_since),
            lease_until = v_now + make_interval(secs => (p ->> 'lease_seconds')::float8)
        where store_code = r.store_code;
        return jsonb_build_object('store_code', r.store_code);
    end loop;
    return jsonb_build_object('store_code', null);
end $$;

-- What one answer says of the label server: one that has never accepted a trigger and says that there is no such action
-- is asked again after a minute, an hour, and then once a day.
create or replace function esl.note_refresh(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if p ->> 'label_server' is null then
        return;
    elsif p ->> 'outcome' = 'accepted' then
        insert into esl.label_servers as s (server, knows_refresh_since)
        select p ->> 'label_server', clock_timestamp()
        where not exists (select from esl.label_servers x where x.server = p ->> 'label_server'
                          and x.knows_refresh_since is not null and x.refresh_refusals = 0)
        on conflict (server) do update
        set knows_refresh_since = coalesce(s.knows_refresh_since, excluded.knows_refresh_since), refresh_refusals = 0,
            refresh_again_at = null;
    elsif p ->> 'outcome' = 'not_known' then
        insert into esl.label_servers as s (server) values (p ->> 'label_server') on conflict (server) do nothing;
        update esl.label_servers
        set refresh_refusals = refresh_refusals + 1,
            refresh_again_at = clock_timestamp()
                + least(interval '1 day', interval '1 minute' * power(60, least(refresh_refusals, 9)))
        where server = p ->> 'label_server' and knows_refresh_since is null;
    end if;
end $$;

-- {claim_id, store_code, run_id, outcome, http_status, error_code, message, answer, duration_ms, retry_after_seconds,
--  gap_seconds, initial_delay_seconds, multiplier, max_delay_seconds, label_server?}
-- -> {more}: whether another trigger may be begun now.
-- accepted: the mark goes, unless something was accepted since the trigger was begun. Else it stays, and is tried again
-- with growing delays, or with the next burst. A worker that is late changes nothing: its trigger was one too many.
create or replace function public.esl_refresh_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_claim uuid := (p ->> 'claim_id')::uuid;
    v_now   timestamptz := clock_timestamp();
    v_gap   timestamptz := v_now + make_interval(secs => greatest(
        (p ->> 'gap_seconds')::float8, coalesce((p ->> 'retry_after_seconds')::float8, 0)));
    r       esl.refresh_marks;
begin
    -- Before the mark, as whoever finishes a push does.
    perform from esl.label_servers s
    where s.server = p ->> 'label_server' and (s.knows_refresh_since is null or s.refresh_refusals > 0) for update;
    select * into r from esl.refresh_marks where store_code = p ->> 'store_code' and claim_id = v_claim for update;
    insert into esl.refreshes (claim_id, store_code, wanted_since, begun_at, run_id, outcome, http_status, error_code,
                               message, answer, duration_ms)
    values (v_claim, p ->> 'store_code', r.claimed_since,
            coalesce(r.claimed_at, v_now - make_interval(secs => (p ->> 'duration_ms')::float8 / 1000)),
            p ->> 'run_id', p ->> 'outcome', (p ->> 'http_status')::int, (p ->> 'error_code')::numeric,
            p ->> 'message', p ->> 'answer', (p ->> 'duration_ms')::int)
    on conflict (claim_id) where outcome <> 'lost' do nothing;
    if found then  -- else a repeated call, whose first answer was lost
        perform esl.note_refresh(p);
        if p ->> 'outcome' = 'accepted' then
            update esl.refresh_marks
            set not_before = v_gap, next_at = v_gap, attempts = 0, last_error = null,
                claim_id = null, claimed_at = null, claimed_since = null, claimed_rise_since = null, lease_until = null
            where store_code = r.store_code;
        else
            update esl.refresh_marks
            set not_before = v_gap, attempts = attempts + 1, last_error = p ->> 'message',
                next_at = greatest(v_gap, v_now + make_interval(secs => esl.backoff(
                    (p ->> 'initial_delay_seconds')::float8, (p ->> 'multiplier')::float8,
                    (p ->> 'max_delay_seconds')::float8, attempts))),
                since = claimed_since, rise_since = coalesce(claimed_rise_since, rise_since), claim_id = null,
                claimed_at = null, claimed_since = null, claimed_rise_since = null, lease_until = null
            where store_code = r.store_code;
        end if;
    end if;
    delete from esl.calls where recorded_as = v_claim;
    return jsonb_build_object('more', exists (select from esl.refreshable(esl.server_in(p))));
end $$;

-- For esl_status: {waiting: [stores whose labels wait for their trigger], unknown: [label servers without the action]}.
create or replace function esl.refresh_state() returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'waiting', (select coalesce(jsonb_agg(jsonb_build_object(
                        'store_code', r.store_code, 'since', coalesce(r.claimed_since, r.since), 'attempts', r.attempts,
                        'next_at', r.next_at, 'last_error', r.last_error) order by r.store_code), '[]')
                    from esl.refresh_marks r
                    where (r.since is not null or r.lease_until is not null) and esl.wants_refresh(r.store_code)),
        'unknown', (select coalesce(jsonb_agg(jsonb_build_object('server', s.server, 'again_at', s.refresh_again_at)
                                              order by s.server), '[]')
                    from esl.label_servers s where s.refresh_again_at is not null))
$$;

-- For esl_trace: {wanted, waiting, triggered}: whether a store is triggered, the mark where it stands, and the first
-- trigger that was accepted after this time.
create or replace function esl.refresh_after(p_store text, p_at timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'wanted', esl.wants_refresh(p_store),
        'waiting', (select jsonb_build_object('since', coalesce(r.claimed_since, r.since), 'attempts', r.attempts,
                                              'next_at', r.next_at, 'last_error', r.last_error)
                    from esl.refresh_marks r
                    where r.store_code = p_store and (r.since is not null or r.lease_until is not null)),
        'triggered', (select to_jsonb(t) from (
                          select x.at, x.begun_at, x.run_id, x.answer, x.duration_ms from esl.refreshes x
                          where x.store_code = p_store and x.outcome = 'accepted' and x.begun_at >= p_at
                          order by x.begun_at limit 1) t))
$$;

-- functions: servers.sql
-- Which label server a store is at, and which of their drains reads what a shop tells.

-- A store that nobody has placed is at the server `default`.
-- Not SQL: that would be planned anew for each row.
create or replace function esl.server_of(p_store text) returns text
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return coalesce((select s.label_server from esl.stores s where s.store_code = p_store), 'default');
end $$;

-- The server that a caller means: {label_server?}.
create or replace function esl.server_in(p jsonb) returns text
language sql immutable as $$  -- inlined
    select coalesce(p ->> 'label_server', 'default')
$$;

-- The mapped shops and the servers whose drains read them: those that its active mappings' stores are at. A shop
-- without any, or whose servers are not among those that the settings name, is the first one's ({label_servers?};
-- without them any server counts, and the first is `default`).
create or replace function esl.readers(p jsonb)
returns table (source_system text, source_store_id text, is_active boolean, servers text[])
language sql stable set search_path = '' as $$
    select m.source_system, m.source_store_id, bool_or(m.is_active),
           coalesce(array_agg(distinct n.name) filter (
                        where m.is_active and (p -> 'label_servers' is null or p -> 'label_servers' ? n.name)),
                    array[coalesce(p #>> '{label_servers,0}', 'default')])
    from esl.store_mappings m
    left join esl.stores s on s.store_code = m.hipoink_store_code
    cross join lateral (select coalesce(s.label_server, 'default') as name) n
    where m.removed_at is null
    group by 1, 2
$$;

-- The mapped shops that a claim is about ({shop?, label_server?, label_servers?}): one, or all that the drain of this
-- server reads.
create or replace function esl.shops_to_read(p jsonb)
returns table (source_system text, source_store_id text, is_active boolean)
language sql stable set search_path = '' as $$
    select r.source_system, r.source_store_id, r.is_active from esl.readers(p) r
    where case when p -> 'shop' is null then esl.server_in(p) = any (r.servers)
               else (r.source_system, r.source_store_id)
                    = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}') end
$$;

-- What the ledger holds of a store is in doubt, as is what is on its way: of none of it is known whether it hangs at
-- the server where the store is now. What was learnt of the store at the one before is forgotten. -> how many labels.
create or replace function esl.doubt_store(p_store text) returns int
language plpgsql volatile set search_path = '' as $$
declare v_codes text[];
begin
    with doubted as (
        insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                         priority, in_doubt, cause)
        select s.store_code, s.code, s.mapping_id, s.variant_id, 'upsert', s.label, s.label_hash, 2, true, 'moved'
        from esl.hipoink_products s where s.store_code = p_store order by s.code
        on conflict (store_code, code) do update set in_doubt = true, redo = q.state = 'leased'
        returning q.code
    ), on_its_way as (
        update esl.sync_queue q set redo = true, cause = 'moved'
        where q.store_code = p_store and q.state = 'leased'
          and not exists (select from esl.hipoink_products s where s.store_code = p_store and s.code = q.code)
    )
    select array_agg(code) into v_codes from doubted;
    perform esl.requeue(array_fill(p_store, array[coalesce(cardinality(v_codes), 0)]), v_codes, 'moved');
    delete from esl.store_health where store_code = p_store;
    delete from esl.comparisons where store_code = p_store;
    return coalesce(cardinality(v_codes), 0);
end $$;

-- A store is at this server from now on; null: where it is. 23P01 when others than this mapping (null: a new one) feed
-- it at another. -> what stays behind at the other, in a sentence, or null.
create or replace function esl.place_store(p_store text, p_server text, p_mapping uuid) returns text
language plpgsql volatile set search_path = '' as $$
declare v_was text := esl.server_of(p_store); v_others text; v_labels int;
begin
    if p_server = v_was is not false then  -- or none is named
        return null;
    end if;
    select string_agg(m.source_store_id, ', ' order by m.source_store_id) into v_others
    from esl.store_mappings m
    where m.hipoink_store_code = p_store and m.id is distinct from p_mapping and m.removed_at is null;
    if v_others is not null then
        raise exception 'store % is at label server %, where % feeds it: a store is at one server, so name that one, '
            'or none', p_store, v_was, v_others using errcode = '23P01';
    end if;
    perform esl.lock_claims(v_was);  -- else what is being claimed there would not be seen as on its way
    insert into esl.stores as s (store_code, label_server) values (p_store, p_server)
    on conflict (store_code) do update set label_server = excluded.label_server, placed_at = excluded.placed_at;
    v_labels := esl.doubt_store(p_store);
    return case when v_labels > 0 then format(
        'store %s is at label server %s now, and all of it is pushed there; its %s labels at %s stay as they are: '
        'nobody here changes or removes them any more', p_store, p_server, v_labels, v_was) end;
end $$;

-- Per server of which anything is known: {server, stores, down_since, probe_at, last_error, ...} by name.
create or replace function esl.server_states() returns jsonb
language sql stable set search_path = '' as $$
    with placed as (
        select esl.server_of(k.store_code) as server, array_agg(k.store_code order by k.store_code) as stores
        from (select distinct m.hipoink_store_code as store_code from esl.store_mappings m
              where m.removed_at is null) k group by 1
    )
    select coalesce(jsonb_agg(coalesce(to_jsonb(l), '{}') || jsonb_build_object(
               'server', coalesce(l.server, k.server), 'stores', coalesce(k.stores, '{}')) order by k.server, l.server),
           '[]')
    from placed k full join esl.label_servers l on l.server = k.server
$$;

-- The servers of active mappings that are not among these, with their stores: {name: [store codes]}.
create or replace function esl.stores_elsewhere(p_servers jsonb) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_object_agg(t.server, t.stores), '{}') from (
        select esl.server_of(m.hipoink_store_code) as server,
               array_agg(distinct m.hipoink_store_code order by m.hipoink_store_code) as stores
        from esl.store_mappings m where m.is_active group by 1) t
    where not p_servers ? t.server
$$;

-- functions: snapshot.sql
-- Snapshots: complete reads of a shop, page by page. A page is merged where it differs and noted; the end concludes.

-- {snapshot_id, shop, run_id} -> {snapshot_id}. Other open snapshots of the shop are of runs that died, or are
-- overtaken now: they can conclude nothing any more, and what they had noted is thrown away.
create or replace function public.esl_snapshot_begin(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_custom_plan set statement_timeout = '55s' as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.snapshots', 0));
    if not exists (select from esl.snapshots where id = (p ->> 'snapshot_id')::uuid) then
        update esl.snapshots
        set state = 'abandoned', finished_at = clock_timestamp(), reason = 'a newer snapshot of the shop has begun'
        where state = 'open' and source_system = p #>> '{shop,source_system}'
          and source_store_id = p #>> '{shop,source_store_id}';
        delete from esl.snapshot_variants v
        where not exists (select from esl.snapshots s where s.id = v.snapshot_id and s.state = 'open');
        delete from esl.snapshot_levels v
        where not exists (select from esl.snapshots s where s.id = v.snapshot_id and s.state = 'open');
        insert into esl.snapshots (id, source_system, source_store_id, run_id)
        values ((p ->> 'snapshot_id')::uuid, p #>> '{shop,source_system}', p #>> '{shop,source_store_id}',
                p ->> 'run_id');
    end if;
    return jsonb_build_object('snapshot_id', p ->> 'snapshot_id');
end $$;

-- Whether a read of a variant or product contradicts a tombstone that rests on absence alone: it began later, and ids
-- are never used again. A deletion that the source told us of stands.
create or replace function esl.is_revived(v esl.product_versions, p_read jsonb) returns boolean
language sql stable as $$  -- without a search_path of its own, so that it is inlined
    select coalesce(v.deleted and v.body_sha256 = '' and v.version_at < (p_read ->> 'triggered_at')::timestamptz, false)
$$;

-- What was read of variants, against what is stored. changed: the variants that differ, with the version of the
-- tombstone where they contradict one; products: theirs; newer: ids of those that differ, but of whose product
-- something newer is stored; unchanged: how many.
create or replace function esl.compare_variants(p_variants jsonb, out changed jsonb, out products text[],
                                                out newer text[], out unchanged int)
language plpgsql stable set search_path = '' as $$
begin
    with incoming as materialized (
        select e ->> 'variant_id' as variant_id, e ->> 'product_id' as product_id,
               case when r.revived then e || jsonb_build_object(
                   'version_at', greatest(v.version_at, (e ->> 'version_at')::timestamptz)) else e end as variant,
               coalesce(not o.removed and esl.unsaid(e, o) = o.unsaid
                        and esl.content(n) is not distinct from esl.content(o), false) as is_same,
               not r.revived and coalesce((v.version_at, v.triggered_at, v.body_sha256)
                   > ((e ->> 'version_at')::timestamptz, (e ->> 'triggered_at')::timestamptz, e ->> 'body_sha256'),
                   false) as is_older
        from jsonb_array_elements(p_variants) e
        left join esl.products o
          on o.variant_id = e ->> 'variant_id' and o.source_store_id = e ->> 'source_store_id'
         and o.source_system = e ->> 'source_system'
        left join esl.product_versions v
          on v.product_id = e ->> 'product_id' and v.source_store_id = e ->> 'source_store_id'
         and v.source_system = e ->> 'source_system'
        cross join lateral (select esl.is_revived(v, e) as revived) r
        cross join lateral jsonb_populate_record(o, e) n
    )
    select jsonb_agg(variant) filter (where not is_same and not is_older),
           coalesce(array_agg(product_id) filter (where not is_same and not is_older), '{}'),
           coalesce(array_agg(variant_id) filter (where not is_same and is_older), '{}'),
           count(*) filter (where is_same)
    into changed, products, newer, unchanged from incoming;
end $$;

-- The products to merge; null: none. One is stored when its version is newer although no variant differs, so that a
-- webhook from in between cannot come later and win. Which variants are still to be fetched is settled by
-- esl_snapshot_finish: other pages may hold them.
create or replace function esl.changed_products(p_products jsonb, p_changed text[]) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select jsonb_agg(e || jsonb_build_object('missing_variants', coalesce(v.missing_variants, 0), 'version_at',
                   case when esl.is_revived(v, e) then greatest(v.version_at, (e ->> 'version_at')::timestamptz)
                        else (e ->> 'version_at')::timestamptz end))
        from jsonb_array_elements(p_products) e
        left join esl.product_versions v
          on v.product_id = e ->> 'product_id' and v.source_store_id = e ->> 'source_store_id'
         and v.source_system = e ->> 'source_system'
        where e ->> 'product_id' = any (p_changed) or (e ->> 'version_at')::timestamptz > v.version_at);
end $$;

-- The levels to merge; null: none. An unchanged one is written for a newer time only. A tombstone has no time that the
-- source signed, or none at all: a read that began later and finds the level knows better.
create or replace function esl.changed_levels(p_levels jsonb) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select jsonb_agg(to_jsonb(d) || jsonb_build_object(
                   'updated_at', case when l.gone then greatest(d.updated_at, l.updated_at) else d.updated_at end))
        from jsonb_populate_recordset(null::esl.inventory_levels, p_levels) d
        left join esl.inventory_levels l
          on l.inventory_item_id = d.inventory_item_id and l.location_id = d.location_id
         and l.source_store_id = d.source_store_id and l.source_system = d.source_system
        where l.inventory_item_id is null
           or (l.gone and d.triggered_at > l.triggered_at)
           or (not l.gone and (d.updated_at > l.updated_at or (
               l.available is distinct from d.available and d.updated_at = l.updated_at
               and (d.triggered_at, d.body_sha256) > (l.triggered_at, l.body_sha256)))));
end $$;

-- The details to merge; null: none. They have no version of their own; those of an older variant (p_older) only serve
-- where there are none.
create or replace function esl.changed_details(p_details jsonb, p_older text[]) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select jsonb_agg(to_jsonb(d))
        from jsonb_populate_recordset(null::esl.variant_details, p_details) d
        left join esl.variant_details o
          on o.variant_id = d.variant_id and o.source_store_id = d.source_store_id and o.source_system = d.source_system
        where o.variant_id is null
           or (d.variant_id <> all (p_older) and (o.gift_card, o.unit_price, o.unit_price_measurement)
               is distinct from (d.gift_card, d.unit_price, d.unit_price_measurement)));
end $$;

-- Notes what was read, each variant and level once, and how many of each.
create or replace function esl.note_read(p_snapshot uuid, p_variants jsonb, p_levels jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_noted int;
begin
    insert into esl.snapshot_variants (variant_id, snapshot_id)
    select e ->> 'variant_id', p_snapshot from jsonb_array_elements(p_variants) e
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.snapshots set seen = seen + v_noted where id = p_snapshot and v_noted > 0;
    insert into esl.snapshot_levels (inventory_item_id, location_id, snapshot_id)
    select e ->> 'inventory_item_id', e ->> 'location_id', p_snapshot from jsonb_array_elements(p_levels) e
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.snapshots set levels_seen = levels_seen + v_noted where id = p_snapshot and v_noted > 0;
end $$;

-- {snapshot_id, products, variants, levels, details, shops: as for esl_variants_merge}
-- -> {open, changed, unchanged, newer}; open false: the snapshot has been overtaken, nothing was done.
-- Merges what differs and notes what was read. What is stored already, or something newer, is left out before
-- esl_variants_merge: an unchanged variant writes nothing at all.
-- newer: variants that differ, but of whose product something newer is stored.
create or replace function public.esl_snapshot_merge(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_id uuid := (p ->> 'snapshot_id')::uuid; v_read record; v_products jsonb; v_levels jsonb; v_details jsonb;
    v_written int := 0;
begin
    perform from esl.snapshots where id = v_id and state = 'open' for no key update;
    if not found then
        return jsonb_build_object('open', false, 'changed', 0, 'unchanged', 0, 'newer', 0);
    end if;
    perform esl.settle_by_read(p);

    v_read := esl.compare_variants(p -> 'variants');
    v_products := esl.changed_products(p -> 'products', v_read.products);
    v_levels := esl.changed_levels(p -> 'levels');
    v_details := esl.changed_details(p -> 'details', v_read.newer);
    if coalesce(v_read.changed, v_products, v_levels, v_details) is not null or p -> 'shops' <> '[]' then
        v_written := public.esl_variants_merge(jsonb_build_object(
            'products', coalesce(v_products, '[]'), 'variants', coalesce(v_read.changed, '[]'),
            'levels', coalesce(v_levels, '[]'), 'details', coalesce(v_details, '[]'),
            'shops', coalesce(p -> 'shops', '[]'), 'events', '[]'::jsonb)) ->> 'variants_changed';
    end if;
    perform esl.note_read(v_id, p -> 'variants', p -> 'levels');

    return jsonb_build_object('open', true, 'changed', v_written, 'unchanged', v_read.unchanged, 'newer',
        cardinality(v_read.newer) + jsonb_array_length(coalesce(v_read.changed, '[]')) - v_written);
end $$;

-- Why nothing may be concluded from a snapshot, or null.
create or replace function esl.snapshot_problem(s esl.snapshots) returns text
language plpgsql stable set search_path = '' as $$
begin
    if s.state is distinct from 'open' then
        return coalesce(s.reason, 'there is no such snapshot');
    elsif (s.seen, s.levels_seen) <> (
            (select count(*) from esl.snapshot_variants where snapshot_id = s.id),
            (select count(*) from esl.snapshot_levels where snapshot_id = s.id)) then
        return 'the database has lost its notes of what was read: it was restarted meanwhile';
    end if;
    return null;
end $$;

-- What was not read is looked up row by row (offset 0): the statistics know the notes of an earlier snapshot and none
-- of this one, so a join would be planned for one row of them and compare all with all.

-- Variants that were not read are gone, and how many those are; a product without any variant left becomes a tombstone
-- (body_sha256 ''), so that a late webhook does not revive it.
create or replace function esl.remove_unread_variants(s esl.snapshots, p_as_of timestamptz) returns int
language plpgsql volatile set search_path = '' as $$
declare v_products text[]; v_removed int;
begin
    -- Locked first: a webhook that is being merged goes before or after all of this, never between.
    select array_agg(product_id) into v_products from (
        select v.product_id from esl.product_versions v
        where v.source_system = s.source_system and v.source_store_id = s.source_store_id and v.version_at < p_as_of
          and v.product_id in (
              select o.product_id from esl.products o
              where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
                and not exists (select from esl.snapshot_variants n
                                where n.variant_id = o.variant_id and n.snapshot_id = s.id offset 0))
        order by v.product_id for update) older;

    with gone as (
        update esl.products o
        set removed = true, event_ids = '{}', cause = 'read', revision = nextval('esl.revision'), due = true,
            changed_at = now()
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
          and o.product_id = any (v_products) and o.source_updated_at < p_as_of
          and not exists (select from esl.snapshot_variants n
                          where n.variant_id = o.variant_id and n.snapshot_id = s.id offset 0)
        returning o.product_id
    ), buried as (
        update esl.product_versions v
        set version_at = p_as_of, triggered_at = p_as_of, body_sha256 = '', deleted = true, missing_variants = 0
        where v.source_system = s.source_system and v.source_store_id = s.source_store_id
          and v.product_id in (select product_id from gone)
          and not exists (
              select from esl.products o
              join esl.snapshot_variants n on n.variant_id = o.variant_id and n.snapshot_id = s.id
              where o.source_system = s.source_system and o.source_store_id = s.source_store_id
                and o.product_id = v.product_id)
    )
    select count(*) into v_removed from gone;
    return v_removed;
end $$;

-- Details of variants that were not read and are not there.
create or replace function esl.remove_unread_details(s esl.snapshots) returns void
language plpgsql volatile set search_path = '' as $$
begin
    delete from esl.variant_details x
    where x.source_system = s.source_system and x.source_store_id = s.source_store_id
      and not exists (select from esl.snapshot_variants n
                      where n.variant_id = x.variant_id and n.snapshot_id = s.id offset 0)
      and not exists (select from esl.products o where o.variant_id = x.variant_id and not o.removed
                      and o.source_store_id = x.source_store_id and o.source_system = x.source_system);
end $$;

-- Levels that were not read become tombstones; how many. Null as of: the stock was not read, nothing is concluded.
create or replace function esl.remove_unread_levels(s esl.snapshots, p_as_of timestamptz) returns int
language plpgsql volatile set search_path = '' as $$
declare v_levels int;
begin
    with gone as (
        update esl.inventory_levels l
        set gone = true, available = null, updated_at = p_as_of, triggered_at = p_as_of, body_sha256 = ''
        where l.source_system = s.source_system and l.source_store_id = s.source_store_id and not l.gone
          and greatest(l.updated_at, l.triggered_at) < p_as_of
          and not exists (select from esl.snapshot_levels n
                          where n.inventory_item_id = l.inventory_item_id and n.location_id = l.location_id
                            and n.snapshot_id = s.id offset 0)
        returning l.inventory_item_id
    ), marked as (
        update esl.products o
        set due = true, revision = nextval('esl.revision'), stock_event_ids = '{}', cause = 'read'
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
          and o.inventory_item_id in (select inventory_item_id from gone)
    )
    select count(*) into v_levels from gone;
    return v_levels;
end $$;

-- {snapshot_id, as_of, stock_as_of, counts} -> {finished, removed, levels_gone, reason}: everything was read, so what
-- was not there is gone, in every table that a snapshot fills: variants with their details, and levels where the stock
-- was read (stock_as_of: when that began; null: nothing is concluded about stock). Only what is older than the read: a
-- variant that changed since may have been made since.
create or replace function public.esl_snapshot_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_custom_plan set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
declare
    s esl.snapshots; v_as_of timestamptz := (p ->> 'as_of')::timestamptz;
    v_stock_as_of timestamptz := (p ->> 'stock_as_of')::timestamptz; v_removed int; v_levels int; v_reason text;
begin
    select * into s from esl.snapshots where id = (p ->> 'snapshot_id')::uuid for update;
    if s.state = 'finished' then
        return jsonb_build_object('finished', true, 'removed', s.counts -> 'removed', 'levels_gone',
                                  s.counts -> 'levels_gone', 'reason', null);
    end if;
    v_reason := esl.snapshot_problem(s);
    if v_reason is not null then
        perform public.esl_snapshot_abandon(jsonb_build_object('snapshot_id', s.id, 'reason', v_reason));
        return jsonb_build_object('finished', false, 'removed', 0, 'levels_gone', 0, 'reason', v_reason);
    end if;

    perform esl.shop_was_read(s.source_system, s.source_store_id);
    v_removed := esl.remove_unread_variants(s, v_as_of);
    update esl.product_versions v set missing_variants = 0
    where v.missing_variants > 0 and not v.deleted and v.triggered_at <= v_as_of
      and v.source_system = s.source_system and v.source_store_id = s.source_store_id;
    perform esl.remove_unread_details(s);
    v_levels := esl.remove_unread_levels(s, v_stock_as_of);
    perform esl.settle_by_absence(s.source_system, s.source_store_id, v_as_of);
    perform esl.end_cuts(s.source_system, s.source_store_id);

    delete from esl.snapshot_variants where snapshot_id = s.id;
    delete from esl.snapshot_levels where snapshot_id = s.id;
    update esl.snapshots
    set state = 'finished', finished_at = clock_timestamp(), as_of = v_as_of, stock_as_of = v_stock_as_of,
        counts = coalesce(p -> 'counts', '{}') || jsonb_build_object('removed', v_removed, 'levels_gone', v_levels)
    where id = s.id;
    return jsonb_build_object('finished', true, 'removed', v_removed, 'levels_gone', v_levels, 'reason', null);
end $$;

-- {snapshot_id, reason} -> {abandoned}: it was not read to its end, so nothing is concluded from it.
create or replace function public.esl_snapshot_abandon(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_custom_plan set statement_timeout = '55s' as $$
declare v_id uuid := (p ->> 'snapshot_id')::uuid; v_abandoned boolean;
begin
    update esl.snapshots set state = 'abandoned', finished_at = clock_timestamp(), reason = p ->> 'reason'
    where id = v_id and state = 'open';
    v_abandoned := found;
    delete from esl.snapshot_variants where snapshot_id = v_id;
    delete from esl.snapshot_levels where snapshot_id = v_id;
    return jsonb_build_object('abandoned', v_abandoned);
end $$;

-- functions: source_bodies.sql
-- What the signed bodies of known sources must look like, for receivers that cannot judge it: JavaScript rounds ids
-- beyond 2^53. The same rules as in Python (sources/bodies.py and the deliveries of each source), which judges before
-- it calls; a test holds the two against each other. (A number that no float holds is none for Python's parser alone:
-- such a body becomes unusable when it is read.)

-- An object, or why the bytes are none that is of use.
create or replace function esl.parsed_body(p_raw bytea, out body jsonb, out fault text)
language plpgsql immutable set search_path = '' as $$
declare v_text text;
begin
    v_text := convert_from(p_raw, 'UTF8');
    if length(v_text) - length(translate(v_text, '{[', '')) > 100000 then
        fault := 'the body has more than 100,000 objects and lists, as no product has';
        return;
    end if;
    if position('\u0000' in v_text) > 0 then  -- legal JSON, which jsonb cannot hold
        v_text := regexp_replace(v_text, '(?<!\\)((?:\\\\)*)\\u0000', '\1\\ufffd', 'g');
    end if;
    body := v_text::jsonb;
    if jsonb_typeof(body) <> 'object' then
        body := null;
        fault := 'the body is not a JSON object';
    end if;
exception when data_exception or program_limit_exceeded then
    body := null;
    fault := 'the body is not JSON: ' || left(sqlerrm, 100);
end $$;

-- A text that is an ISO 8601 time with its offset; null for anything else.
create or replace function esl.said_instant(p_said jsonb) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare v_text text := p_said #>> '{}';
begin
    if jsonb_typeof(p_said) = 'string'
       and v_text ~ '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)$' then
        return regexp_replace(v_text, '([.]\d{6})\d+', '\1')::timestamptz;
    end if;
    return null;
exception when data_exception then
    return null;
end $$;

create or replace function esl.is_id(p_value jsonb) returns boolean
language sql immutable set search_path = '' as $$
    select coalesce(jsonb_typeof(p_value) = 'number' and p_value::text ~ '^[0-9]{1,19}$'
                    and (p_value #>> '{}')::numeric between 1 and 9223372036854775807, false)
$$;

create or replace function esl.keys(p_object jsonb) returns text[]
language sql immutable set search_path = '' as $$
    select array_agg(k order by k collate "C") from jsonb_object_keys(p_object) k
$$;

-- What the body of a topic of products or stock lacks; null: nothing.
create or replace function esl.shape_fault(p_topic text, p_body jsonb) returns text
language sql immutable set search_path = '' as $$
    select case
        when p_topic like 'inventory\_levels/%' then case
            when not (esl.is_id(p_body -> 'inventory_item_id') and esl.is_id(p_body -> 'location_id'))
                then format('a %s body needs the integers inventory_item_id and location_id', p_topic)
            when p_topic = 'inventory_levels/disconnect' and cardinality(esl.keys(p_body)) <> 2
                then format('a %s body holds inventory_item_id, location_id and nothing else', p_topic) end
        when not esl.is_id(p_body -> 'id') then format('a %s body needs the integer id', p_topic)
        when p_topic = 'products/delete' then case
            when cardinality(esl.keys(p_body)) <> 1 then 'a products/delete body holds the id and nothing else' end
        when jsonb_typeof(p_body -> 'updated_at') is distinct from 'string'
          or jsonb_typeof(p_body -> 'variants') is distinct from 'array'
            then format('a %s body needs the text updated_at and the list variants', p_topic)
        else (
            select format('the body lists %s %s, and a product has at most 2,048 variants',
                          to_char(jsonb_array_length(p_body -> n), 'FM9,999,999'), n)
            from unnest(array['variants', 'variant_gids']) n
            where case jsonb_typeof(p_body -> n) when 'array' then jsonb_array_length(p_body -> n) > 2048 end limit 1)
        end
$$;

-- The same of a topic about the shop itself, or about its customers.
create or replace function esl.lifecycle_fault(p_topic text, p_shop text, p_form text, p_body jsonb, p_said timestamptz)
returns text
language sql immutable set search_path = '' as $$
    select case
        when jsonb_typeof(p_body -> f.name) is distinct from 'string' or f.shop ~ p_form is not true
            then format('a %s body needs the shop''s domain in %s', p_topic, f.name)
        when f.shop <> p_shop then format('replay suspected: %s in the body is another shop''s', f.name)
        when p_topic = 'shop/redact' and esl.keys(p_body) <> array['shop_domain', 'shop_id']
            then 'replay suspected: a shop/redact body holds shop_id, shop_domain and nothing else'
        when p_topic = 'app/uninstalled' and p_said is null
            then 'an app/uninstalled body needs its time, updated_at, which is not ahead of ours' end
    from (select n as name, lower((p_body ->> n) collate "C") as shop
          from (values (case p_topic when 'app/uninstalled' then 'myshopify_domain' else 'shop_domain' end)) v (n)) f
$$;

-- A delivery that came without a state, with the state, the reason and the time of its body; one of the lifecycle
-- without its body, which is about people and kept by nobody.
create or replace function esl.judge(p_delivery jsonb, p_form text, p_topics text[]) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    v_topic text := p_delivery ->> 'topic'; v_is_of_shop boolean := v_topic <> all (p_topics);
    v_read record := esl.parsed_body(decode(p_delivery ->> 'body_base64', 'base64'));
    v_fault text := v_read.fault; v_other text; v_said timestamptz;
begin
    if v_fault is null then
        v_said := esl.said_instant(v_read.body -> 'updated_at');
        if v_said > now() + interval '10 minutes' then
            v_said := null;
        end if;
        if v_is_of_shop then
            v_fault := esl.lifecycle_fault(v_topic, p_delivery ->> 'source_store_id', p_form, v_read.body, v_said);
        else
            v_fault := esl.shape_fault(v_topic, v_read.body);
            select t into v_other from unnest(p_topics) with ordinality u (t, n)
            where v_fault is not null and esl.shape_fault(t, v_read.body) is null order by n limit 1;
            if v_other is not null then
                v_fault := format('replay suspected: the body is one of %s; %s', v_other, v_fault);
            end if;
        end if;
    end if;
    return p_delivery || jsonb_build_object(
        'state', case when v_fault is not null then 'unusable' when v_is_of_shop then 'done' else 'ready' end,
        'reason', coalesce(v_fault, case
            when v_topic like 'customers/%' then 'no data of customers is held'
            when v_topic = 'shop/redact'
                then 'housekeeping deletes what is held of the shop, once nothing speaks against it'
            when v_topic = 'app/uninstalled' then 'the shop''s mappings are inactive' end),
        'said_at', case when v_fault is null then v_said end)
        || case when v_is_of_shop then '{"body_base64": null}' else '{}' end::jsonb;
end $$;

-- Deliveries as they came; those without a state, of a source whose bodies are known here, are judged.
create or replace function esl.judged(p_deliveries jsonb) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    if not jsonb_path_exists(p_deliveries, '$[*] ? (!exists(@.state) || @.state == null)') then
        return p_deliveries;
    end if;
    return (
        select jsonb_agg(case when s.shop is null then d else esl.judge(d, s.shop, s.topics) end order by n)
        from jsonb_array_elements(p_deliveries) with ordinality e (d, n)
        left join esl.sources() s on d ->> 'state' is null and s.system = d ->> 'source_system'
                                 and s.lifecycle <> '{}' and d ->> 'topic' = any (s.topics || s.lifecycle));
end $$;

-- functions: sources.sql
-- The sources: what each is known for, what its receivers may say, and which of its shops are mapped.

-- What is known of each source that is part of this package. shop: the form of its shops' names, example: one of them.
-- ids_are_global: an id is one thing, whatever shop names it; elsewhere two shops may have the same id for two things.
-- topics: of products and stock; lifecycle: about the shop itself.
create or replace function esl.sources()
returns table (system text, shop text, example text, ids_are_global boolean, topics text[], lifecycle text[])
language sql immutable set search_path = '' as $$
    values
    ('shopify', '^[a-z0-9][a-z0-9-]{0,62}[.]myshopify[.]com$', 'example.myshopify.com', true,
     array['products/create', 'products/update', 'products/delete',
           'inventory_levels/update', 'inventory_levels/connect', 'inventory_levels/disconnect'],
     array['customers/data_request', 'customers/redact', 'shop/redact', 'app/uninstalled']),
    -- The address of its site: host, port and path.
    ('woocommerce', '^(?=.{1,255}$)[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9_~-][a-z0-9._~-]*)*$',
     'shop.example.com or example.com/shop', false,
     array['product.created', 'product.updated', 'product.deleted', 'product.restored'], array[]::text[]),
    ('files', '^[a-z0-9][a-z0-9._-]{0,62}$', 'corner-market', false, array[]::text[], array[]::text[])
$$;

-- What holds for a source: one of those, or one that somebody has added in Python alone, of which only the form of
-- names is known (topics null: any). No row: no source can be called so.
create or replace function esl.source(p_system text)
returns table (system text, shop text, example text, ids_are_global boolean, topics text[], lifecycle text[])
language sql immutable set search_path = '' as $$
    select s.* from esl.sources() s where s.system = p_system
    union all
    select p_system, '^[!-~]{1,255}$', 'corner-market', false, null, array[]::text[]
    where p_system ~ '^[a-z][a-z0-9_]{0,30}$' and p_system not in (select s.system from esl.sources() s)
$$;

-- Refuses what no receiver sends: whoever holds its login can say no more than a receiver could. (Whether a signature
-- was good only the receiver knows.) 22023.
create or replace function esl.check_deliveries(p_deliveries jsonb) returns void
language plpgsql set search_path = '' as $$
declare v_wrong text;
begin
    with d as materialized (
        select * from jsonb_populate_recordset(null::esl.delivery_row, p_deliveries)
    ), s as materialized (
        select s.* from (select distinct source_system from d) named cross join lateral esl.source(source_system) s
    )
    select case
        when s.system is null then format('source_system: no source is called %L', d.source_system)
        when d.source_store_id ~ s.shop is not true
            then format('source_store_id: %L is no shop of %s', d.source_store_id, s.system)
        when s.topics = '{}' and s.lifecycle = '{}' then format('source_system: %s sends no webhooks', s.system)
        when case when s.topics is null then d.topic ~ '^[ -~]{1,64}$'
                  else d.topic = any (s.topics || s.lifecycle) end is not true
            then format('topic: %L is none that %s sends', d.topic, s.system)
        when d.state in ('unusable', case when d.topic = any (s.lifecycle) then 'done' else 'ready' end) is not true
            then format('state: a delivery of %s cannot arrive as %L', d.topic, d.state)
        when d.topic = any (s.lifecycle) and d.body_base64 is not null
            then format('body_base64: none is kept of %s', d.topic)
        when d.said_at > clock_timestamp() + interval '15 minutes' then 'said_at: is ahead of the clock'
        end
    into v_wrong
    from d left join s on s.system = d.source_system
    order by 1 limit 1;  -- nulls, where nothing is wrong, come last
    if v_wrong is not null then
        raise exception '%', left(v_wrong, 500) using errcode = '22023';
    end if;
end $$;

-- Refuses a mapping of what is no shop of its source, for its token would go there. 22023.
create or replace function esl.check_shop(p_system text, p_shop text) returns void
language plpgsql set search_path = '' as $$
declare s record;
begin
    select * into s from esl.source(p_system);
    if s.system is null then
        raise exception 'source_system: no source is called % (small letters, digits and _)',
            coalesce(p_system, 'nothing') using errcode = '22023';
    elsif p_shop ~ s.shop is not true then
        raise exception 'source_store_id: % is no shop of the source %, whose shops are called like %',
            p_shop, p_system, s.example using errcode = '22023';
    end if;
end $$;

create or replace function esl.is_mapped(p_system text, p_shop text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m
                   where m.source_system = p_system and m.source_store_id = p_shop and m.removed_at is null)
$$;

-- Refuses that a shop feeds a store that another shop is mapped to, unless the caller says that this is meant: a code
-- that both publish would be decided between them. 23P01.
create or replace function esl.check_sharing(p_system text, p_shop text, p_store text, p_shared boolean) returns void
language plpgsql set search_path = '' as $$
declare v_others text;
begin
    select string_agg(m.source_store_id || case when m.is_active then '' else ' (inactive)' end, ', '
                      order by m.source_store_id)
    into v_others from esl.store_mappings m
    where m.hipoink_store_code = p_store and (m.source_system, m.source_store_id) <> (p_system, p_shop)
      and m.removed_at is null;
    if v_others is not null and p_shared is not true then
        raise exception 'store % is fed by % already: say "shared": true (stores add or set: --share) if % is to feed '
            'it as well', p_store, v_others, p_shop using errcode = '23P01';
    end if;
end $$;

create or replace function esl.has_active_mapping(p_system text, p_shop text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m
                   where m.source_system = p_system and m.source_store_id = p_shop and m.is_active)
$$;

-- functions: stage.sql
-- Evaluated labels come in: what is new of them is stored, with what was found, and the places they touch are decided.

-- Of evaluated labels those of live mappings whose variant has not changed since, each once. The others are due again,
-- and an older evaluation may not win over a newer one.
create or replace function esl.fresh_labels(p_labels jsonb) returns esl.label_row[]
language plpgsql stable set search_path = '' as $$
begin
    return array(
        select distinct on (d.mapping_id, d.variant_id)
               row(d.mapping_id, d.variant_id, d.revision, d.store_code, d.state, d.code, d.precedence, d.label,
                   d.label_hash, d.event_ids, o.cause)::esl.label_row
        from jsonb_populate_recordset(null::esl.label_row, p_labels) d
        join esl.store_mappings m on m.id = d.mapping_id and m.is_active
        join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                           and o.variant_id = d.variant_id and o.revision = d.revision
        order by d.mapping_id, d.variant_id);
end $$;

-- Stores what differs from what is known. changed: how many; stores, codes: the places where their labels were, are on
-- their way, and belong now.
create or replace function esl.store_labels(p_labels esl.label_row[], out changed int, out stores text[],
                                            out codes text[])
language plpgsql set search_path = '' as $$
begin
    with incoming as (
        select * from unnest(p_labels)
    ), before as (
        select o.store_code, o.code from esl.labels o join incoming using (mapping_id, variant_id)
        union select s.store_code, s.code from esl.hipoink_products s join incoming using (mapping_id, variant_id)
        union select q.store_code, q.code from esl.sync_queue q join incoming using (mapping_id, variant_id)
    ), written as (
        insert into esl.labels as o (mapping_id, variant_id, store_code, code, precedence, label, label_hash, state,
                                     event_ids, cause)
        select i.mapping_id, i.variant_id, i.store_code, i.code, i.precedence, i.label, i.label_hash, i.state,
               coalesce(i.event_ids, '{}'), i.cause
        from incoming i
        where not exists (
            select from esl.labels o where o.mapping_id = i.mapping_id and o.variant_id = i.variant_id
              and (o.store_code, o.code, o.precedence, o.label_hash, o.state)
                  is not distinct from (i.store_code, i.code, i.precedence, i.label_hash, i.state))
        on conflict (mapping_id, variant_id) do update
        set store_code = excluded.store_code, code = excluded.code, precedence = excluded.precedence,
            label = excluded.label, label_hash = excluded.label_hash, state = excluded.state, collides = false,
            event_ids = excluded.event_ids, cause = excluded.cause, evaluated_at = now()
        returning 1
    ), touched as (
        select store_code, code from before
        union select store_code, code from incoming
    )
    select (select count(*) from written), array_agg(t.store_code), array_agg(t.code)
    into changed, stores, codes
    from touched t where t.code is not null;
end $$;

-- Stores what was found in fresh evaluations, and resolves what was not found again in these labels' variants; of
-- collisions esl.requeue knows more, unless no code is claimed any longer.
create or replace function esl.store_findings(p_findings jsonb, p_labels esl.label_row[]) returns void
language plpgsql set search_path = '' as $$
declare v_now timestamptz := clock_timestamp();
begin
    insert into esl.findings as f (mapping_id, variant_id, check_name, level, column_name, value, reason, action,
                                   last_seen_at)
    select distinct on (d.mapping_id, d.variant_id, d.check_name)
           d.mapping_id, d.variant_id, d.check_name, d.level, d.column_name, d.value, d.reason, d.action, v_now
    from jsonb_populate_recordset(null::esl.finding_row, p_findings) d
    join esl.store_mappings m on m.id = d.mapping_id and m.is_active
    join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                       and o.variant_id = d.variant_id and o.revision = d.revision
    order by d.mapping_id, d.variant_id, d.check_name
    on conflict (mapping_id, variant_id, check_name) do update
    set level = excluded.level, column_name = excluded.column_name, value = excluded.value,
        reason = excluded.reason, action = excluded.action, last_seen_at = excluded.last_seen_at, resolved_at = null;

    update esl.findings f set resolved_at = v_now
    from unnest(p_labels) d
    where f.mapping_id = d.mapping_id and f.variant_id = d.variant_id and f.resolved_at is null
      and f.last_seen_at < v_now and (f.check_name <> 'duplicate_code' or d.code is null);
end $$;

-- The open collisions of these labels' variants.
create or replace function esl.open_collisions(p_labels esl.label_row[]) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object('mapping_id', f.mapping_id, 'variant_id', f.variant_id,
                   'check_name', f.check_name, 'level', f.level, 'column_name', f.column_name, 'value', f.value,
                   'reason', f.reason, 'action', f.action)), '[]')
        from unnest(p_labels) d
        join esl.labels l on l.mapping_id = d.mapping_id and l.variant_id = d.variant_id
        join esl.findings f on f.mapping_id = d.mapping_id and f.variant_id = d.variant_id
        where l.state in ('publish', 'held') and f.check_name = 'duplicate_code' and f.resolved_at is null);
end $$;

-- {labels: [{mapping_id, variant_id, revision, store_code, state, code, precedence, label, label_hash, event_ids}],
--  findings: [{mapping_id, variant_id, revision, check_name, level, column_name, value, reason, action}],
--  evaluated: [{source_system, source_store_id, variant_id, revision}],
--  problems?: {mapping_id: what makes its settings unusable, or null}}
-- -> {labels_changed, stale, upserts_queued, removals_queued, collisions: [findings of the staged variants]}
-- Only variants whose revision is still the evaluated one are staged (see esl.fresh_labels).
create or replace function public.esl_labels_stage(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_labels esl.label_row[]; v_evaluated int; v_staged record;
begin
    perform esl.know_what_grew();
    -- Stages of a store are short and take turns: codes may collide between any two of them.
    perform esl.lock_stores(esl.stores_of_shops(p -> 'evaluated'));

    -- Locks the variants, so that their revisions stand until the end of this call.
    update esl.products o set due = false
    from jsonb_populate_recordset(null::esl.evaluated_row, p -> 'evaluated') e
    where o.source_system = e.source_system and o.source_store_id = e.source_store_id
      and o.variant_id = e.variant_id and o.revision = e.revision;
    get diagnostics v_evaluated = row_count;

    update esl.store_mappings m set problem = e.value
    from jsonb_each_text(coalesce(p -> 'problems', '{}')) e
    where m.id = e.key::uuid and m.problem is distinct from e.value;

    v_labels := esl.fresh_labels(p -> 'labels');
    select * into v_staged from esl.store_labels(v_labels);
    perform esl.store_findings(p -> 'findings', v_labels);
    perform esl.requeue(v_staged.stores, v_staged.codes);
    perform esl.measure_same(v_labels);

    return (select jsonb_build_object(
        'labels_changed', v_staged.changed,
        'stale', jsonb_array_length(p -> 'evaluated') - v_evaluated,
        'upserts_queued', count(*) filter (where q.operation = 'upsert' and not esl.is_blanked(q.label_hash)),
        'removals_queued', count(*) filter (where q.operation = 'delete' or esl.is_blanked(q.label_hash)),
        'collisions', esl.open_collisions(v_labels))
        from unnest(v_staged.stores, v_staged.codes) as k (store_code, code)
        join esl.sync_queue q using (store_code, code));
end $$;

-- functions: story.sql
-- Why a label shows what it shows, and what a webhook, a run or a push has done: for `trace` and the console. Reads the
-- audit, changes nothing. How it is told is in model/telling.py.

-- From which row of a place's audit on its story is read: the newest p_limit pushes up to a time (not older than
-- p_since), and the push that brought the price before the one that it held then, if it is among the last 500 pushes.
create or replace function esl.story_from(p_store text, p_code text, p_at timestamptz, p_since timestamptz, p_limit int)
returns table (first_push bigint, price_before bigint)
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare v_last esl.sync_log; v_price numeric;
begin
    select min(n.id) into first_push from (
        select l.id from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.kind = 'intent' and l.at <= p_at
          and l.at >= coalesce(p_since, '-infinity')
        order by l.id desc limit p_limit) n;
    select i.* into v_last from esl.accepted_push(p_store, p_code, p_at) a
    join esl.sync_log i on i.id = a.id;
    v_price := case when v_last.operation = 'upsert' then esl.price_of(v_last.label) end;
    select n.id into price_before from (
        select l.* from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.id < v_last.id and l.kind = 'intent'
        order by l.id desc limit 500) n
    where (n.operation = v_last.operation
           and (n.operation = 'delete' or esl.price_of(n.label) is not distinct from v_price)) is not true
      and exists (select from esl.sync_log r where r.code = p_code and r.store_code = p_store and r.id > n.id
                  and r.kind = 'result' and r.push_id = n.push_id and r.outcome = 'accepted' offset 0)
    order by n.id desc limit 1;
    price_before := coalesce(price_before, v_last.id);
    return next;
end $$;

-- The intent of the newest push of a place that was accepted by a time.
create or replace function esl.accepted_push(p_store text, p_code text, p_at timestamptz) returns table (id bigint)
language sql stable set search_path = '' as $$
    select i.id from (
        select l.id, l.push_id from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.kind = 'result' and l.outcome = 'accepted'
          and l.at <= p_at
        order by l.id desc limit 1) r
    cross join lateral (
        select l.id from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.id < r.id and l.kind = 'intent'
          and l.push_id = r.push_id
        order by l.id desc limit 1) i
$$;

-- The rows of a place's audit that its story up to a time is told from, oldest first: from the newest pushes on, what
-- brought its price and the one before, and what is known a little later of what was under way then.
create or replace function esl.story_log(p_store text, p_code text, p_at timestamptz, p_since timestamptz, p_limit int)
returns setof esl.sync_log
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare b record; v_ids bigint[]; v_pushes uuid[];
begin
    select f.* into b from esl.story_from(p_store, p_code, p_at, p_since, p_limit) f;
    select array_agg(u.id), array_agg(u.push_id) into v_ids, v_pushes from (
        (select l.id, l.push_id from esl.sync_log l
         where l.code = p_code and l.store_code = p_store and l.id >= b.first_push and l.at <= p_at
         order by l.id desc limit 3 * p_limit)
        union
        (select l.id, l.push_id from esl.sync_log l
         where l.code = p_code and l.store_code = p_store and l.id >= b.price_before and l.at <= p_at
         order by l.id limit 12)
        union
        (select l.id, l.push_id from esl.sync_log l
         where l.code = p_code and l.store_code = p_store and l.at <= p_at order by l.id desc limit 12)) u;
    return query
        select l.* from esl.sync_log l where l.id = any (v_ids)
        union all
        select l.* from (
            select n.* from esl.sync_log n
            where n.code = p_code and n.store_code = p_store and n.id > (select max(i) from unnest(v_ids) i)
            order by n.id limit 200) l
        where l.at > p_at and l.push_id = any (v_pushes)
        order by 1;
end $$;

-- What was found to differ at a place up to a time, and next after it, if before another push was accepted there: then
-- what hung at that time may have been that already.
create or replace function esl.story_drift(p_store text, p_code text, p_from timestamptz, p_at timestamptz)
returns setof esl.drift
language sql stable set search_path = '' as $$
    (select d.* from esl.drift d
     where d.code = p_code and d.store_code = p_store and d.at >= p_from and d.at <= p_at order by d.id desc limit 50)
    union all
    (select d.* from esl.drift d
     where d.code = p_code and d.store_code = p_store and d.at > p_at
       and d.at < coalesce((select l.at from esl.sync_log l
                            where l.code = p_code and l.store_code = p_store and l.at > p_at
                              and l.outcome = 'accepted' order by l.id limit 1), 'infinity')
     order by d.id limit 1)
$$;

-- When the labels of a store were told to be refreshed first after that; null: not yet.
create or replace function esl.triggered_after(p_store text, p_at timestamptz) returns timestamptz
language sql stable set search_path = '' as $$
    select x.begun_at from esl.refreshes x
    where x.store_code = p_store and x.outcome = 'accepted' and x.begun_at >= p_at order by x.begun_at limit 1
$$;

-- How far the price of a product is known to have come now (see functions/ladder.sql); null: it is in no ledger.
create or replace function esl.rung_of(p_store text, p_code text) returns int
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (select max(g.rung) from esl.rungs(array(select r from esl.shelf(p_store, p_code) r)) g
            where g.code = p_code);
end $$;

-- Whether the newest comparison has left a label as the server lists it: its repair did not hold three times.
create or replace function esl.is_given_up(p_store text, p_code text) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from esl.comparisons c
        where c.store_code = p_store and c.complete and c.given_up > 0
          and (select count(*) from esl.drift d
               where d.code = p_code and d.store_code = p_store and d.at < c.at
                 and d.at > c.at - interval '14 days') >= 3)
$$;

-- The deliveries behind these rows.
create or replace function esl.deliveries_of(p_ids bigint[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
               'id', i.id, 'topic', i.topic, 'webhook_id', i.webhook_id, 'triggered_at', i.triggered_at,
               'received_at', i.received_at, 'finished_at', i.finished_at, 'state', i.state, 'reason', i.reason,
               'run_id', i.run_id, 'source_store_id', i.source_store_id) order by i.id desc), '[]')
    from esl.webhook_inbox i where i.id = any (p_ids)
$$;

-- What people have done that bears on these rows of a place: the newest changes of their mappings until then, approvals
-- in its store and looks at its label from then to then.
create or replace function esl.story_people(p_store text, p_code text, p_log esl.sync_log[], p_from timestamptz,
                                            p_at timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'changes', (select coalesce(jsonb_agg(to_jsonb(c) order by c.id), '[]') from (
            select c.id, c.at, c.by, c.mapping_id, c.old, c.new from esl.mapping_changes c
            where c.mapping_id in (select l.mapping_id from unnest(p_log) l) and c.at <= p_at
            order by c.id desc limit 20) c),
        'approvals', (select coalesce(jsonb_agg(jsonb_build_object('at', a.at, 'by', a.by) order by a.id), '[]')
            from esl.approvals a
            where a.store_code = p_store and a.at between p_from and p_at
              and 'approval' in (select l.cause from unnest(p_log) l)),
        'seen', (select coalesce(jsonb_agg(to_jsonb(s) order by s.at), '[]') from (
            select s.at, s.by, s.label_hash is not null as is_right from esl.seen_labels s
            where s.code = p_code and s.store_code = p_store and s.at between p_from and p_at
            order by s.at desc limit 20) s))
$$;

-- The story of a place (p: as for esl_story), as rows.
create or replace function esl.story_of(p_store text, p_code text, p jsonb) returns jsonb
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_at    timestamptz := coalesce((p ->> 'at')::timestamptz, clock_timestamp());
    v_since timestamptz := (p ->> 'since')::timestamptz;
    v_log   esl.sync_log[] := array(select l from esl.story_log(p_store, p_code, v_at, v_since,
                                                                (p ->> 'limit')::int) l);
    v_from  timestamptz;
    v_whole boolean;
begin
    v_whole := not exists (select from esl.sync_log l where l.code = p_code and l.store_code = p_store
                           and l.at <= v_at and l.id < v_log[1].id);
    -- What was found, or changed, right before it was queued may be why.
    v_from := case when v_whole then '-infinity'
              else coalesce(v_log[1].queued_at, v_log[1].at) - interval '1 s' end;
    return jsonb_build_object(
        'store_code', p_store, 'code', p_code, 'label_server', esl.server_of(p_store), 'from', v_since,
        'is_whole', v_whole,
        'is_known', exists (select from esl.labels b where b.code = p_code and b.store_code = p_store)
                    or exists (select from esl.hipoink_products s where s.code = p_code and s.store_code = p_store),
        'title', (select o.title from esl.labels b join esl.store_mappings m on m.id = b.mapping_id
                  join esl.products o on o.variant_id = b.variant_id and o.source_store_id = m.source_store_id
                                     and o.source_system = m.source_system
                  where b.code = p_code and b.store_code = p_store order by b.state = 'publish' desc limit 1),
        'log', (select coalesce(jsonb_agg(to_jsonb(l) || jsonb_build_object(
                        'price', esl.price_of(l.label)::text, 'is_blank', esl.is_blanked(l.label_hash),
                        'triggered_at', case when l.outcome = 'accepted' then esl.triggered_after(p_store, l.at) end)
                    order by l.id), '[]') from unnest(v_log) l),
        'drift', (select coalesce(jsonb_agg(to_jsonb(d) || jsonb_build_object(
                        'price', esl.price_of(d.theirs)::text, 'price_ours', esl.price_of(d.ours)::text)
                    order by d.id), '[]') from esl.story_drift(p_store, p_code, v_from, v_at) d),
        'deliveries', esl.deliveries_of(array(select distinct e.id from unnest(v_log) l, unnest(l.event_ids) e (id))),
        'rung', case when p ->> 'at' is null then esl.rung_of(p_store, p_code) end,
        'queue', (select to_jsonb(q) || jsonb_build_object('price', esl.price_of(q.label)::text,
                                                           'is_blank', esl.is_blanked(q.label_hash))
                  from esl.sync_queue q where q.code = p_code and q.store_code = p_store),
        'is_given_up', p ->> 'at' is null and esl.is_given_up(p_store, p_code),
        'grace', (select to_jsonb(g) from esl.graces g where g.code = p_code and g.store_code = p_store))
        || esl.story_people(p_store, p_code, v_log, v_from, v_at);
end $$;

-- {places: [{store_code, code}], at?, since?, limit} -> {places: [{store_code, code, label_server, title, is_known,
--   is_whole, from, rung, log, drift, deliveries, changes, approvals, seen, queue, is_given_up,
--   grace}]}: what each place showed up to a time, and why, as rows (model/telling.py tells it). log, drift:
-- oldest first, is_whole: nothing is older.
create or replace function public.esl_story(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('places', coalesce(jsonb_agg(
        esl.story_of(k.place ->> 'store_code', k.place ->> 'code', p) order by k.n), '[]'))
    from jsonb_array_elements(p -> 'places') with ordinality as k (place, n)
$$;

-- Places that go by a name: as code, as SKU, variant id or physical label that leads to one (how), in a store or all.
create or replace function esl.places_named(p_name text, p_store text)
returns table (store_code text, code text, how text)
language sql stable set search_path = '' as $$
    with variants as (
        select o.variant_id, 'SKU' as how from esl.products o where o.sku = p_name
        union select p_name, 'variant'
    ), found as (
        select b.store_code, b.code, 'code' as how from esl.labels b where b.code = p_name
        union all select s.store_code, s.code, 'code' from esl.hipoink_products s where s.code = p_name
        union all select d.store_code, d.code, 'code' from esl.drift d where d.code = p_name
        union all select c.store_code, p_name, 'code' from esl.stores_of_code(p_name) c
        union all select b.store_code, b.code, v.how from variants v join esl.labels b on b.variant_id = v.variant_id
        union all select s.store_code, s.code, v.how
                  from variants v join esl.hipoink_products s on s.variant_id = v.variant_id
        union all select l.store_code, l.code, v.how from variants v join esl.sync_log l on l.variant_id = v.variant_id
                  where l.kind = 'intent'
        union all select d.store_code, d.product_code, 'label' from esl.devices d where d.esl_code = p_name
        union all select c.store_code, b.code, 'label' from esl.device_changes c
                  cross join lateral (values (c.old), (c.new)) b (code)
                  where c.esl_code = p_name and c.what = 'binding'
    )
    select f.store_code, f.code, min(f.how) from found f
    where f.code is not null and (p_store is null or f.store_code = p_store) group by 1, 2 order by 1, 2
$$;

-- The stores in which a code was pushed or waits, each found by one look into the audit.
create or replace function esl.stores_of_code(p_code text) returns table (store_code text)
language sql stable set search_path = '' as $$
    with recursive next as (
        (select l.store_code from esl.sync_log l where l.code = p_code order by l.store_code limit 1)
        union all
        select (select l.store_code from esl.sync_log l where l.code = p_code and l.store_code > n.store_code
                order by l.store_code limit 1) from next n where n.store_code is not null
    )
    select n.store_code from next n where n.store_code is not null
    union select q.store_code from esl.sync_queue q where q.code = p_code
$$;

-- What pushes came to, for people: these intents, each with its first result and the price that it brought.
create or replace function esl.pushed(p_intents esl.sync_log[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'store_code', i.store_code, 'code', i.code, 'operation', i.operation, 'price', esl.price_of(i.label)::text,
        'is_blank', esl.is_blanked(i.label_hash), 'cause', i.cause, 'attempt', i.attempt, 'push_id', i.push_id,
        'run_id', i.run_id, 'queued_at', i.queued_at, 'sent_at', i.at, 'ended_at', r.at, 'outcome', r.outcome,
        'message', r.message, 'event_ids', i.event_ids,
        'triggered_at', case when r.outcome = 'accepted' then esl.triggered_after(i.store_code, r.at) end)
        order by i.id desc), '[]')
    from unnest(p_intents) i
    left join lateral (select l.at, l.outcome, l.message from esl.sync_log l
                       where l.code = i.code and l.store_code = i.store_code and l.id > i.id and l.kind = 'result'
                         and l.push_id = i.push_id order by l.id limit 1) r on true
$$;

-- From a delivery forward: the variants that it told of, the pushes that carried its words, and what of that waits.
create or replace function esl.forward(i esl.webhook_inbox, p_limit int) returns jsonb
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_id text := substring(i.thing from '^[a-z_]+:(.*)$');
    v_variants text[] := array(
        select o.variant_id from esl.products o
        where o.source_system = i.source_system and o.source_store_id = i.source_store_id
          and (i.thing like 'product:%' and o.product_id = v_id
               or i.thing like 'inventory\_item:%' and o.inventory_item_id = v_id));
begin
    return jsonb_build_object(
        'variants', cardinality(v_variants),
        'pushes', esl.pushed(array(
            select l from esl.sync_log l
            where l.variant_id = any (v_variants) and l.kind = 'intent' and l.event_ids @> array[i.id]
            order by l.id desc limit p_limit)),
        'waiting', (select coalesce(jsonb_agg(jsonb_build_object(
                        'store_code', q.store_code, 'code', q.code, 'state', q.state, 'operation', q.operation,
                        'price', esl.price_of(q.label)::text, 'last_error', q.last_error)), '[]')
                    from esl.sync_queue q where q.variant_id = any (v_variants) and q.event_ids @> array[i.id]));
end $$;

-- {name, store?, limit} -> {places: [{store_code, code, how}], webhooks: [{id, topic, …, variants, pushes, waiting}],
--   pushes: [...], pushed, drift: [...]}: what a name means: places that go by it, deliveries of this webhook id with
-- what came of them, the newest pushes of this run, or of this push (pushed: how many there are by outcome), and what
-- this run found to differ.
create or replace function public.esl_trace_find(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_name text := p ->> 'name'; v_limit int := (p ->> 'limit')::int;
    v_push uuid := case when v_name ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then v_name::uuid end;
begin
    return jsonb_build_object(
        'places', (select coalesce(jsonb_agg(to_jsonb(n)), '[]') from (
            select * from esl.places_named(v_name, p ->> 'store') limit v_limit) n),
        'webhooks', (select coalesce(jsonb_agg(jsonb_build_object(
                'id', i.id, 'webhook_id', i.webhook_id, 'topic', i.topic, 'source_store_id', i.source_store_id,
                'triggered_at', i.triggered_at, 'received_at', i.received_at, 'finished_at', i.finished_at,
                'state', i.state, 'reason', i.reason, 'run_id', i.run_id, 'thing', i.thing)
                || esl.forward(i, v_limit) order by i.id desc), '[]')
            from esl.webhook_inbox i where i.webhook_id = v_name),
        'pushes', esl.pushed(array(
            (select l from esl.sync_log l where l.run_id = v_name and l.kind = 'intent'
             order by l.id desc limit v_limit)
            union all
            (select l from esl.sync_log l where l.push_id = v_push and l.kind = 'intent'
             order by l.id desc limit v_limit))),
        'pushed', (select count(*) from esl.sync_log l where l.run_id = v_name and l.kind = 'intent'),
        'drift', (select coalesce(jsonb_agg(to_jsonb(d) || jsonb_build_object(
                      'price', esl.price_of(d.theirs)::text, 'price_ours', esl.price_of(d.ours)::text)
                      order by d.id desc), '[]')
                  from (select * from esl.drift d where d.run_id = v_name order by d.id desc limit v_limit) d));
end $$;

-- functions: tokens.sql
-- The tokens of the store-mapping API.

-- What is known of a token, without its hash.
create or replace function esl.token_described(t esl.admin_tokens) returns jsonb
language sql stable set search_path = '' as $$
    select to_jsonb(t) - 'sha256' || jsonb_build_object('state', case
        when t.revoked_at is not null then 'revoked' when t.expires_at <= now() then 'expired' else 'valid' end)
$$;

-- {name, sha256, scope, days?} -> the token's description. sha256: of the token, in hex. 23505: the name is taken, and
-- stays so.
create or replace function public.esl_token_add(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare t esl.admin_tokens;
begin
    insert into esl.admin_tokens (name, sha256, scope, expires_at)
    values (p ->> 'name', p ->> 'sha256', p ->> 'scope', now() + make_interval(days => (p ->> 'days')::int))
    on conflict (name) do nothing;
    select * into t from esl.admin_tokens where name = p ->> 'name' and sha256 = p ->> 'sha256';
    if not found then
        raise exception 'a token of this name exists already' using errcode = '23505';
    end if;
    return esl.token_described(t);
end $$;

-- {} -> {tokens: [{name, scope, state, created_at, expires_at, revoked_at}]}
create or replace function public.esl_token_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('tokens', coalesce(jsonb_agg(esl.token_described(t) order by t.created_at, t.name), '[]'))
    from esl.admin_tokens t
$$;

-- {name} -> the token's description, or null. It is refused from now on.
create or replace function public.esl_token_revoke(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare t esl.admin_tokens;
begin
    update esl.admin_tokens set revoked_at = coalesce(revoked_at, now()) where name = p ->> 'name' returning * into t;
    return case when found then esl.token_described(t) end;
end $$;

-- {sha256} -> {any, token}: whether there is any valid token, and the description of the one with this hash, or null.
-- Looking the hash up need not take constant time: nobody can choose a token by the beginning of its hash.
create or replace function public.esl_token_check(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'any', exists (select from esl.admin_tokens t where t.revoked_at is null
                       and (t.expires_at is null or t.expires_at > now())),
        'token', (select esl.token_described(t) from esl.admin_tokens t where t.sha256 = p ->> 'sha256'))
$$;

-- functions: troubles.sql
-- What is wrong now, as far as the buffer knows: one function per kind of trouble, all read by esl_alert_conditions.
-- Words, severities and patience are in alerts/catalogue.py; here are facts.

create or replace function esl.key_of(m esl.store_mappings) returns text
language sql immutable set search_path = '' as $$
    select m.source_system || ':' || m.source_store_id
$$;

-- Of an earlier build: esl.pause_of says the same.
drop function if exists esl.people_pause(text);

-- Whether labels of a mapping are to change: it is active, or its store is being removed.
create or replace function esl.is_at_work(m esl.store_mappings) returns boolean
language sql immutable as $$  -- inlined
    select m.is_active or m.leaving is not null
$$;

-- Of each store that a mapping feeds: what keeps all its labels back, of which people are told by its own name.
create or replace function esl.held_stores()
returns table (store_code text, server text, down esl.label_servers, health esl.store_health, shops text[])
language sql stable set search_path = '' as $$
    select k.store_code, k.server, l, h, k.shops
    from (select m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as server,
                 array_agg(distinct esl.key_of(m)) as shops
          from esl.store_mappings m where esl.is_at_work(m) group by 1) k
    left join esl.label_servers l on l.server = k.server and l.down_since is not null
    left join esl.store_health h on h.store_code = k.store_code and h.pauses > 0
$$;

-- The queue in one pass, per mapping that is at work and store. refused: given up, or refused for good. late: wait for
-- longer than a quarter of an hour although nothing keeps them back that people are told of otherwise; rises: price
-- rises among them, for which five minutes are too long. A closed raise_window keeps rises back, and for a while after
-- it has opened they are on their way.
create or replace function esl.queue_troubles() returns setof esl.queue_row
language sql stable set search_path = '' as $$
    with live as materialized (  -- judged once for each mapping, not for each of its labels
        select m.id, esl.key_of(m) as shop,
               esl.is_pushed(m)
               and not exists (
                   select from esl.held_stores() s where s.store_code = m.hipoink_store_code
                     and num_nonnulls((s.down).server, (s.health).store_code) > 0)
               and not esl.store_is_paused(m.hipoink_store_code) as goes_out,
               esl.window_is_open(m.settings -> 'raise_window')
               and esl.window_is_open(m.settings -> 'raise_window', now() - interval '15 minutes') as rises_go_out
        from esl.store_mappings m where esl.is_at_work(m)
    ), counted as materialized (
        select q.mapping_id, q.store_code, q.is_rise and not q.in_doubt as has_hours,
               count(*) filter (where q.state in ('ready', 'leased')) as waiting,
               count(*) filter (where q.state in ('failed', 'dead')) as refused,
               min(coalesce(q.refused_at, q.created_at)) filter (where q.state in ('failed', 'dead')) as refused_since,
               max(q.last_error) filter (where q.state in ('failed', 'dead')) as refused_says,
               count(*) filter (where q.state = 'guarded' and q.rejected_at is null) as guarded,
               min(q.created_at) filter (where q.state = 'guarded' and q.rejected_at is null) as guarded_since,
               count(*) filter (where q.state in ('ready', 'leased')
                                  and q.created_at < now() - interval '15 minutes') as late,
               count(*) filter (where q.is_rise and q.state in ('ready', 'leased')
                                  and q.created_at < now() - interval '5 minutes') as rises,
               min(q.created_at) filter (where q.state in ('ready', 'leased')) as since,
               min(q.created_at) filter (where q.is_rise and q.state in ('ready', 'leased')) as rises_since
        from esl.sync_queue q group by 1, 2, 3
    )
    select v.shop, c.store_code, sum(c.waiting), sum(c.refused), min(c.refused_since), max(c.refused_says),
           sum(c.guarded), min(c.guarded_since), sum(c.late) filter (where k.is_due),
           min(c.since) filter (where k.is_due),
           sum(c.rises) filter (where k.is_due), min(c.rises_since) filter (where k.is_due)
    from live v join counted c on c.mapping_id = v.id
    cross join lateral (select v.goes_out and (not c.has_hours or v.rises_go_out)) k (is_due)
    group by v.id, v.shop, c.store_code
$$;

-- What stops whole stores: their label server is down, or accepts nothing of theirs, or is not among those that the
-- settings name (p_servers), or people have paused them. p_queue: rows of esl.queue_troubles. number: how often a store
-- was refused; when a pause of people ends, in seconds since 1970.
create or replace function esl.store_troubles(p_servers jsonb, p_queue jsonb) returns setof esl.condition_row
language sql stable set search_path = '' as $$
    with waiting as (
        select q.store_code, sum(q.waiting) as labels
        from jsonb_populate_recordset(null::esl.queue_row, p_queue) q group by 1
    ), held as (
        select s.*, coalesce(w.labels, 0) as labels from esl.held_stores() s left join waiting w using (store_code)
    ), servers as (
        select h.server, (array_agg(h.down))[1] as down, sum(h.labels)::bigint as labels,
               array_agg(h.store_code order by h.store_code) as stores,
               (select array_agg(distinct k order by k) from held o cross join unnest(o.shops) k
                where o.server = h.server) as shops
        from held h group by h.server
    )
    select 'server_down', s.server, (s.down).down_since, s.labels, s.shops, s.stores, null::bigint, (s.down).last_error
    from servers s where (s.down).server is not null
    union all
    select 'server_unknown', s.server, null, s.labels, s.shops, s.stores, null, null
    from servers s where not p_servers ? s.server
    union all
    select 'store_refused', h.store_code, (h.health).refused_at, h.labels::bigint, h.shops, array[h.store_code],
           (h.health).refusals, (h.health).reason
    from held h where (h.health).store_code is not null and (h.down).server is null
    union all
    select 'store_paused', h.store_code, (p.pause ->> 'since')::timestamptz, h.labels::bigint, h.shops,
           array[h.store_code], extract(epoch from (p.pause ->> 'until')::timestamptz)::bigint,
           format('by %s: %s', p.pause ->> 'by', p.pause ->> 'reason')
    from held h cross join lateral (select esl.pause_of(h.store_code) as pause) p where p.pause is not null
$$;

-- Labels of a store that were refused or given up, wait for approval, or wait too long; rises by themselves. p_queue:
-- as before.
create or replace function esl.label_troubles(p_queue jsonb) returns setof esl.condition_row
language sql stable set search_path = '' as $$
    select k.kind, q.store_code, min(k.since), sum(k.labels)::bigint,
           array_agg(distinct q.shop), array[q.store_code], null::bigint, max(k.detail)
    from jsonb_populate_recordset(null::esl.queue_row, p_queue) q cross join lateral (values
        ('labels_refused', q.refused, q.refused_since, q.refused_says),
        ('approval_waiting', q.guarded, q.guarded_since, null),
        ('rises_overdue', q.rises, q.rises_since, null),
        ('backlog', q.late, q.late_since, null)) k (kind, labels, since, detail)
    where k.labels > 0 group by k.kind, q.store_code
$$;

-- What is wrong with how a shop is mapped: settings that cannot be carried out, or a message that has switched it off.
create or replace function esl.mapping_troubles() returns setof esl.condition_row
language sql stable set search_path = '' as $$
    select 'settings_unusable', m.hipoink_store_code || ' of ' || esl.key_of(m), m.updated_at, 0::bigint,
           array[esl.key_of(m)], array[m.hipoink_store_code], null::bigint, esl.mapping_problem(m)
    from esl.store_mappings m where m.is_active and esl.mapping_problem(m) is not null
    union all
    select 'switched_off', k.key, k.since, (
               select count(*) from esl.hipoink_products h
               where h.store_code = any (k.stores) and h.mapping_id = any (k.mappings)),
           array[k.key], k.stores, null, k.message
    from (select esl.key_of(m) as key, max(m.updated_at) as since, array_agg(m.id) as mappings,
                 array_agg(m.hipoink_store_code order by m.hipoink_store_code) as stores,
                 max(m.switched_off) as message
          from esl.store_mappings m where m.switched_off is not null group by 1) k
$$;

-- What arrives of an active shop, or should: nothing for so many hours, wrong signatures after the last good one,
-- deliveries that wait too long, or were of no use in the last hour, or were given up.
create or replace function esl.delivery_troubles(p_silence interval) returns setof esl.condition_row
language sql stable set search_path = '' as $$
    with shops as (
        select m.source_system, m.source_store_id, min(esl.key_of(m)) as key,
               array_agg(m.hipoink_store_code order by m.hipoink_store_code) as stores
        from esl.store_mappings m where m.is_active group by 1, 2
    ), useless as (
        select i.source_system, i.source_store_id, i.state, min(i.finished_at) as since, count(*) as n,
               (array_agg(i.reason order by i.id desc))[1] as reason
        from esl.webhook_inbox i
        where i.state = 'dead' or (i.state = 'unusable' and i.finished_at > now() - interval '1 hour')
        group by 1, 2, 3
    )
    select k.kind, s.key, k.since, 0::bigint, array[s.key], s.stores, k.number, k.detail
    from shops s cross join lateral (
        select 'silent', esl.last_webhook_at(s.source_system, s.source_store_id), null::bigint, null::text
        where esl.last_webhook_at(s.source_system, s.source_store_id) < now() - p_silence
        union all
        select 'signatures_refused', r.since, r.refused, null from esl.refused() r
        where r.source_system = s.source_system and r.source_store_id = s.source_store_id and r.refused >= 3
          and (r.accepted_at is null or r.accepted_at < r.last_at)
        union all
        select case u.state when 'dead' then 'deliveries_dead' else 'deliveries_unusable' end, u.since, u.n, u.reason
        from useless u where u.source_system = s.source_system and u.source_store_id = s.source_store_id
        union all
        select 'deliveries_late', o.received_at, (esl.waiting(s.source_system, s.source_store_id)).deliveries, null
        from (select i.received_at from esl.webhook_inbox i
              where i.source_system = s.source_system and i.source_store_id = s.source_store_id
                and i.state in ('ready', 'leased') order by i.id limit 1) o
        where o.received_at < now() - interval '15 minutes'
        union all
        select 'connection_ended', c.ended_at, null, c.ended_by from esl.connections c
        where c.source_system = s.source_system and c.source_store_id = s.source_store_id and c.ended_at is not null
    ) k (kind, since, number, detail)
$$;

-- {label_servers: [names], silence_hours} -> {at, conditions: [...], alerts: [...], due: [recipients], stuck:
-- [recipients]}: what is wrong now, the alerts that are not closed, who is to be sent something, and to whom nothing
-- gets through, as several tries have shown.
create or replace function public.esl_alert_conditions(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with queue as materialized (
        select coalesce(jsonb_agg(to_jsonb(t)), '[]') as rows from esl.queue_troubles() t
    ), found as (
        select t.* from queue q cross join lateral esl.store_troubles(p -> 'label_servers', q.rows) t
        union all select t.* from queue q cross join lateral esl.label_troubles(q.rows) t
        union all select * from esl.mapping_troubles()
        union all select * from esl.delivery_troubles(make_interval(secs => 3600 * (p ->> 'silence_hours')::float8))
    )
    select jsonb_build_object(
        'at', clock_timestamp(),
        'conditions', (select coalesce(jsonb_agg(to_jsonb(f) order by f.kind, f.subject), '[]') from found f),
        'alerts', (select coalesce(jsonb_agg(to_jsonb(a) order by a.id), '[]') from esl.alerts a
                   where a.closed_at is null),
        'due', (select coalesce(jsonb_agg(distinct d.recipient), '[]') from esl.alert_deliveries d
                where d.sent_at is null and d.next_at <= now()),
        'stuck', (select coalesce(jsonb_agg(distinct d.recipient), '[]') from esl.alert_deliveries d
                  where d.sent_at is null and d.last_error is not null and d.attempts > 5))
$$;

-- functions: turns.sql
-- Whose turn it is to be pushed.

-- Whether labels of a mapping are pushed at all: it is live, or it is being removed and they with it.
create or replace function esl.is_pushed(m esl.store_mappings) returns boolean
language sql immutable as $$  -- inlined
    select (m.is_active or m.leaving is not null) and not m.is_dry_run and m.problem is null
$$;

-- Whether a queued label of a live mapping may be pushed now. Not before its variant is evaluated, since it may be of
-- an older content or policy. Drastic changes wait until all changes of their shop are judged, so that the guard sees
-- them together; a removal also until its variant's new label is accepted, so that the shelf is never empty between;
-- nothing is written to a store that the mapping has left, but that a label is blank. Not SQL, which would be
-- inlined: then the planner joins and sorts the whole queue for every batch, instead of walking its index. Its own
-- lookups are by whole keys, planned once: planned for each row, as its callers want theirs, they would cost ten times
-- as much.
create or replace function esl.may_push(q esl.sync_queue, m esl.store_mappings) returns boolean
language plpgsql stable cost 1000 set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare v_is_due boolean;
begin
    if q.variant_id <> '' and m.leaving is null then  -- foreign labels have none
        select o.due into v_is_due from esl.products o
        where o.variant_id = q.variant_id and o.source_store_id = m.source_store_id
          and o.source_system = m.source_system;
        if coalesce(v_is_due, m.awaits_read_since is not null) then
            return false;
        end if;
        if (q.operation = 'delete' or esl.is_blanked(q.label_hash)) and exists (
                select from esl.sync_queue u
                where u.mapping_id = q.mapping_id and u.variant_id = q.variant_id and u.operation = 'upsert'
                  and not esl.is_blanked(u.label_hash)) then
            return false;
        end if;
    end if;
    if q.operation = 'upsert' and m.hipoink_store_code <> q.store_code and not esl.is_blanked(q.label_hash) then
        return false;
    end if;
    if q.drastic is not null and not q.approved and exists (
            select from esl.products o
            where o.source_system = m.source_system and o.source_store_id = m.source_store_id and o.due) then
        return false;
    end if;
    -- A push since may have put it in doubt: what is not known to be lower is no rise.
    return not q.is_rise or q.in_doubt or esl.window_is_open(m.settings -> 'raise_window');
end $$;

-- Where a label may be due at a label server, in the order of turns, of one shop or of all (p: as for
-- esl_push_claim): a mapping, store and priority each (is_new: only a label that has not failed yet; is_held: what
-- is under way of the store keeps it back). Nothing of a mapping that is paused, in dry run or not evaluated for its
-- settings, and nothing of a store that refusals or somebody has paused. The other stores come first after a slow call,
-- so that none waits for more than one of them, and before one that has much under way (see esl.crowded); stores in
-- doubt come last. Among the rest mappings take turns, whoever waited longest for its turn first, and of each what is
-- most urgent. Rises and corrections go before all turns, of each mapping once between two turns (see esl.has_jump): so
-- a rise waits for one call of each other mapping with rises at most, and what is no rise for as many, however many one
-- of them has. Where one label alone is tried (a store in doubt, or p_alone: the whole server), one that has not failed
-- yet is, and then whichever has waited longest: the most urgent may be the one at fault, and would be tried for ever.
-- Every (mapping, store, priority) is a walk along the index of its own, so that nothing judges or sorts a whole queue.
create or replace function esl.turns_to_push(p jsonb, p_alone boolean)
returns table (mapping esl.store_mappings, store_code text, priority smallint, is_new boolean, is_held boolean)
language plpgsql stable set search_path = '' as $$
begin
    return query
        with recursive groups as (
            (select q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code
             from esl.sync_queue q
             where q.state = 'ready'
             order by q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code collate "C"
             limit 1)
            union all
            select n.* from groups g cross join lateral (
                select q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code
                from esl.sync_queue q
                where q.state = 'ready'
                  and (q.mapping_id, q.store_code, q.priority) > (g.mapping_id, g.store_code, g.priority)
                order by q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code collate "C"
                limit 1) n
        ), live as (
            select g.*, m as mapping, u.taken_at,
                   g.priority = 0 and esl.has_jump(esl.server_in(p), u.taken_at) as jumps,
                   p_alone or coalesce(esl.is_doubted(h), false) as alone,
                   coalesce(g.store_code = l.store_code and l.duration_ms > 1000, false) as slow,
                   case when p_alone then 0 else coalesce(c.degree, 0) end as crowded
            from groups g
            join esl.store_mappings m on m.id = g.mapping_id and esl.is_pushed(m)
                and (p -> 'shop' is null or (m.source_system, m.source_store_id)
                     = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
            left join esl.turns u on u.party = g.mapping_id::text and u.queue = 'push'
            left join esl.store_health h on h.store_code = g.store_code
            left join esl.crowded(p) c on c.store_code = g.store_code
            left join (select r.store_code, r.duration_ms from esl.sync_log r
                       where r.kind = 'result' order by r.id desc limit 1) l on true
            where coalesce(h.until <= now(), true) and g.next_attempt_at <= now()
              and esl.server_of(g.store_code) = esl.server_in(p) and not esl.store_is_paused(g.store_code)
        )
        select w.mapping, w.store_code, w.priority, n.is_new, w.crowded = 2
        from live w join (values (true), (false)) as n (is_new) on w.alone or not n.is_new
        order by w.crowded = 2, w.alone, w.slow, w.crowded, n.is_new desc, w.jumps desc, w.taken_at nulls first,
                 case when w.alone then 0 else w.priority end, w.next_attempt_at, w.created_at, w.code collate "C";
end $$;

-- The label whose turn it is, if any; its batch is of the same mapping, store, operation and max_batch. is_held:
-- nothing else is due, and what is under way of its store keeps it back.
create or replace function esl.next_push(p jsonb, p_alone boolean, out head esl.sync_queue, out is_held boolean)
language plpgsql stable set search_path = '' as $$
declare t record;
begin
    for t in select * from esl.turns_to_push(p, p_alone) loop
        select q.* into head from esl.sync_queue q
        where q.state = 'ready' and q.mapping_id = (t.mapping).id and q.store_code = t.store_code
          and q.priority = t.priority and q.next_attempt_at <= now()
          and (not t.is_new or (q.attempts = 0 and q.refused_at is null))
          and esl.may_push(q, t.mapping)
        order by q.next_attempt_at, q.created_at, q.code collate "C" limit 1;
        if found then
            is_held := t.is_held;
            return;
        end if;
    end loop;
end $$;

-- Whether a mapping that had its last turn then may go before the others with its rises: not if nobody had one at its
-- label server since.
create or replace function esl.has_jump(p_server text, p_taken_at timestamptz) returns boolean
language sql stable set search_path = '' as $$
    select p_taken_at is null or p_taken_at < coalesce(
        (select t.taken_at from esl.turns t where t.queue = 'bulk' and t.party = p_server), '-infinity')
$$;

-- Whether anything is on its way to a store, or may be pushed to it now.
create or replace function esl.has_push(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.sync_queue q
                   where q.store_code = p_store and q.state = 'leased' and q.lease_until > now())
        or (not exists (select from esl.store_health h where h.store_code = p_store and h.until > now())
            and not esl.store_is_paused(p_store)
            and exists (select from esl.store_mappings m join esl.sync_queue q on q.mapping_id = m.id
                        where esl.is_pushed(m) and q.store_code = p_store
                          and q.state = 'ready' and q.next_attempt_at <= now() and esl.may_push(q, m)))
$$;

-- functions: waiting.sql
-- What waits, and why: labels of the queue and deliveries of the inbox; and how much room all of it takes.

-- Whether a queued label waits for its window and for nothing else (p_opens: see esl.window_opens).
create or replace function esl.waits_for_window(q esl.sync_queue, p_opens timestamptz) returns boolean
language sql immutable as $$  -- inlined
    select p_opens is not null and q.is_rise and not q.in_doubt and q.state = 'ready'
$$;

-- How a queued label stands, in a word: failed (refused), dead (given up), approval, rejected, window or waiting.
create or replace function esl.waiting_state(q esl.sync_queue, p_opens timestamptz) returns text
language sql immutable as $$  -- inlined
    select case when q.state in ('failed', 'dead') then q.state
                when q.state = 'guarded' then case when q.rejected_at is null then 'approval' else 'rejected' end
                when esl.waits_for_window(q, p_opens) then 'window' else 'waiting' end
$$;

-- What speaks against a push to a store now, whatever the label: {why, until}; null: nothing.
create or replace function esl.store_waits(p_store text, m esl.store_mappings) returns jsonb
language sql stable set search_path = '' as $$
    select case
        when esl.store_is_paused(p_store) then jsonb_build_object('why', 'paused') || esl.pause_of(p_store)
        when not m.is_active and m.leaving is null then jsonb_build_object('why', 'inactive')
        when m.is_dry_run then jsonb_build_object('why', 'dry_run')
        when m.problem is not null then jsonb_build_object('why', 'problem')
        when h.until > now() then jsonb_build_object('why', 'store_refuses', 'until', h.until)
        when s.down_since is not null then jsonb_build_object('why', 'server_down', 'until', s.probe_at) end
    from (select 1) one
    left join esl.store_health h on h.store_code = p_store
    left join esl.label_servers s on s.server = esl.server_of(p_store)
$$;

-- Why a queued label is not on the shelf yet, in a word, and until when where that is known; of several reasons the
-- one that ends last by itself. (Words for people: model/waiting.py.)
create or replace function esl.why_waiting(q esl.sync_queue, m esl.store_mappings, p_opens timestamptz,
                                           out why text, out until timestamptz)
language plpgsql stable set search_path = '' as $$
declare
    v_store jsonb;
    v_due   boolean := coalesce((select o.due from esl.products o
        where o.variant_id = q.variant_id and o.source_store_id = m.source_store_id
          and o.source_system = m.source_system), false);
begin
    if q.state in ('failed', 'dead', 'guarded', 'leased') then
        why := case when q.rejected_at is not null then 'rejected'
                    else (jsonb_build_object('failed', 'refused', 'dead', 'given_up', 'guarded', 'approval',
                                             'leased', 'under_way') ->> q.state) end;
        return;
    end if;
    v_store := esl.store_waits(q.store_code, m);
    if v_store is not null then
        why := v_store ->> 'why';
        until := (v_store ->> 'until')::timestamptz;
    elsif esl.waits_for_window(q, p_opens) then
        why := 'window';
        until := p_opens;
    elsif q.next_attempt_at > now() then
        why := 'retry';
        until := q.next_attempt_at;
    else
        why := case
            when v_due then 'to_judge'
            when q.variant_id <> '' and m.awaits_read_since is not null and q.drastic is not null then 'to_read'
            when q.drastic is not null and not q.approved then 'to_judge_all'
            when q.operation = 'delete' then 'after_others' else 'turn' end;
    end if;
end $$;

-- The queued labels that somebody asks for ({store?, state?, limit, after?: [since, code, store_code]}), those first
-- that have waited longest.
create or replace function esl.waiting_page(p jsonb)
returns table (q esl.sync_queue, m esl.store_mappings, opens timestamptz, state text)
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select x as m, esl.window_opens(x.settings -> 'raise_window') as opens from esl.store_mappings x
    )
    select q, x.m, x.opens, k.state
    from esl.sync_queue q join mappings x on (x.m).id = q.mapping_id
    cross join lateral (select esl.waiting_state(q, x.opens) as state) k
    where (p ->> 'store' is null or q.store_code = p ->> 'store') and (p ->> 'state' is null or k.state = p ->> 'state')
      and (p -> 'after' is null or (q.created_at, q.code collate "C", q.store_code collate "C")
           > ((p #>> '{after,0}')::timestamptz, p #>> '{after,1}', p #>> '{after,2}'))
    order by q.created_at, q.code collate "C", q.store_code collate "C" limit (p ->> 'limit')::int
$$;

-- How many labels wait in each store and state, since when, and until when for a window.
create or replace function esl.waiting_counts(p jsonb) returns jsonb
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select x.id, esl.window_opens(x.settings -> 'raise_window') as opens from esl.store_mappings x
    ), counts as (
        select q.store_code, k.state, count(*) as labels, min(q.created_at) as oldest,
               min(x.opens) filter (where k.state = 'window') as until
        from esl.sync_queue q join mappings x on x.id = q.mapping_id
        cross join lateral (select esl.waiting_state(q, x.opens) as state) k
        where (p ->> 'store' is null or q.store_code = p ->> 'store')
          and (p ->> 'state' is null or k.state = p ->> 'state')
        group by 1, 2
    )
    select coalesce(jsonb_agg(to_jsonb(c) order by c.store_code, c.state), '[]') from counts c
$$;

-- {store?, state?, limit, after?} -> {counts: [{store_code, state, labels, oldest, until}], labels: [{store_code, code,
--   state, why, until, source_store_id, variant_id, title, variant_title, operation, price_before, price_after, since,
--   attempts, refusals, next_attempt_at, last_error, answer: {at, outcome, http_status, error_code, message, answer}}]}
-- What is not on the shelf yet, and why. answer: the label server's last one for this label, if that was no yes.
create or replace function public.esl_waiting_labels(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
begin
    return jsonb_build_object('counts', esl.waiting_counts(p), 'labels', (
        select coalesce(jsonb_agg(to_jsonb(t) order by t.since, t.code collate "C", t.store_code collate "C"), '[]')
        from (
            select (w.q).store_code, (w.q).code, w.state, y.why, y.until, (w.m).source_store_id, (w.q).variant_id,
                   o.title, o.variant_title, (w.q).operation, esl.price_of(h.label)::text as price_before,
                   esl.price_of((w.q).label)::text as price_after, (w.q).created_at as since, (w.q).attempts,
                   (w.q).refusals, (w.q).next_attempt_at, (w.q).last_error,
                   case when a.outcome <> 'accepted' then to_jsonb(a) end as answer
            from esl.waiting_page(p) w
            cross join lateral esl.why_waiting(w.q, w.m, w.opens) y
            left join esl.hipoink_products h on h.code = (w.q).code and h.store_code = (w.q).store_code
            left join esl.products o on o.variant_id = (w.q).variant_id and o.source_system = (w.m).source_system
                                    and o.source_store_id = (w.m).source_store_id
            left join lateral (
                select l.at, l.outcome, l.http_status, l.error_code, l.message, l.answer from esl.sync_log l
                where l.code = (w.q).code and l.store_code = (w.q).store_code and l.kind = 'result'
                order by l.id desc limit 1) a on true) t));
end $$;

-- {shops?, state?, limit, after?: id} -> {deliveries: [{id, source_system, source_store_id, topic, webhook_id, state,
--   why, reason, thing, title, triggered_at, received_at, finished_at, attempts, bytes}]}, newest first.
-- What came and was not used (unusable, dead), or waits; states as people say them: unusable, dead or waiting.
create or replace function public.esl_waiting_deliveries(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare v_states text[] := case p ->> 'state' when 'waiting' then '{ready,leased}' when 'unusable' then '{unusable}'
                                              when 'dead' then '{dead}' else '{ready,leased,unusable,dead}' end;
begin
    return jsonb_build_object('deliveries', (select coalesce(jsonb_agg(to_jsonb(t) order by t.id desc), '[]') from (
        select i.id, i.source_system, i.source_store_id, i.topic, i.webhook_id,
               case when i.state in ('ready', 'leased') then 'waiting' else i.state end as state,
               case when i.state = 'leased' then 'under_way'
                    when i.state <> 'ready' then i.state
                    when not esl.is_mapped(i.source_system, i.source_store_id) then 'no_store'
                    when i.contested is not null then 'contested' else 'turn' end as why,
               i.reason, coalesce(i.thing, i.contested) as thing, n.title, i.triggered_at, i.received_at,
               i.finished_at, i.attempts, octet_length(i.body) as bytes
        from esl.webhook_inbox i
        left join lateral (select o.title from esl.products o
                           where i.thing like 'product:%' and o.product_id = substr(i.thing, 9)
                             and o.source_store_id = i.source_store_id and o.source_system = i.source_system
                           limit 1) n on true
        where (i.state in ('ready', 'leased') or i.state in ('unusable', 'dead')) and i.state = any (v_states)
          and (p -> 'shops' is null or (i.source_system, i.source_store_id) in (
               select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')))
          and (p ->> 'after' is null or i.id < (p ->> 'after')::bigint)
        order by i.id desc limit (p ->> 'limit')::int) t));
end $$;

-- {} -> {database_bytes, tables: [{name, bytes, rows}]}: the room that the buffer takes, largest first; rows as the
-- planner guesses them (null: it has not looked yet).
create or replace function public.esl_sizes(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'database_bytes', pg_catalog.pg_database_size(pg_catalog.current_database()),
        'tables', coalesce(jsonb_agg(to_jsonb(t) order by t.bytes desc, t.name), '[]'))
    from (select c.relname::text as name, pg_catalog.pg_total_relation_size(c.oid) as bytes,
                 case when c.reltuples >= 0 then c.reltuples::bigint end as rows
          from pg_catalog.pg_class c where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r') t
$$;

-- functions: work.sql
-- Work shared by many runs: what is due, and the claims of runs that have ended.

-- {servers?, label_servers?, build?} -> {servers: {name: {due, inbox, variants, queue, refresh, graces, is_fed, outage,
-- drain}}, shops, elsewhere}: what the sensor and the drains ask, of these label servers (default: `default`). due:
-- a drain run would find work now. is_fed: it has a shop. outage: {since, probe_at, reason} while the server is
-- down. elsewhere: {name: [store codes]} of active mappings at servers that are not among label_servers.
create or replace function public.esl_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with shops as materialized (
        -- In order, so that whatever the planner believes, it asks the index of each shop.
        select r.*, i.id is not null as inbox, r.is_active and o.revision is not null as variants
        from esl.readers(p) r
        left join lateral (
            select i.id from esl.webhook_inbox i
            where i.source_system = r.source_system and i.source_store_id = r.source_store_id
              and (i.state = 'ready' or (i.state = 'leased' and i.lease_until < now()))
            order by i.id limit 1) i on true
        left join lateral (
            select o.revision from esl.products o
            where o.source_store_id = r.source_store_id and o.source_system = r.source_system and o.due
            order by o.revision limit 1) o on true
    ), found as (
        select a.name,
            exists (select from shops s where a.name = any (s.servers)) as is_fed,
            exists (select from shops s where s.inbox and a.name = any (s.servers)) as inbox,
            exists (select from shops s where s.variants and a.name = any (s.servers)) as variants,
            not esl.is_down(a.name) and (
                exists (select from esl.sync_queue q where q.state = 'leased' and q.lease_until < now()
                          and esl.server_of(q.store_code) = a.name)
                or (select (n.head).code is not null
                    from esl.next_push(jsonb_build_object('label_server', a.name), false) n)) as queue,
            exists (select from esl.refreshable(a.name)) as refresh,
            exists (select from esl.graces g
                    where g.until <= clock_timestamp() and esl.server_of(g.store_code) = a.name) as graces
        from jsonb_array_elements_text(coalesce(p -> 'servers', '["default"]')) as a (name)
    )
    select jsonb_build_object(
        'servers', (select jsonb_object_agg(f.name, jsonb_build_object(
            'due', f.inbox or f.variants or f.queue or f.refresh or f.graces, 'is_fed', f.is_fed,
            'inbox', f.inbox, 'variants', f.variants, 'queue', f.queue, 'refresh', f.refresh, 'graces', f.graces,
            'outage', (select jsonb_build_object('since', down_since, 'probe_at', probe_at, 'reason', last_error)
                       from esl.label_servers where server = f.name and down_since is not null),
            'drain', (select jsonb_build_object('holder', l.holder, 'until', l.until,
                          'wants_relief', esl.wants_relief(l, (p ->> 'build')::int))
                      from esl.leases l
                      where l.name = 'event_sync:' || f.name and l.until > clock_timestamp()))) from found f),
        'shops', (select coalesce(jsonb_agg(jsonb_build_object(
                      'source_system', source_system, 'source_store_id', source_store_id)
                      order by source_system, source_store_id), '[]') from shops),
        'elsewhere', case when p -> 'label_servers' is null then '{}'
                          else esl.stores_elsewhere(p -> 'label_servers') end)
$$;

-- For the owner of a server that has just started, when no worker can be alive: what dead ones held is due at once
-- instead of when its lease ends. Not in public: no client can call it.
create or replace function esl.release_claims() returns void
language sql set search_path = '' as $$
    update esl.webhook_inbox set lease_until = now() where state = 'leased';
    update esl.sync_queue set lease_until = now() where state = 'leased';
    delete from esl.flights;
    delete from esl.calls;
    update esl.refresh_marks set lease_until = now() where lease_until is not null;
    update esl.label_servers set probe_at = now() where probe_at > now();
    delete from esl.leases;
$$;

-- {run_id} -> {labels, deliveries}: for the retry of a run that has ended without finishing them; what it had claimed
-- is due at once. Should its process work on all the same, it is a worker that is late, as after any lease.
create or replace function public.esl_claims_release(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_labels int; v_deliveries int;
begin
    update esl.sync_queue q set lease_until = now()
    where q.state = 'leased' and q.lease_until > now()
      and exists (select from esl.sync_log l
                  where l.push_id = q.push_id and l.kind = 'intent' and l.run_id = p ->> 'run_id');
    get diagnostics v_labels = row_count;
    delete from esl.calls c using esl.flights f where f.run_id = p ->> 'run_id' and c.recorded_as = f.push_id;
    delete from esl.flights where run_id = p ->> 'run_id';
    update esl.refresh_marks set lease_until = now() where lease_until > now() and run_id = p ->> 'run_id';
    update esl.webhook_inbox set lease_until = now()
    where state = 'leased' and lease_until > now() and run_id = p ->> 'run_id';
    get diagnostics v_deliveries = row_count;
    return jsonb_build_object('labels', v_labels, 'deliveries', v_deliveries);
end $$;

select esl.drop_older_overloads();
select esl.restrict_functions();
comment on schema esl is '156 374439edd66392e7d9c9bf0a1b04b39247febf367e4973af2ca2ad3027d3cb83';
$esl_functions$;
end $esl_pipeline$;
