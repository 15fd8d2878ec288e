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
