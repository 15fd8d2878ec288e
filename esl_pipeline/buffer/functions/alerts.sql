-- Alerts: their history, and their way to each address, at least once.

create or replace function esl.severity_rank(p_severity text) returns int
language sql immutable set search_path = '' as $$
    select array_position('{info,warning,critical}'::text[], p_severity)
$$;

-- What becomes of alerts (see esl_alert_record), of each the current one of its key.
create or replace function esl.alerts_change(p_changes jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.alerts as a (key, kind, subject, severity, since, says, todo, link, labels, shops, opened_at)
    select c.key, c.kind, c.subject, c.severity, c.since, c.says, c.todo, c.link, coalesce(c.labels, 0),
           coalesce(c.shops, '{}'), case c."do" when 'open' then clock_timestamp() end
    from jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" in ('see', 'open', 'keep') order by c.key
    on conflict (key) where closed_at is null do update
    set severity = excluded.severity, says = excluded.says, todo = excluded.todo, link = excluded.link,
        labels = excluded.labels, shops = excluded.shops, gone_at = null,
        opened_at = coalesce(a.opened_at, excluded.opened_at);

    update esl.alerts a set gone_at = coalesce(a.gone_at, clock_timestamp())
    from jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" = 'gone' and a.key = c.key and a.closed_at is null;

    update esl.alerts a set closed_at = clock_timestamp()
    from jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" = 'close' and a.key = c.key and a.closed_at is null and a.opened_at is not null;

    delete from esl.alerts a using jsonb_populate_recordset(null::esl.alert_row, p_changes) c
    where c."do" = 'forget' and a.key = c.key and a.closed_at is null and a.opened_at is null;
end $$;

-- {changes: [...] (esl.alert_row), recipients: [{name, severity}]} -> {}. see: not told yet. open: to be told. keep: it
-- has other words. gone: it seems to be over. close: it is. forget: it was over before it was told. Every recipient is
-- told of each open alert that is severe enough for it, and of the end of what it was to be told of; where sending to
-- it fails, what is new waits for the next try as well.
create or replace function public.esl_alert_record(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    perform esl.alerts_change(p -> 'changes');
    insert into esl.alert_deliveries (alert_id, event, recipient, next_at)
    select a.id, e.event, r.name, greatest(now(), (
               select max(d.next_at) from esl.alert_deliveries d where d.recipient = r.name and d.sent_at is null))
    from (select * from esl.alerts where closed_at is null and opened_at is not null
          union all select * from esl.alerts where closed_at > now() - interval '1 hour') a
    cross join jsonb_populate_recordset(null::esl.recipient_row, p -> 'recipients') r
    cross join lateral (select case when a.closed_at is null then 'opened' else 'closed' end) e (event)
    where case e.event
          when 'opened' then esl.severity_rank(a.severity) >= esl.severity_rank(r.severity)
          else exists (select from esl.alert_deliveries d
                       where d.alert_id = a.id and d.recipient = r.name and d.event = 'opened') end
    order by a.id, r.name
    on conflict (alert_id, recipient, event) do nothing;
    return '{}';
end $$;

-- {claim_id, recipients: [names], critical_only, limit, seconds} -> {deliveries: [{id, recipient, event, attempts,
-- alert: {...}}]}: leases what is to be sent to these now, of each the oldest so many, for so many seconds; the same to
-- who asks again. critical_only: the rest waits.
create or replace function public.esl_alert_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    update esl.alert_deliveries d
    set claim_id = (p ->> 'claim_id')::uuid, attempts = attempts + 1,
        lease_until = clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8)
    from (select x.id from jsonb_array_elements_text(p -> 'recipients') r (name) cross join lateral (
              select o.id from esl.alert_deliveries o join esl.alerts a on a.id = o.alert_id
              where o.recipient = r.name and o.sent_at is null and o.next_at <= now()
                and coalesce(o.lease_until <= clock_timestamp(), true)
                and (a.severity = 'critical' or not (p ->> 'critical_only')::boolean)
              order by o.created_at, o.alert_id limit (p ->> 'limit')::int for update of o skip locked) x) due
    where d.id = due.id
      and not exists (select from esl.alert_deliveries c where c.claim_id = (p ->> 'claim_id')::uuid);
    return jsonb_build_object('deliveries', (
        select coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'recipient', d.recipient, 'event', d.event,
                                                     'attempts', d.attempts, 'alert', to_jsonb(a))
                                  order by d.recipient, d.created_at, d.alert_id), '[]')
        from esl.alert_deliveries d join esl.alerts a on a.id = d.alert_id
        where d.claim_id = (p ->> 'claim_id')::uuid and d.sent_at is null));
end $$;

-- {claim_id, told: [{recipient, error?, again_seconds?}]} -> {}: how it ended. Where it failed, all that waits for that
-- recipient is tried again then.
create or replace function public.esl_alert_sent(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    update esl.alert_deliveries d
    set sent_at = case when t.error is null then clock_timestamp() end, last_error = t.error, claim_id = null,
        lease_until = null, next_at = case when t.error is null then d.next_at else clock_timestamp() end
    from jsonb_populate_recordset(null::esl.told_row, p -> 'told') t
    where d.claim_id = (p ->> 'claim_id')::uuid and d.recipient = t.recipient;
    update esl.alert_deliveries d
    set next_at = greatest(d.next_at, clock_timestamp() + make_interval(secs => t.again_seconds))
    from jsonb_populate_recordset(null::esl.told_row, p -> 'told') t
    where d.recipient = t.recipient and t.error is not null and d.sent_at is null;
    return '{}';
end $$;

-- {open?, limit} -> {alerts: [{..., told: [{recipient, event, sent_at, attempts, last_error}]}]}: those that people are
-- told of, open ones first, then the newest. open: no others.
create or replace function public.esl_alert_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('alerts', coalesce(jsonb_agg(
               to_jsonb(t) || jsonb_build_object('told', (
                   select coalesce(jsonb_agg(to_jsonb(d) - '{id,alert_id,claim_id,lease_until}'::text[]
                                             order by d.recipient, d.created_at), '[]')
                   from esl.alert_deliveries d where d.alert_id = t.id))
               order by t.closed_at is not null, t.id desc), '[]'))
    from (select a.* from esl.alerts a
          where a.opened_at is not null and (a.closed_at is null or (p ->> 'open')::boolean is not true)
          order by a.closed_at is not null, a.id desc limit (p ->> 'limit')::int) t
$$;
