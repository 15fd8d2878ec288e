-- The inbox: one insert per delivery, leased claims, completion.

-- {deliveries: [...]} -> {received, inserted}. A delivery that is already there is not an error. 22023: none that a receiver
-- sends (esl.check_deliveries).
-- A copy has the webhook id of another delivery, or its body and trigger time. One that was kept as unusable only because of
-- its unsigned headers gives way to a good copy; of a body that is there already, none is kept as unusable.
-- said_at: the time in the signed body. proven: signed with a secret that only this shop has. The deliveries that say that a shop has left come without their body and take effect
-- here, in the same transaction (see esl.shop_left).
create or replace function public.esl_inbox_add(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_added jsonb; v_again jsonb := '[]'; v_order record;
begin
    perform esl.check_deliveries(p -> 'deliveries');
    with added as (
        insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, event_id, triggered_at,
                                       api_version, order_key, said_at, body, body_sha256, state, reason, proven, finished_at)
        select d.source_system, d.source_store_id, d.topic, d.webhook_id, d.event_id, d.triggered_at,
               d.api_version, d.order_key, d.said_at, decode(d.body_base64, 'base64'), d.body_sha256, d.state, d.reason,
               coalesce(d.proven, false), case when d.state <> 'ready' then now() end
        from jsonb_to_recordset(p -> 'deliveries') as d (
            source_system text, source_store_id text, topic text, webhook_id text, event_id text,
            triggered_at timestamptz, api_version text, order_key text, said_at timestamptz, body_base64 text,
            body_sha256 text, state text, reason text, proven boolean)
        where d.state <> 'unusable' or not exists (
            select from esl.webhook_inbox i
            where i.body_sha256 = d.body_sha256 and i.topic = d.topic and i.source_store_id = d.source_store_id
              and i.source_system = d.source_system)
        on conflict do nothing
        returning id, source_system, source_store_id, topic, state, said_at
    )
    select coalesce(jsonb_agg(to_jsonb(a)), '[]') into v_added from added a;

    if jsonb_array_length(v_added) < jsonb_array_length(p -> 'deliveries') then
        with again as (
            update esl.webhook_inbox i
            set event_id = d.event_id, triggered_at = d.triggered_at, api_version = d.api_version,
                order_key = d.order_key, said_at = d.said_at, body = decode(d.body_base64, 'base64'), received_at = now(),
                state = d.state, reason = d.reason, attempts = 0, proven = coalesce(d.proven, false),
                finished_at = case when d.state <> 'ready' then now() end
            from jsonb_to_recordset(p -> 'deliveries') as d (
                source_system text, source_store_id text, topic text, webhook_id text, event_id text,
                triggered_at timestamptz, api_version text, order_key text, said_at timestamptz, body_base64 text,
                body_sha256 text, state text, reason text, proven boolean)
            where i.source_system = d.source_system and i.source_store_id = d.source_store_id
              and i.topic = d.topic and i.body_sha256 = d.body_sha256
              and i.state = 'unusable' and d.state <> 'unusable'
              and (i.webhook_id = d.webhook_id or i.triggered_at is not distinct from d.triggered_at)
              and not exists (
                  select from esl.webhook_inbox o
                  where o.body_sha256 = d.body_sha256 and o.topic = d.topic and o.source_store_id = d.source_store_id
                    and o.source_system = d.source_system and o.triggered_at is not distinct from d.triggered_at
                    and o.id <> i.id)
            returning i.id, i.source_system, i.source_store_id, i.topic, i.state, i.said_at
        )
        select coalesce(jsonb_agg(to_jsonb(a)), '[]') into v_again from again a;
    end if;

    for v_order in
        select * from jsonb_to_recordset(v_added || v_again) as l (
            id bigint, source_system text, source_store_id text, topic text, state text, said_at timestamptz)
        where l.topic in ('app/uninstalled', 'shop/redact') and l.state = 'done' order by l.id
    loop
        perform esl.shop_left(v_order.id, v_order.source_system, v_order.source_store_id, v_order.topic, v_order.said_at);
    end loop;

    return jsonb_build_object('received', jsonb_array_length(p -> 'deliveries'),
                              'inserted', jsonb_array_length(v_added || v_again));
end $$;

-- {claim_id, limit, max_bytes, lease_seconds, max_attempts, run_id, shop?: {source_system, source_store_id}}
-- -> {events: [...]}, oldest first. Only shops with a mapping: the others' events wait.
-- The same claim_id again returns the same rows, so that a lost answer parks nothing.
-- Where the oldest event was claimed before and never finished, something may be in the batch that no run survives: each
-- time the batch is halved, until the culprit stands alone and dies of its attempts without company.
create or replace function public.esl_inbox_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_claim uuid := (p ->> 'claim_id')::uuid;
    v_now   timestamptz := clock_timestamp();
begin
    if not exists (select from esl.webhook_inbox where claim_id = v_claim and state = 'leased') then
        with shops as (
            select distinct m.source_system, m.source_store_id from esl.store_mappings m
            where p -> 'shop' is null
               or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}')
        ), open_events as (
            select i.id, i.attempts, octet_length(i.body) as bytes
            from shops s
            cross join lateral (
                select e.id, e.attempts, e.body from esl.webhook_inbox e
                where e.source_system = s.source_system and e.source_store_id = s.source_store_id
                  and (e.state = 'ready' or (e.state = 'leased' and e.lease_until < v_now))
                order by e.id limit (p ->> 'limit')::int for update skip locked
            ) i
            order by i.id limit (p ->> 'limit')::int
        ), sized as (
            select id, attempts, sum(bytes) over (order by id) - bytes as bytes_before,
                   row_number() over (order by id) as place,
                   case when first_value(attempts) over (order by id) >= (p ->> 'max_attempts')::int - 1 then 1
                        else (p ->> 'limit')::int / 2 ^ first_value(attempts) over (order by id) end as most
            from open_events where attempts < (p ->> 'max_attempts')::int
        ), exhausted as (
            update esl.webhook_inbox i
            set state = 'dead', finished_at = v_now, claim_id = null, lease_until = null,
                reason = format('given up after %s attempts: the run that read it never finished', i.attempts)
            from open_events s where s.id = i.id and s.attempts >= (p ->> 'max_attempts')::int
        )
        update esl.webhook_inbox i
        set state = 'leased', attempts = i.attempts + 1, claim_id = v_claim, run_id = p ->> 'run_id',
            lease_until = v_now + make_interval(secs => (p ->> 'lease_seconds')::float8)
        from sized s
        where s.id = i.id and s.bytes_before < (p ->> 'max_bytes')::bigint
          and s.place <= greatest(s.most, 1);
    end if;
    return jsonb_build_object('events', coalesce((
        select jsonb_agg(jsonb_build_object(
                   'id', id, 'source_system', source_system, 'source_store_id', source_store_id, 'topic', topic,
                   'webhook_id', webhook_id, 'triggered_at', triggered_at, 'received_at', received_at,
                   'body_sha256', body_sha256, 'body_base64', encode(body, 'base64')) order by id)
        from esl.webhook_inbox where claim_id = v_claim and state = 'leased'), '[]'));
end $$;
