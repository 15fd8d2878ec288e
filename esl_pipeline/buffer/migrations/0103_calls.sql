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
