-- What is told of the past: from a label back to its pushes, variant and webhooks; who changed which mapping.

-- {code, store?, limit} -> {places: [{store_code, label_server, ledger, queue, grace, variants, log, deliveries,
-- forgotten}]}: from a label back to its pushes, runs, variant and webhooks. Newest log rows first. queue: with why it
-- waits (why, until: esl.why_waiting). grace: where its
-- removal waits, with the physical labels that are bound to it. forgotten: how many webhooks are gone.
create or replace function public.esl_trace(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with places as (
        select distinct store_code from (
            select store_code, code from esl.labels
            union all select store_code, code from esl.hipoink_products
            union all select store_code, code from esl.sync_log) x
        where x.code = p ->> 'code' and (p ->> 'store' is null or x.store_code = p ->> 'store')
    ), log as (
        select s.store_code, l.* from places s cross join lateral (
            select l.id, l.at, l.kind, l.push_id, l.mapping_id, l.variant_id, l.operation, l.label, l.attempt,
                   l.run_id, l.asset, l.partition, l.event_ids, l.outcome, l.http_status, l.error_code, l.message,
                   l.answer, l.duration_ms
            from esl.sync_log l where l.store_code = s.store_code and l.code = p ->> 'code'
            order by l.id desc limit (p ->> 'limit')::int) l
    )
    select jsonb_build_object('places', coalesce(jsonb_agg(jsonb_build_object(
        'store_code', s.store_code, 'label_server', esl.server_of(s.store_code),
        'ledger', (select to_jsonb(h) from esl.hipoink_products h
                   where h.store_code = s.store_code and h.code = p ->> 'code'),
        'refresh', (select esl.refresh_after(h.store_code, h.accepted_at) from esl.hipoink_products h
                    where h.store_code = s.store_code and h.code = p ->> 'code'),
        'queue', (select to_jsonb(q) || to_jsonb(y)
                  from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
                  cross join lateral esl.why_waiting(q, m, esl.window_opens(m.settings -> 'raise_window')) y
                  where q.store_code = s.store_code and q.code = p ->> 'code'),
        'grace', (select to_jsonb(g) || jsonb_build_object('bound', esl.bound_labels(g.store_code, g.code))
                  from esl.graces g where g.store_code = s.store_code and g.code = p ->> 'code'),
        'variants', (select coalesce(jsonb_agg(to_jsonb(o) || jsonb_build_object(
                             'mapping_id', m.id, 'label_state', b.state, 'collides', b.collides,
                             'file', esl.file_of(o),
                             'findings', (select coalesce(jsonb_agg(to_jsonb(f) order by f.check_name), '[]')
                                 from esl.findings f where f.mapping_id = m.id and f.variant_id = o.variant_id
                                   and f.resolved_at is null))), '[]')
                     from esl.store_mappings m
                     join esl.products o on o.source_system = m.source_system
                                        and o.source_store_id = m.source_store_id
                     left join esl.labels b on b.mapping_id = m.id and b.variant_id = o.variant_id
                     where (m.id, o.variant_id) in (
                         select l.mapping_id, l.variant_id from log l where l.store_code = s.store_code
                         union select l.mapping_id, l.variant_id from esl.labels l
                         where l.store_code = s.store_code and l.code = p ->> 'code')),
        'log', (select coalesce(jsonb_agg(to_jsonb(l) order by l.id desc), '[]') from log l
                where l.store_code = s.store_code),
        'deliveries', (select coalesce(jsonb_agg(jsonb_build_object(
                               'id', i.id, 'topic', i.topic, 'webhook_id', i.webhook_id, 'event_id', i.event_id,
                               'triggered_at', i.triggered_at, 'received_at', i.received_at, 'state', i.state,
                               'run_id', i.run_id) order by i.id desc), '[]')
                       from esl.webhook_inbox i where i.id in (
                           select unnest(l.event_ids) from log l where l.store_code = s.store_code)),
        'forgotten', (select count(distinct e.id) from log l cross join lateral unnest(l.event_ids) e (id)
                      where l.store_code = s.store_code
                        and not exists (select from esl.webhook_inbox i where i.id = e.id))
        ) order by s.store_code), '[]')) from places s
$$;

-- Kept with each change of a mapping, in its transaction. A call that changes nothing leaves no row.
create or replace function esl.note_change(p_by text, p_old jsonb, p_new jsonb) returns void
language sql set search_path = '' as $$
    insert into esl.mapping_changes (by, mapping_id, old, new)
    select coalesce(p_by, 'role:' || session_user), (p_new ->> 'id')::uuid, p_old, p_new
    where p_old is null or p_old - 'updated_at' <> p_new - 'updated_at'
$$;

-- {store?, limit} -> {changes: [{at, by, mapping_id, old, new}]}: who made and changed the mappings, newest first.
create or replace function public.esl_mapping_history(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('changes', coalesce(jsonb_agg(to_jsonb(c) - 'id' order by c.id desc), '[]')) from (
        select * from esl.mapping_changes
        where p ->> 'store' is null
           or p ->> 'store' in (old ->> 'hipoink_store_code', new ->> 'hipoink_store_code')
        order by id desc limit (p ->> 'limit')::int) c
$$;

-- The trigger function of every append-only table.
create or replace function esl.refuse_change() returns trigger language plpgsql set search_path = '' as $$
begin
    raise exception '%.% is append-only', tg_table_schema, tg_table_name using errcode = '42501';
end $$;
