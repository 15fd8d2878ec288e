-- What is wrong now, as far as the buffer knows: one function per kind of trouble, all read by esl_alert_conditions.
-- Words, severities and patience are in alerts/catalogue.py; here are facts.

create or replace function esl.key_of(m esl.store_mappings) returns text
language sql immutable set search_path = '' as $$
    select m.source_system || ':' || m.source_store_id
$$;

-- Of an earlier build: esl.pause_of says the same.
drop function if exists esl.people_pause(text);

-- Whether labels of a mapping are to change: it is active, or its store is being removed.
create or replace function esl.is_at_work(m esl.store_mappings) returns boolean
language sql immutable as $$  -- inlined
    select m.is_active or m.leaving is not null
$$;

-- Of each store that a mapping feeds: what keeps all its labels back, of which people are told by its own name.
create or replace function esl.held_stores()
returns table (store_code text, server text, down esl.label_servers, health esl.store_health, shops text[])
language sql stable set search_path = '' as $$
    select k.store_code, k.server, l, h, k.shops
    from (select m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as server,
                 array_agg(distinct esl.key_of(m)) as shops
          from esl.store_mappings m where esl.is_at_work(m) group by 1) k
    left join esl.label_servers l on l.server = k.server and l.down_since is not null
    left join esl.store_health h on h.store_code = k.store_code and h.pauses > 0
$$;

-- The queue in one pass, per mapping that is at work and store. refused: given up, or refused for good. late: wait for
-- longer than a quarter of an hour although nothing keeps them back that people are told of otherwise; rises: price
-- rises among them, for which five minutes are too long. A closed raise_window keeps rises back, and for a while after
-- it has opened they are on their way.
create or replace function esl.queue_troubles() returns setof esl.queue_row
language sql stable set search_path = '' as $$
    with live as materialized (  -- judged once for each mapping, not for each of its labels
        select m.id, esl.key_of(m) as shop,
               esl.is_pushed(m)
               and not exists (
                   select from esl.held_stores() s where s.store_code = m.hipoink_store_code
                     and num_nonnulls((s.down).server, (s.health).store_code) > 0)
               and not esl.store_is_paused(m.hipoink_store_code) as goes_out,
               esl.window_is_open(m.settings -> 'raise_window')
               and esl.window_is_open(m.settings -> 'raise_window', now() - interval '15 minutes') as rises_go_out
        from esl.store_mappings m where esl.is_at_work(m)
    ), counted as materialized (
        select q.mapping_id, q.store_code, q.is_rise and not q.in_doubt as has_hours,
               count(*) filter (where q.state in ('ready', 'leased')) as waiting,
               count(*) filter (where q.state in ('failed', 'dead')) as refused,
               min(coalesce(q.refused_at, q.created_at)) filter (where q.state in ('failed', 'dead')) as refused_since,
               max(q.last_error) filter (where q.state in ('failed', 'dead')) as refused_says,
               count(*) filter (where q.state = 'guarded' and q.rejected_at is null) as guarded,
               min(q.created_at) filter (where q.state = 'guarded' and q.rejected_at is null) as guarded_since,
               count(*) filter (where q.state in ('ready', 'leased')
                                  and q.created_at < now() - interval '15 minutes') as late,
               count(*) filter (where q.is_rise and q.state in ('ready', 'leased')
                                  and q.created_at < now() - interval '5 minutes') as rises,
               min(q.created_at) filter (where q.state in ('ready', 'leased')) as since,
               min(q.created_at) filter (where q.is_rise and q.state in ('ready', 'leased')) as rises_since
        from esl.sync_queue q group by 1, 2, 3
    )
    select v.shop, c.store_code, sum(c.waiting), sum(c.refused), min(c.refused_since), max(c.refused_says),
           sum(c.guarded), min(c.guarded_since), sum(c.late) filter (where k.is_due),
           min(c.since) filter (where k.is_due),
           sum(c.rises) filter (where k.is_due), min(c.rises_since) filter (where k.is_due)
    from live v join counted c on c.mapping_id = v.id
    cross join lateral (select v.goes_out and (not c.has_hours or v.rises_go_out)) k (is_due)
    group by v.id, v.shop, c.store_code
$$;

-- What stops whole stores: their label server is down, or accepts nothing of theirs, or is not among those that the
-- settings name (p_servers), or people have paused them. p_queue: rows of esl.queue_troubles. number: how often a store
-- was refused; when a pause of people ends, in seconds since 1970.
create or replace function esl.store_troubles(p_servers jsonb, p_queue jsonb) returns setof esl.condition_row
language sql stable set search_path = '' as $$
    with waiting as (
        select q.store_code, sum(q.waiting) as labels
        from jsonb_populate_recordset(null::esl.queue_row, p_queue) q group by 1
    ), held as (
        select s.*, coalesce(w.labels, 0) as labels from esl.held_stores() s left join waiting w using (store_code)
    ), servers as (
        select h.server, (array_agg(h.down))[1] as down, sum(h.labels)::bigint as labels,
               array_agg(h.store_code order by h.store_code) as stores,
               (select array_agg(distinct k order by k) from held o cross join unnest(o.shops) k
                where o.server = h.server) as shops
        from held h group by h.server
    )
    select 'server_down', s.server, (s.down).down_since, s.labels, s.shops, s.stores, null::bigint, (s.down).last_error
    from servers s where (s.down).server is not null
    union all
    select 'server_unknown', s.server, null, s.labels, s.shops, s.stores, null, null
    from servers s where not p_servers ? s.server
    union all
    select 'store_refused', h.store_code, (h.health).refused_at, h.labels::bigint, h.shops, array[h.store_code],
           (h.health).refusals, (h.health).reason
    from held h where (h.health).store_code is not null and (h.down).server is null
    union all
    select 'store_paused', h.store_code, (p.pause ->> 'since')::timestamptz, h.labels::bigint, h.shops,
           array[h.store_code], extract(epoch from (p.pause ->> 'until')::timestamptz)::bigint,
           format('by %s: %s', p.pause ->> 'by', p.pause ->> 'reason')
    from held h cross join lateral (select esl.pause_of(h.store_code) as pause) p where p.pause is not null
$$;

-- Labels of a store that were refused or given up, wait for approval, or wait too long; rises by themselves. p_queue:
-- as before.
create or replace function esl.label_troubles(p_queue jsonb) returns setof esl.condition_row
language sql stable set search_path = '' as $$
    select k.kind, q.store_code, min(k.since), sum(k.labels)::bigint,
           array_agg(distinct q.shop), array[q.store_code], null::bigint, max(k.detail)
    from jsonb_populate_recordset(null::esl.queue_row, p_queue) q cross join lateral (values
        ('labels_refused', q.refused, q.refused_since, q.refused_says),
        ('approval_waiting', q.guarded, q.guarded_since, null),
        ('rises_overdue', q.rises, q.rises_since, null),
        ('backlog', q.late, q.late_since, null)) k (kind, labels, since, detail)
    where k.labels > 0 group by k.kind, q.store_code
$$;

-- What is wrong with how a shop is mapped: settings that cannot be carried out, or a message that has switched it off.
create or replace function esl.mapping_troubles() returns setof esl.condition_row
language sql stable set search_path = '' as $$
    select 'settings_unusable', m.hipoink_store_code || ' of ' || esl.key_of(m), m.updated_at, 0::bigint,
           array[esl.key_of(m)], array[m.hipoink_store_code], null::bigint, esl.mapping_problem(m)
    from esl.store_mappings m where m.is_active and esl.mapping_problem(m) is not null
    union all
    select 'switched_off', k.key, k.since, (
               select count(*) from esl.hipoink_products h
               where h.store_code = any (k.stores) and h.mapping_id = any (k.mappings)),
           array[k.key], k.stores, null, k.message
    from (select esl.key_of(m) as key, max(m.updated_at) as since, array_agg(m.id) as mappings,
                 array_agg(m.hipoink_store_code order by m.hipoink_store_code) as stores,
                 max(m.switched_off) as message
          from esl.store_mappings m where m.switched_off is not null group by 1) k
$$;

-- What arrives of an active shop, or should: nothing for so many hours, wrong signatures after the last good one,
-- deliveries that wait too long, or were of no use in the last hour, or were given up.
create or replace function esl.delivery_troubles(p_silence interval) returns setof esl.condition_row
language sql stable set search_path = '' as $$
    with shops as (
        select m.source_system, m.source_store_id, min(esl.key_of(m)) as key,
               array_agg(m.hipoink_store_code order by m.hipoink_store_code) as stores
        from esl.store_mappings m where m.is_active group by 1, 2
    ), useless as (
        select i.source_system, i.source_store_id, i.state, min(i.finished_at) as since, count(*) as n,
               (array_agg(i.reason order by i.id desc))[1] as reason
        from esl.webhook_inbox i
        where i.state = 'dead' or (i.state = 'unusable' and i.finished_at > now() - interval '1 hour')
        group by 1, 2, 3
    )
    select k.kind, s.key, k.since, 0::bigint, array[s.key], s.stores, k.number, k.detail
    from shops s cross join lateral (
        select 'silent', esl.last_webhook_at(s.source_system, s.source_store_id), null::bigint, null::text
        where esl.last_webhook_at(s.source_system, s.source_store_id) < now() - p_silence
        union all
        select 'signatures_refused', r.since, r.refused, null from esl.refused() r
        where r.source_system = s.source_system and r.source_store_id = s.source_store_id and r.refused >= 3
          and (r.accepted_at is null or r.accepted_at < r.last_at)
        union all
        select case u.state when 'dead' then 'deliveries_dead' else 'deliveries_unusable' end, u.since, u.n, u.reason
        from useless u where u.source_system = s.source_system and u.source_store_id = s.source_store_id
        union all
        select 'deliveries_late', o.received_at, (esl.waiting(s.source_system, s.source_store_id)).deliveries, null
        from (select i.received_at from esl.webhook_inbox i
              where i.source_system = s.source_system and i.source_store_id = s.source_store_id
                and i.state in ('ready', 'leased') order by i.id limit 1) o
        where o.received_at < now() - interval '15 minutes'
        union all
        select 'connection_ended', c.ended_at, null, c.ended_by from esl.connections c
        where c.source_system = s.source_system and c.source_store_id = s.source_store_id and c.ended_at is not null
    ) k (kind, since, number, detail)
$$;

-- {label_servers: [names], silence_hours} -> {at, conditions: [...], alerts: [...], due: [recipients], stuck:
-- [recipients]}: what is wrong now, the alerts that are not closed, who is to be sent something, and to whom nothing
-- gets through, as several tries have shown.
create or replace function public.esl_alert_conditions(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with queue as materialized (
        select coalesce(jsonb_agg(to_jsonb(t)), '[]') as rows from esl.queue_troubles() t
    ), found as (
        select t.* from queue q cross join lateral esl.store_troubles(p -> 'label_servers', q.rows) t
        union all select t.* from queue q cross join lateral esl.label_troubles(q.rows) t
        union all select * from esl.mapping_troubles()
        union all select * from esl.delivery_troubles(make_interval(secs => 3600 * (p ->> 'silence_hours')::float8))
    )
    select jsonb_build_object(
        'at', clock_timestamp(),
        'conditions', (select coalesce(jsonb_agg(to_jsonb(f) order by f.kind, f.subject), '[]') from found f),
        'alerts', (select coalesce(jsonb_agg(to_jsonb(a) order by a.id), '[]') from esl.alerts a
                   where a.closed_at is null),
        'due', (select coalesce(jsonb_agg(distinct d.recipient), '[]') from esl.alert_deliveries d
                where d.sent_at is null and d.next_at <= now()),
        'stuck', (select coalesce(jsonb_agg(distinct d.recipient), '[]') from esl.alert_deliveries d
                  where d.sent_at is null and d.last_error is not null and d.attempts > 5))
$$;
