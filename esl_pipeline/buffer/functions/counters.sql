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
