-- The rows that callers send, each said once: jsonb_populate_recordset(null::esl.<name>, …) reads them.
-- A type cannot be replaced, so each is made anew; the functions that use it go with it and are made after this file.

-- inbox, products, snapshot

-- A delivery, as a receiver sends it.
drop type if exists esl.delivery_row cascade;
create type esl.delivery_row as (
    source_system text, source_store_id text, topic text, webhook_id text, event_id text, triggered_at timestamptz,
    api_version text, said_at timestamptz, body_base64 text, body_sha256 text, state text, reason text, proven boolean
);

-- A delivery that a call has kept: its row, and which it is.
drop type if exists esl.kept_row cascade;
create type esl.kept_row as (
    id bigint, source_system text, source_store_id text, topic text, webhook_id text
);

-- An event of a claim, as esl_variants_merge ends it: what it told of, in which version.
drop type if exists esl.event_row cascade;
create type esl.event_row as (
    id bigint, state text, reason text, product_id text, inventory_item_id text, location_id text,
    version_at timestamptz, triggered_at timestamptz, body_sha256 text collate "C"
);

-- A version of a product, without its content.
drop type if exists esl.product_row cascade;
create type esl.product_row as (
    source_system text, source_store_id text, product_id text, version_at timestamptz, triggered_at timestamptz,
    body_sha256 text collate "C", deleted boolean, missing_variants int, variant_ids text[], event_ids bigint[]
);

-- A variant of a version of a product, without its content.
drop type if exists esl.variant_row cascade;
create type esl.variant_row as (
    source_system text, source_store_id text, product_id text, variant_id text, version_at timestamptz,
    triggered_at timestamptz, body_sha256 text collate "C"
);

-- An inventory item that a read names, of a variant or a level.
drop type if exists esl.item_row cascade;
create type esl.item_row as (source_system text, source_store_id text, inventory_item_id text);

-- What waits, and what has ended, of the deliveries of a statement (esl.count_deliveries).
drop type if exists esl.waiting_row cascade;
create type esl.waiting_row as (source_system text, source_store_id text, n bigint, bytes bigint);
drop type if exists esl.ended_row cascade;
create type esl.ended_row as (
    id bigint, source_system text, source_store_id text, received_at timestamptz, api_version text, state text,
    reason text, proven boolean, n int
);

-- Wrong signatures that a receiver has counted of a shop.
drop type if exists esl.refused_row cascade;
create type esl.refused_row as (
    source_system text, source_store_id text, refused bigint, since timestamptz, last_at timestamptz
);

-- One of many shops (shops in the doors' arguments).
drop type if exists esl.shop_row cascade;
create type esl.shop_row as (source_system text, source_store_id text);

-- A file as a source's reader finds it.
drop type if exists esl.file_row cascade;
create type esl.file_row as (name text, size bigint, modified_at timestamptz, sha256 text, kind text);

-- What is known of a product that is listed without saying which one it is.
drop type if exists esl.unclear_row cascade;
create type esl.unclear_row as (lowest text, highest text, title text);

-- labels, queue, drift

-- A variant that was evaluated, at the revision that it had then.
drop type if exists esl.evaluated_row cascade;
create type esl.evaluated_row as (source_system text, source_store_id text, variant_id text, revision bigint);

-- What the evaluation of a variant puts on a label of one mapping.
drop type if exists esl.label_row cascade;
create type esl.label_row as (
    mapping_id uuid, variant_id text, revision bigint, store_code text, state text, code text, precedence text,
    label jsonb, label_hash text, event_ids bigint[]
);

-- What the evaluation of a variant found.
drop type if exists esl.finding_row cascade;
create type esl.finding_row as (
    mapping_id uuid, variant_id text, revision bigint, check_name text, level text, column_name text, value text,
    reason text, action text
);

-- A place where a label hangs or may hang, with all that its decision rests on (see esl.places and esl.what_is_due).
--   wins           whether anybody's label wins the place; null: nobody publishes one for it. mapping_id … event_ids:
--                  that label
--   shown          the label of the ledger (is_shown: there is one), is_its_own: of the variant that wins
--   pending        the operation that waits or is on its way, and what with. in_doubt: the server may have taken that
--   owner_mapping  whose the place is, by the ledger or the queue. is_home: its mapping feeds this store, is_kept: the
--                  label is to stay as it is, is_paused: its mapping is
--   blank          the owner's label without content, where it wants that; null: it does not
drop type if exists esl.place_row cascade;
create type esl.place_row as (
    store_code text, code text,
    wins boolean, mapping_id uuid, variant_id text, label jsonb, label_hash text, event_ids bigint[],
    shown jsonb, shown_hash text, is_shown boolean, is_its_own boolean,
    pending text, pending_label jsonb, pending_hash text, pending_mapping uuid, pending_variant text,
    pending_events bigint[], in_doubt boolean,
    owner_mapping uuid, owner_variant text, owner_events bigint[], is_home boolean, is_kept boolean, is_paused boolean,
    blank jsonb
);

-- A label of a push, as it was claimed.
drop type if exists esl.pushed_row cascade;
create type esl.pushed_row as (code text, generation bigint);

-- A difference between the label server's list and the ledger (see esl_drift_repair).
drop type if exists esl.drift_row cascade;
create type esl.drift_row as (
    code text, kind text, push_id uuid, ours jsonb, theirs jsonb, label jsonb, label_hash text
);
