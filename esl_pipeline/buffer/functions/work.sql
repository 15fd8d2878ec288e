-- Work shared by many runs: what is due, leases, and the claims of runs that have ended.

-- {name, holder, seconds} -> {held, holder, until}: takes or renews; refused while another holder's runs.
create or replace function public.esl_lease_take(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_held boolean;
begin
    insert into esl.leases as l (name, holder, until)
    values (p ->> 'name', p ->> 'holder', clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8))
    on conflict (name) do update set holder = excluded.holder, until = excluded.until
    where l.holder = excluded.holder or l.until < clock_timestamp();
    v_held := found;
    return (select jsonb_build_object('held', v_held, 'holder', l.holder, 'until', l.until)
            from esl.leases l where l.name = p ->> 'name');
end $$;

-- {name, holder} -> {released}
create or replace function public.esl_lease_release(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with gone as (
        delete from esl.leases where name = p ->> 'name' and holder = p ->> 'holder' returning 1
    ) select jsonb_build_object('released', exists (select from gone))
$$;

-- {label_server?} -> {due, inbox, variants, queue, refresh, outage, drain, shops}: what the sensor asks. due: a drain
-- run would find work now. outage: {since, probe_at, reason} while the label server is down.
create or replace function public.esl_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with mapped as (
        select source_system, source_store_id, bool_or(is_active) as is_active
        from esl.store_mappings group by 1, 2
    ), found as (
        select
            exists (select from mapped s join esl.webhook_inbox i using (source_system, source_store_id)
                    where i.state = 'ready' or (i.state = 'leased' and i.lease_until < now())) as inbox,
            exists (select from mapped s join esl.products o using (source_system, source_store_id)
                    where s.is_active and o.due) as variants,
            not esl.is_down(p ->> 'label_server') and (
                exists (select from esl.sync_queue q where q.state = 'leased' and q.lease_until < now())
                or (esl.next_push(null, false)).code is not null) as queue,
            exists (select from esl.refreshable(p ->> 'label_server')) as refresh
    )
    select jsonb_build_object(
        'due', f.inbox or f.variants or f.queue or f.refresh,
        'inbox', f.inbox, 'variants', f.variants, 'queue', f.queue, 'refresh', f.refresh,
        'outage', (select jsonb_build_object('since', down_since, 'probe_at', probe_at, 'reason', last_error)
                   from esl.label_servers where server = p ->> 'label_server' and down_since is not null),
        'drain', (select jsonb_build_object('holder', holder, 'until', until) from esl.leases
                  where name = 'event_sync' and until > clock_timestamp()),
        'shops', (select coalesce(jsonb_agg(jsonb_build_object(
                      'source_system', source_system, 'source_store_id', source_store_id)
                      order by source_system, source_store_id), '[]') from mapped))
    from found f
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
