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
