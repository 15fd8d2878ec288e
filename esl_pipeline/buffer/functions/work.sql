-- Work shared by many runs: what is due, and the claims of runs that have ended.

-- {servers?, label_servers?, build?} -> {servers: {name: {due, inbox, variants, queue, refresh, graces, is_fed, outage,
-- drain}}, shops, elsewhere}: what the sensor and the drains ask, of these label servers (default: `default`). due:
-- a drain run would find work now. is_fed: it has a shop. outage: {since, probe_at, reason} while the server is
-- down. elsewhere: {name: [store codes]} of active mappings at servers that are not among label_servers.
create or replace function public.esl_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with shops as materialized (
        -- In order, so that whatever the planner believes, it asks the index of each shop.
        select r.*, i.id is not null as inbox, r.is_active and o.revision is not null as variants
        from esl.readers(p) r
        left join lateral (
            select i.id from esl.webhook_inbox i
            where i.source_system = r.source_system and i.source_store_id = r.source_store_id
              and (i.state = 'ready' or (i.state = 'leased' and i.lease_until < now()))
            order by i.id limit 1) i on true
        left join lateral (
            select o.revision from esl.products o
            where o.source_store_id = r.source_store_id and o.source_system = r.source_system and o.due
            order by o.revision limit 1) o on true
    ), found as (
        select a.name,
            exists (select from shops s where a.name = any (s.servers)) as is_fed,
            exists (select from shops s where s.inbox and a.name = any (s.servers)) as inbox,
            exists (select from shops s where s.variants and a.name = any (s.servers)) as variants,
            not esl.is_down(a.name) and (
                exists (select from esl.sync_queue q where q.state = 'leased' and q.lease_until < now()
                          and esl.server_of(q.store_code) = a.name)
                or (select (n.head).code is not null
                    from esl.next_push(jsonb_build_object('label_server', a.name), false) n)) as queue,
            exists (select from esl.refreshable(a.name)) as refresh,
            exists (select from esl.graces g
                    where g.until <= clock_timestamp() and esl.server_of(g.store_code) = a.name) as graces
        from jsonb_array_elements_text(coalesce(p -> 'servers', '["default"]')) as a (name)
    )
    select jsonb_build_object(
        'servers', (select jsonb_object_agg(f.name, jsonb_build_object(
            'due', f.inbox or f.variants or f.queue or f.refresh or f.graces, 'is_fed', f.is_fed,
            'inbox', f.inbox, 'variants', f.variants, 'queue', f.queue, 'refresh', f.refresh, 'graces', f.graces,
            'outage', (select jsonb_build_object('since', down_since, 'probe_at', probe_at, 'reason', last_error)
                       from esl.label_servers where server = f.name and down_since is not null),
            'drain', (select jsonb_build_object('holder', l.holder, 'until', l.until,
                          'wants_relief', esl.wants_relief(l, (p ->> 'build')::int))
                      from esl.leases l
                      where l.name = 'event_sync:' || f.name and l.until > clock_timestamp()))) from found f),
        'shops', (select coalesce(jsonb_agg(jsonb_build_object(
                      'source_system', source_system, 'source_store_id', source_store_id)
                      order by source_system, source_store_id), '[]') from shops),
        'elsewhere', case when p -> 'label_servers' is null then '{}'
                          else esl.stores_elsewhere(p -> 'label_servers') end)
$$;

-- For the owner of a server that has just started, when no worker can be alive: what dead ones held is due at once
-- instead of when its lease ends. Not in public: no client can call it.
create or replace function esl.release_claims() returns void
language sql set search_path = '' as $$
    update esl.webhook_inbox set lease_until = now() where state = 'leased';
    update esl.sync_queue set lease_until = now() where state = 'leased';
    delete from esl.flights;
    delete from esl.calls;
    update esl.refresh_marks set lease_until = now() where lease_until is not null;
    update esl.label_servers set probe_at = now() where probe_at > now();
    delete from esl.leases;
$$;

-- {run_id} -> {labels, deliveries}: for the retry of a run that has ended without finishing them; what it had claimed
-- is due at once. Should its process work on all the same, it is a worker that is late, as after any lease.
create or replace function public.esl_claims_release(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_labels int; v_deliveries int;
begin
    update esl.sync_queue q set lease_until = now()
    where q.state = 'leased' and q.lease_until > now()
      and exists (select from esl.sync_log l
                  where l.push_id = q.push_id and l.kind = 'intent' and l.run_id = p ->> 'run_id');
    get diagnostics v_labels = row_count;
    delete from esl.calls c using esl.flights f where f.run_id = p ->> 'run_id' and c.recorded_as = f.push_id;
    delete from esl.flights where run_id = p ->> 'run_id';
    update esl.refresh_marks set lease_until = now() where lease_until > now() and run_id = p ->> 'run_id';
    update esl.webhook_inbox set lease_until = now()
    where state = 'leased' and lease_until > now() and run_id = p ->> 'run_id';
    get diagnostics v_deliveries = row_count;
    return jsonb_build_object('labels', v_labels, 'deliveries', v_deliveries);
end $$;
