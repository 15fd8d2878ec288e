-- For people: store mappings, status, trace, findings, sending dead letters again.

-- A shop's variants are evaluated again: its labels follow the mapping, no webhook needed.
create or replace function esl.evaluate_again(p_source_system text, p_source_store_id text) returns void
language sql set search_path = '' as $$
    update esl.products set due = true, revision = nextval('esl.revision')
    where source_system = p_source_system and source_store_id = p_source_store_id
$$;

-- {source_system, source_store_id, hipoink_store_code, is_active?, is_dry_run?, settings?, by?} -> the mapping.
-- by: who makes it, for esl.mapping_changes. 23505: exists already.
create or replace function public.esl_mapping_create(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare m esl.store_mappings;
begin
    insert into esl.store_mappings (source_system, source_store_id, hipoink_store_code, is_active, is_dry_run, settings)
    values (p ->> 'source_system', p ->> 'source_store_id', p ->> 'hipoink_store_code',
            coalesce((p ->> 'is_active')::boolean, true), coalesce((p ->> 'is_dry_run')::boolean, false),
            coalesce(p -> 'settings', '{}'))
    returning * into m;
    perform esl.note_change(p ->> 'by', null, m);
    perform esl.evaluate_again(m.source_system, m.source_store_id);
    return to_jsonb(m);
end $$;

-- {id, source_system?, source_store_id?, hipoink_store_code?, is_active?, is_dry_run?, settings?, by?} -> the mapping,
-- or null. Another store: its labels are written there, then removed from the one before (see esl.guard).
-- Another shop: the labels of the one before leave the store.
create or replace function public.esl_mapping_update(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare m esl.store_mappings; v_before esl.store_mappings; v_stores text[]; v_codes text[];
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.labels', 0));
    select * into v_before from esl.store_mappings where id = (p ->> 'id')::uuid;
    update esl.store_mappings set
        source_system = coalesce(p ->> 'source_system', source_system),
        source_store_id = coalesce(p ->> 'source_store_id', source_store_id),
        hipoink_store_code = coalesce(p ->> 'hipoink_store_code', hipoink_store_code),
        is_active = coalesce((p ->> 'is_active')::boolean, is_active),
        is_dry_run = coalesce((p ->> 'is_dry_run')::boolean, is_dry_run),
        settings = coalesce(p -> 'settings', settings),
        updated_at = now()
    where id = (p ->> 'id')::uuid
    returning * into m;
    if not found then
        return null;
    end if;
    perform esl.note_change(p ->> 'by', v_before, m);
    if (v_before.source_system, v_before.source_store_id) <> (m.source_system, m.source_store_id) then
        with gone as (
            update esl.labels set state = 'withdrawn' where mapping_id = m.id returning store_code, code
        )
        select array_agg(store_code), array_agg(code) into v_stores, v_codes from gone;
        perform esl.requeue(v_stores, v_codes);
    end if;
    if v_before.is_active and not m.is_active then
        -- Its own labels are not evaluated while it is paused, but those they collided with are free now.
        select array_agg(store_code), array_agg(code) into v_stores, v_codes
        from esl.labels where mapping_id = m.id and collides;
        perform esl.requeue(v_stores, v_codes);
    end if;
    if m.is_active and not v_before.is_active then
        -- Labels that left while the mapping was paused leave the store now.
        select array_agg(s.store_code), array_agg(s.code) into v_stores, v_codes
        from esl.labels l join esl.hipoink_products s using (mapping_id, variant_id)
        where l.mapping_id = m.id and l.state = 'withdrawn';
        perform esl.requeue(v_stores, v_codes);
    end if;
    if m.is_active then
        perform esl.evaluate_again(m.source_system, m.source_store_id);
    end if;
    return to_jsonb(m);
end $$;

-- {id?} -> {mappings: [...]}, with currency and taxes_included as the shop says, where that is known.
create or replace function public.esl_mapping_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('mappings', coalesce(jsonb_agg(to_jsonb(m) || jsonb_build_object(
               'currency', s.currency, 'taxes_included', s.taxes_included) order by m.created_at, m.id), '[]'))
    from esl.store_mappings m
    left join esl.shops s on s.source_system = m.source_system and s.source_store_id = m.source_store_id
    where p ->> 'id' is null or m.id = (p ->> 'id')::uuid
$$;

-- {store?, code?} -> {labels, deliveries}: refused, failed and dead pushes, and dead deliveries (without store and code),
-- are due again with a clean count of attempts; without code, stores that pause are tried at once. A delivery whose
-- body is no longer kept stays dead.
create or replace function public.esl_redrive(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_labels int; v_deliveries int := 0;
begin
    update esl.sync_queue
    set state = 'ready', attempts = 0, refusals = 0, refused_at = null, next_attempt_at = now(), max_batch = 1000
    where (state in ('failed', 'dead') or (state = 'ready' and refused_at is not null))
      and (p ->> 'store' is null or store_code = p ->> 'store') and (p ->> 'code' is null or code = p ->> 'code');
    get diagnostics v_labels = row_count;
    if p ->> 'code' is null then
        update esl.store_health set refusals = 0, refused_at = null, pauses = 0, until = null, reason = null
        where p ->> 'store' is null or store_code = p ->> 'store';
    end if;
    if p ->> 'store' is null and p ->> 'code' is null then
        update esl.webhook_inbox set state = 'ready', attempts = 0, reason = null, finished_at = null
        where state = 'dead' and body is not null;
        get diagnostics v_deliveries = row_count;
        update esl.label_servers set probe_at = now() where probe_at > now();
    end if;
    return jsonb_build_object('labels', v_labels, 'deliveries', v_deliveries);
end $$;

-- For the owner of a server that has just started, when no worker can be alive: what dead ones held is due at once
-- instead of when its lease ends. Not in public: no client can call it.
create or replace function esl.release_claims() returns void
language sql set search_path = '' as $$
    update esl.webhook_inbox set lease_until = now() where state = 'leased';
    update esl.sync_queue set lease_until = now() where state = 'leased';
    update esl.label_servers set probe_at = now() where probe_at > now();
    delete from esl.leases;
$$;

-- {run_id} -> {labels, deliveries}: for the retry of a run that has ended without finishing them; what it had claimed is
-- due at once. Should its process work on all the same, it is a worker that is late, as after any lease.
create or replace function public.esl_claims_release(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_labels int; v_deliveries int;
begin
    update esl.sync_queue q set lease_until = now()
    where q.state = 'leased' and q.lease_until > now()
      and exists (select from esl.sync_log l
                  where l.push_id = q.push_id and l.kind = 'intent' and l.run_id = p ->> 'run_id');
    get diagnostics v_labels = row_count;
    update esl.webhook_inbox set lease_until = now()
    where state = 'leased' and lease_until > now() and run_id = p ->> 'run_id';
    get diagnostics v_deliveries = row_count;
    return jsonb_build_object('labels', v_labels, 'deliveries', v_deliveries);
end $$;

-- {} -> {stores: [...], shops: [...], findings: [...], outages: [...]}: counts for operators.
create or replace function public.esl_status(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'stores', (select coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.source_store_id), '[]') from (
            select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code, m.is_active,
                (select count(*) from esl.hipoink_products s where s.mapping_id = m.id) as on_labels,
                (select count(*) from esl.labels l
                 where l.mapping_id = m.id and (l.state = 'held' or l.collides)) as held_back,
                m.is_dry_run,
                (select jsonb_build_object(
                    'waiting', count(*) filter (where q.state in ('ready', 'leased')),
                    'guarded', count(*) filter (where q.state = 'guarded'),
                    'failed', count(*) filter (where q.state = 'failed'),
                    'dead', count(*) filter (where q.state = 'dead'),
                    'oldest', min(q.created_at) filter (where q.state in ('ready', 'leased')),
                    'last_error', max(q.last_error))
                 from esl.sync_queue q where q.mapping_id = m.id) as queue,
                (select jsonb_build_object('until', s.until, 'reason', s.reason) from esl.store_health s
                 where s.store_code = m.hipoink_store_code and s.until > now()) as paused,
                (select max(s.accepted_at) from esl.hipoink_products s where s.mapping_id = m.id) as last_accepted_at
            from esl.store_mappings m) t),
        'shops', (select coalesce(jsonb_agg(to_jsonb(t) order by t.source_system, t.source_store_id), '[]') from (
            select i.source_system, i.source_store_id,
                count(*) as deliveries,
                count(*) filter (where i.state in ('ready', 'leased')) as waiting,
                count(*) filter (where i.state = 'done') as done,
                count(*) filter (where i.state = 'superseded') as superseded,
                count(*) filter (where i.state = 'unusable') as unusable,
                count(*) filter (where i.state = 'unusable' and i.reason like 'replay suspected%') as replays,
                count(*) filter (where i.state = 'dead') as dead,
                min(i.received_at) filter (where i.state in ('ready', 'leased')) as oldest_waiting,
                max(i.received_at) as last_received_at,
                exists (select from esl.store_mappings m where m.source_system = i.source_system
                        and m.source_store_id = i.source_store_id) as mapped,
                (select coalesce(sum(v.missing_variants), 0) from esl.product_versions v
                 where v.source_system = i.source_system and v.source_store_id = i.source_store_id
                   and not v.deleted) as variants_to_fetch
            from esl.webhook_inbox i group by 1, 2) t),
        'outages', (select coalesce(jsonb_agg(jsonb_build_object('server', server, 'since', down_since,
                        'probe_at', probe_at, 'reason', last_error) order by server), '[]')
                    from esl.label_servers where down_since is not null),
        'findings', (select coalesce(jsonb_agg(to_jsonb(t) order by t.level, t.n desc, t.check_name), '[]') from (
            select f.check_name, f.level, count(*) as n from esl.findings f
            where f.resolved_at is null group by 1, 2) t))
$$;

-- {mapping_id?, store?, limit, after?: [level, check_name, variant_id, mapping_id]} -> {findings: [...]}: the open ones
-- in that order, with the variant they are about.
create or replace function public.esl_findings(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('findings', coalesce(jsonb_agg(to_jsonb(t)), '[]')) from (
        select f.*, o.title, o.variant_title, o.sku, m.source_store_id, m.hipoink_store_code
        from esl.findings f join esl.store_mappings m on m.id = f.mapping_id
        left join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                                and o.variant_id = f.variant_id
        where f.resolved_at is null and (p ->> 'mapping_id' is null or f.mapping_id = (p ->> 'mapping_id')::uuid)
          and (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
          and (p -> 'after' is null or (f.level, f.check_name, f.variant_id, f.mapping_id)
               > (p #>> '{after,0}', p #>> '{after,1}', p #>> '{after,2}', (p #>> '{after,3}')::uuid))
        order by f.level, f.check_name, f.variant_id, f.mapping_id limit (p ->> 'limit')::int) t
$$;

-- {store?, shop?, limit} -> {mappings: [{mapping_id, source_system, source_store_id, hipoink_store_code, is_active,
--   is_dry_run, max_held_share_pct, to_evaluate, published, held, duplicates, guarded, new, changed, removed,
--   changes: [{store_code, code, variant_id, title, variant_title, operation, state, before, after}]}]}
-- How each mapping's labels stand, and what of them differs from the label server: what a push would change.
create or replace function public.esl_preview(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with chosen as (
        select m.* from esl.store_mappings m
        where (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
          and (p -> 'shop' is null
               or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
    ), differences as (
        select q.mapping_id, q.store_code, q.code, q.variant_id, q.operation, q.state, s.label as before,
               q.label as after, q.priority, q.created_at
        from esl.sync_queue q left join esl.hipoink_products s using (store_code, code)
        where q.mapping_id in (select id from chosen)
    )
    select jsonb_build_object('mappings', coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.mapping_id), '[]'))
    from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code, m.is_active, m.is_dry_run,
               coalesce((m.settings ->> 'max_held_share_pct')::int, 20) as max_held_share_pct,
               (select count(*) from esl.products o where o.due and o.source_system = m.source_system
                   and o.source_store_id = m.source_store_id) as to_evaluate,
               l.*, d.*,
               (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from (
                    select x.store_code, x.code, x.variant_id, o.title, o.variant_title, x.operation, x.state, x.before,
                           x.after
                    from differences x
                    left join esl.products o on o.variant_id = x.variant_id and o.source_system = m.source_system
                                            and o.source_store_id = m.source_store_id
                    where x.mapping_id = m.id
                    order by x.priority, x.created_at, x.code limit (p ->> 'limit')::int) c) as changes
        from chosen m
        cross join lateral (
            select count(*) filter (where b.state = 'publish' and not b.collides) as published,
                   count(*) filter (where b.state = 'held' or b.collides) as held,
                   count(*) filter (where b.collides) as duplicates
            from esl.labels b where b.mapping_id = m.id) l
        cross join lateral (
            select count(*) filter (where x.operation = 'upsert' and x.before is null) as new,
                   count(*) filter (where x.operation = 'upsert' and x.before is not null) as changed,
                   count(*) filter (where x.operation = 'delete') as removed,
                   count(*) filter (where x.state = 'guarded') as guarded
            from differences x where x.mapping_id = m.id) d) t
$$;

-- {store, by} -> {removals, prices}: the drastic changes of a store that wait may go on. Kept in esl.approvals.
create or replace function public.esl_changes_approve(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_removals int; v_prices int;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.labels', 0));
    with released as (
        update esl.sync_queue set state = 'ready', approved = true, next_attempt_at = now()
        where store_code = p ->> 'store' and is_drastic and state = 'guarded' returning operation
    )
    select count(*) filter (where operation = 'delete'), count(*) filter (where operation = 'upsert')
    into v_removals, v_prices from released;
    if v_removals + v_prices > 0 then
        insert into esl.approvals (store_code, removals, prices, by)
        values (p ->> 'store', v_removals, v_prices, p ->> 'by');
    end if;
    return jsonb_build_object('removals', v_removals, 'prices', v_prices);
end $$;

-- {code, store?, limit} -> {places: [{store_code, ledger, queue, variants, log, deliveries}]}: from a label back to
-- its pushes, runs, variant and webhooks. Newest log rows first.
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
        'store_code', s.store_code,
        'ledger', (select to_jsonb(h) from esl.hipoink_products h
                   where h.store_code = s.store_code and h.code = p ->> 'code'),
        'queue', (select to_jsonb(q) from esl.sync_queue q
                  where q.store_code = s.store_code and q.code = p ->> 'code'),
        'variants', (select coalesce(jsonb_agg(to_jsonb(o) || jsonb_build_object(
                             'mapping_id', m.id, 'label_state', b.state, 'collides', b.collides,
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
                           select unnest(l.event_ids) from log l where l.store_code = s.store_code))
        ) order by s.store_code), '[]')) from places s
$$;
