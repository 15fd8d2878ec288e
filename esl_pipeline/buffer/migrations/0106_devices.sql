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
