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
