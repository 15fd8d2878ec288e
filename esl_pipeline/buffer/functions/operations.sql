-- For people: store mappings, status, trace, findings, sending dead letters again.

-- A shop's variants are evaluated again: its labels follow the mapping, no webhook needed.
create or replace function esl.evaluate_again(p_source_system text, p_source_store_id text) returns void
language sql set search_path = '' as $$
    update esl.products set due = true, revision = nextval('esl.revision')
    where source_system = p_source_system and source_store_id = p_source_store_id
$$;

-- {source_system, source_store_id, hipoink_store_code, is_active?, is_dry_run?, settings?, shared?, by?} -> the
-- mapping. shared: it is meant that other shops feed the store as well (else 23P01). by: who makes it, for esl.mapping_changes. 23505: exists already. 22023: settings that this database cannot carry out,
-- or no shop.
create or replace function public.esl_mapping_create(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare m esl.store_mappings;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.labels', 0));
    perform esl.check_settings(p -> 'settings');
    perform esl.check_shop(p ->> 'source_system', p ->> 'source_store_id');
    perform esl.check_sharing(p ->> 'source_system', p ->> 'source_store_id', p ->> 'hipoink_store_code',
                              (p ->> 'shared')::boolean);
    insert into esl.store_mappings (source_system, source_store_id, hipoink_store_code, is_active, is_dry_run, settings)
    values (p ->> 'source_system', p ->> 'source_store_id', p ->> 'hipoink_store_code',
            coalesce((p ->> 'is_active')::boolean, true), coalesce((p ->> 'is_dry_run')::boolean, false),
            coalesce(p -> 'settings', '{}'))
    returning * into m;
    perform esl.note_change(p ->> 'by', null, m);
    perform esl.contest_again(m.source_system, m.source_store_id);
    perform esl.evaluate_again(m.source_system, m.source_store_id);
    return to_jsonb(m);
end $$;

-- The places of a mapping that no evaluation of its shop comes to: of foreign labels, also those that other mappings of
-- its store have adopted, and of variants that the shop does not have (while it awaits its first read they stay as
-- they are).
create or replace function esl.strays(m esl.store_mappings) returns table (store_code text, code text)
language sql stable set search_path = '' as $$
    select k.store_code, k.code
    from (select s.store_code, s.code, s.mapping_id, s.variant_id from esl.hipoink_products s
          union select q.store_code, q.code, q.mapping_id, q.variant_id from esl.sync_queue q) k
    where case when k.variant_id = '' then k.mapping_id = m.id or k.store_code = m.hipoink_store_code
               else k.mapping_id = m.id and m.awaits_read_since is null and not exists (
                   select from esl.products o where o.variant_id = k.variant_id
                     and o.source_store_id = m.source_store_id and o.source_system = m.source_system) end
$$;

-- {id, source_system?, source_store_id?, hipoink_store_code?, is_active?, is_dry_run?, settings?, shared?, by?} ->
-- the mapping, or null. shared: as for esl_mapping_create, asked for where the store changes. Another store: its labels are written there, then removed from the one before (see esl.guard).
-- Another shop: it may be the same under another name, so the labels stay until it has been read completely (see
-- esl.shop_was_read). Whatever changes, all places of the mapping are decided and judged again: those of variants when
-- they are evaluated, the others now. Whoever says is_active ends the alarm that a message had switched it off.
-- 22023: settings that this database cannot carry out.
create or replace function public.esl_mapping_update(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare m esl.store_mappings; v_before esl.store_mappings; v_stores text[]; v_codes text[];
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.labels', 0));
    perform esl.check_settings(p -> 'settings');
    select * into v_before from esl.store_mappings where id = (p ->> 'id')::uuid;
    if not found then
        return null;
    end if;
    perform esl.check_shop(coalesce(p ->> 'source_system', v_before.source_system),
                           coalesce(p ->> 'source_store_id', v_before.source_store_id));
    if p ->> 'hipoink_store_code' <> v_before.hipoink_store_code then
        perform esl.check_sharing(coalesce(p ->> 'source_system', v_before.source_system),
                                  coalesce(p ->> 'source_store_id', v_before.source_store_id),
                                  p ->> 'hipoink_store_code', (p ->> 'shared')::boolean);
    end if;
    update esl.store_mappings o set
        source_system = coalesce(p ->> 'source_system', source_system),
        source_store_id = coalesce(p ->> 'source_store_id', source_store_id),
        hipoink_store_code = coalesce(p ->> 'hipoink_store_code', hipoink_store_code),
        is_active = coalesce((p ->> 'is_active')::boolean, is_active),
        activated_at = case when (p ->> 'is_active')::boolean and not is_active or p ->> 'source_store_id' <> source_store_id
                            then clock_timestamp() else activated_at end,
        switched_off = case when p ->> 'is_active' is null then switched_off end,
        is_dry_run = coalesce((p ->> 'is_dry_run')::boolean, is_dry_run),
        settings = coalesce(p -> 'settings', settings),
        -- As long as it is not evaluated again, nothing is pushed anyway.
        problem = case when p -> 'settings' <> settings then null else problem end,
        awaits_read_since = case
            when (coalesce(p ->> 'source_system', source_system), coalesce(p ->> 'source_store_id', source_store_id))
                 = (source_system, source_store_id) then awaits_read_since
            when exists (select from esl.labels l where l.mapping_id = o.id)
              or exists (select from esl.hipoink_products s where s.mapping_id = o.id) then now() end,
        updated_at = now()
    where id = (p ->> 'id')::uuid
    returning * into m;
    perform esl.note_change(p ->> 'by', v_before, m);
    if (v_before.is_active, v_before.source_system, v_before.source_store_id)
       <> (m.is_active, m.source_system, m.source_store_id) then
        perform esl.contest_again(v_before.source_system, v_before.source_store_id);
        perform esl.contest_again(m.source_system, m.source_store_id);
    end if;
    if v_before.is_active and not m.is_active then
        -- Its own labels are not evaluated while it is paused, but those they collided with are free now.
        select array_agg(store_code), array_agg(code) into v_stores, v_codes
        from esl.labels where mapping_id = m.id and collides;
        perform esl.requeue(v_stores, v_codes);
    end if;
    select array_agg(k.store_code), array_agg(k.code) into v_stores, v_codes
    from (select * from esl.strays(v_before) union select * from esl.strays(m)) k;
    perform esl.requeue(v_stores, v_codes);
    if m.is_active then
        perform esl.evaluate_again(m.source_system, m.source_store_id);
    end if;
    return to_jsonb(m);
end $$;

-- A shop has just been read completely. Mappings that were given its name withdraw the labels of variants that it does
-- not have; and drastic changes of its stores are counted again, of which some may have left the guard's hours.
-- Takes the lock of the labels, so it comes before any row of products is locked.
create or replace function esl.shop_was_read(p_source_system text, p_source_store_id text) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare m esl.store_mappings; v_guarded text[]; v_stores text[]; v_codes text[];
begin
    select array_agg(distinct o.hipoink_store_code) into v_guarded
    from esl.store_mappings o join esl.sync_queue q on q.store_code = o.hipoink_store_code
    where o.source_system = p_source_system and o.source_store_id = p_source_store_id and q.drastic is not null
      and q.state = 'guarded';
    if v_guarded is null and not exists (
            select from esl.store_mappings o where o.source_system = p_source_system
              and o.source_store_id = p_source_store_id and o.awaits_read_since is not null) then
        return;
    end if;
    perform pg_advisory_xact_lock(hashtextextended('esl.labels', 0));
    for m in
        update esl.store_mappings set awaits_read_since = null
        where source_system = p_source_system and source_store_id = p_source_store_id and awaits_read_since is not null
        returning *
    loop
        with gone as materialized (
            select l.variant_id, l.store_code, l.code from esl.labels l
            where l.mapping_id = m.id and not exists (
                select from esl.products o where o.variant_id = l.variant_id
                  and o.source_store_id = m.source_store_id and o.source_system = m.source_system)
        ), withdrawn as (
            update esl.labels l
            set state = 'withdrawn', code = null, label = null, label_hash = null, precedence = null, collides = false
            from gone g where l.mapping_id = m.id and l.variant_id = g.variant_id
        ), resolved as (
            update esl.findings f set resolved_at = now() from gone g
            where f.mapping_id = m.id and f.variant_id = g.variant_id and f.resolved_at is null
        ), places as (
            select g.store_code, g.code from gone g where g.code is not null
            union select * from esl.strays(m)
        )
        select array_agg(store_code), array_agg(code) into v_stores, v_codes from places;
        perform esl.requeue(v_stores, v_codes);
    end loop;
    perform esl.guard(store_code) from unnest(v_guarded) as g (store_code);
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
        update esl.refresh_marks set lease_until = now() where lease_until is not null;
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
    update esl.refresh_marks set lease_until = now() where lease_until is not null;
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
    update esl.refresh_marks set lease_until = now() where lease_until > now() and run_id = p ->> 'run_id';
    update esl.webhook_inbox set lease_until = now()
    where state = 'leased' and lease_until > now() and run_id = p ->> 'run_id';
    get diagnostics v_deliveries = row_count;
    return jsonb_build_object('labels', v_labels, 'deliveries', v_deliveries);
end $$;

-- {shops?: [{source_system, source_store_id}]} -> {stores: [...], shops: [...], findings: [...], outages: [...],
-- contests: [{source_system, thing, shops, since}], contested, erasures: [{source_system, source_store_id, requested_at,
-- not_before}], refreshes: {...}, refused: see esl.refused}: counts for operators, of all shops or of these. Reads what is open, the catalogue and
-- esl.shop_deliveries, nothing that is over.
create or replace function public.esl_status(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with wanted as (
        select * from jsonb_to_recordset(p -> 'shops') as w (source_system text, source_store_id text)
    ), mappings as (
        select m.* from esl.store_mappings m
        where p -> 'shops' is null or (m.source_system, m.source_store_id) in (select * from wanted)
    ), shown as (
        select mapping_id, count(*) as on_labels, max(accepted_at) as last_accepted_at
        from esl.hipoink_products where mapping_id in (select id from mappings) group by 1
    ), held as (
        select mapping_id, count(*) as held_back
        from esl.labels where (state = 'held' or collides) and mapping_id in (select id from mappings) group by 1
    ), queues as (
        select mapping_id, jsonb_build_object(
                   'waiting', count(*) filter (where state in ('ready', 'leased')),
                   'guarded', count(*) filter (where state = 'guarded'),
                   'failed', count(*) filter (where state = 'failed'),
                   'dead', count(*) filter (where state = 'dead'),
                   'oldest', min(created_at) filter (where state in ('ready', 'leased')),
                   'last_error', max(last_error)) as queue
        from esl.sync_queue where mapping_id in (select id from mappings) group by 1
    ), open_deliveries as (
        select source_system, source_store_id, count(*) as waiting, min(received_at) as oldest_waiting,
               max(received_at) as last_received_at
        from esl.webhook_inbox
        where state in ('ready', 'leased')
          and (p -> 'shops' is null or (source_system, source_store_id) in (select * from wanted))
        group by 1, 2
    ), ended as (
        select * from esl.shop_deliveries
        where p -> 'shops' is null or (source_system, source_store_id) in (select * from wanted)
    ), to_fetch as (
        select source_system, source_store_id, sum(missing_variants) as variants
        from esl.product_versions where missing_variants > 0 and not deleted group by 1, 2
    )
    select jsonb_build_object(
        'refused', (select coalesce(jsonb_agg(to_jsonb(r) order by r.source_system, r.source_store_id), '[]')
            from esl.refused() r
            where p -> 'shops' is null or (r.source_system, r.source_store_id) in (select * from wanted)),
        'stores', (select coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.source_store_id), '[]') from (
            select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code, m.is_active,
                m.activated_at, m.switched_off, esl.mapping_problem(m) as problem,
                m.is_dry_run, coalesce(s.on_labels, 0) as on_labels, coalesce(h.held_back, 0) as held_back,
                coalesce(q.queue, '{"waiting": 0, "guarded": 0, "failed": 0, "dead": 0, "oldest": null, "last_error": null}')
                    as queue,
                (select jsonb_build_object('until', s.until, 'reason', s.reason) from esl.store_health s
                 where s.store_code = m.hipoink_store_code and s.until > now()) as paused,
                s.last_accepted_at
            from mappings m left join shown s on s.mapping_id = m.id left join held h on h.mapping_id = m.id
            left join queues q on q.mapping_id = m.id) t),
        'shops', (select coalesce(jsonb_agg(to_jsonb(t) order by t.source_system, t.source_store_id), '[]') from (
            select source_system, source_store_id,
                coalesce(o.waiting, 0) + coalesce(e.done + e.superseded + e.unusable + e.dead, 0) as deliveries,
                coalesce(o.waiting, 0) as waiting,
                (select w.bytes from esl.waiting(source_system, source_store_id) w) as waiting_bytes,
                coalesce(e.not_kept, 0) as not_kept, e.last_not_kept_at, coalesce(e.expired, 0) as expired,
                coalesce(e.done, 0) as done,
                coalesce(e.superseded, 0) as superseded, coalesce(e.unusable, 0) as unusable,
                coalesce(e.replays, 0) as replays, coalesce(e.dead, 0) as dead, o.oldest_waiting,
                greatest(o.last_received_at, e.last_received_at) as last_received_at,
                coalesce(e.refused_in_a_row, 0) as refused_in_a_row, e.last_refusal,
                exists (select from esl.store_mappings m where m.source_system = k.source_system
                        and m.source_store_id = k.source_store_id) as mapped,
                coalesce(f.variants, 0) as variants_to_fetch, coalesce(c.things, 0) as contested, c.shops as contested_by
            from (select source_system, source_store_id from ended
                  union select source_system, source_store_id from open_deliveries) k
            left join ended e using (source_system, source_store_id)
            left join open_deliveries o using (source_system, source_store_id)
            left join to_fetch f using (source_system, source_store_id)
            left join lateral (
                select count(distinct c.thing) as things, array_agg(distinct s.shop order by s.shop) as shops
                from esl.contests c cross join unnest(c.shops) as s (shop)
                where c.owner is null and c.source_system = k.source_system and k.source_store_id = any (c.shops)
                  and s.shop <> k.source_store_id) c on true) t),
        'outages', (select coalesce(jsonb_agg(jsonb_build_object('server', server, 'since', down_since,
                        'probe_at', probe_at, 'reason', last_error) order by server), '[]')
                    from esl.label_servers where down_since is not null),
        'contests', (select coalesce(jsonb_agg(to_jsonb(t) order by t.since, t.thing), '[]') from (
            select k.source_system, k.thing, k.shops, k.since from esl.contests k
            where k.owner is null and (p -> 'shops' is null or exists (
                select from wanted w where w.source_system = k.source_system and w.source_store_id = any (k.shops)))
            order by k.since, k.thing limit 20) t),
        'contested', (select count(*) from esl.contests k
            where k.owner is null and (p -> 'shops' is null or exists (
                select from wanted w where w.source_system = k.source_system and w.source_store_id = any (k.shops)))),
        'erasures', (select coalesce(jsonb_agg(jsonb_build_object('source_system', r.source_system,
                        'source_store_id', r.source_store_id, 'requested_at', r.requested_at, 'not_before', r.not_before)
                        order by r.id), '[]') from esl.redactions r
                     where r.finished_at is null and (p -> 'shops' is null
                           or (r.source_system, r.source_store_id) in (select * from wanted))),
        'refreshes', esl.refresh_state(),
        'findings', (select coalesce(jsonb_agg(to_jsonb(t) order by t.level, t.n desc, t.check_name), '[]') from (
            select f.check_name, f.level, count(*) as n from esl.findings f
            where f.resolved_at is null and (p -> 'shops' is null or f.mapping_id in (select id from mappings))
            group by 1, 2) t))
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

-- {store?, shop?, shops?, limit} -> {mappings: [{mapping_id, source_system, source_store_id, hipoink_store_code,
--   is_active, is_dry_run, max_held_share_pct, to_evaluate, published, held, duplicates, guarded, new, changed, removed,
--   changes: [{store_code, code, variant_id, title, variant_title, operation, state, before, after}]}]}
-- How each mapping's labels stand, and what of them differs from the label server: what a push would change.
create or replace function public.esl_preview(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with chosen as (
        select m.* from esl.store_mappings m
        where (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
          and (p -> 'shop' is null
               or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
          and (p -> 'shops' is null or (m.source_system, m.source_store_id) in (
               select * from jsonb_to_recordset(p -> 'shops') as w (source_system text, source_store_id text)))
    ), differences as (
        select q.mapping_id, q.store_code, q.code, q.variant_id, q.operation, q.state, s.label as before,
               q.label as after, q.priority, q.created_at
        from esl.sync_queue q left join esl.hipoink_products s using (store_code, code)
        where q.mapping_id in (select id from chosen)
    )
    select jsonb_build_object('mappings', coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.mapping_id), '[]'))
    from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code, m.is_active, m.is_dry_run,
               esl.policy_number(m.settings, 'max_held_share_pct', 20, 0, 100) as max_held_share_pct,
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
        where store_code = p ->> 'store' and drastic is not null and state = 'guarded' returning drastic
    )
    select count(*) filter (where drastic = 'removal'), count(*) filter (where drastic = 'price')
    into v_removals, v_prices from released;
    if v_removals + v_prices > 0 then
        insert into esl.approvals (store_code, removals, prices, by)
        values (p ->> 'store', v_removals, v_prices, p ->> 'by');
    end if;
    return jsonb_build_object('removals', v_removals, 'prices', v_prices);
end $$;

-- {code, store?, limit} -> {places: [{store_code, ledger, queue, variants, log, deliveries, forgotten}]}: from a label
-- back to its pushes, runs, variant and webhooks. Newest log rows first. forgotten: how many webhooks are no longer kept.
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
        'refresh', (select esl.refresh_after(h.store_code, h.accepted_at) from esl.hipoink_products h
                    where h.store_code = s.store_code and h.code = p ->> 'code'),
        'queue', (select to_jsonb(q) from esl.sync_queue q
                  where q.store_code = s.store_code and q.code = p ->> 'code'),
        'variants', (select coalesce(jsonb_agg(to_jsonb(o) || jsonb_build_object(
                             'mapping_id', m.id, 'label_state', b.state, 'collides', b.collides, 'file', esl.file_of(o),
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
