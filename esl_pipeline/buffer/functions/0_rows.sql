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
