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
