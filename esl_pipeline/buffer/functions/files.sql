-- Sources that are read from files: which files there were, what became of them, and what is wrong with single rows.

create or replace function esl.files_of(p_shop jsonb) returns setof esl.source_files
language sql stable as $$  -- without a search_path of its own, so that it is inlined
    select f.* from esl.source_files f
    where f.source_system = p_shop ->> 'source_system' and f.source_store_id = p_shop ->> 'source_store_id'
$$;

-- Whether a file was read again later, by columns that were called otherwise: what stands is not what f says.
create or replace function esl.is_read_otherwise(f esl.source_files) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from esl.source_files o
        where (o.source_store_id, o.source_system, o.name, o.size, o.modified_at)
            = (f.source_store_id, f.source_system, f.name, f.size, f.modified_at)
          and o.columns <> f.columns and o.state = 'applied' and o.version_at > f.version_at)
$$;

-- {shop, files: [{name, size, modified_at, sha256?, kind?}], columns} -> {files, held, last, last_full, same}: what is
-- known of these files when their columns are called so (of an applied change list also when they were called
-- otherwise); variants whose rows are wrong; the newest file that was applied or is about to be, the newest full list
-- that was, and the newest other file of such a kind and hash that was.
create or replace function public.esl_files_known(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with asked as (
        select * from jsonb_populate_recordset(null::esl.file_row, p -> 'files')
    ), used as (
        select * from esl.files_of(p -> 'shop') where state in ('applied', 'ready', 'approved') and reason is null
    ), applied as (
        select * from used where state = 'applied'
    )
    select jsonb_build_object(
        'files', (select coalesce(jsonb_agg(to_jsonb(f) order by f.version_at), '[]')
                  from esl.files_of(p -> 'shop') f join asked a using (name, size, modified_at)
                  where (f.kind = 'changes' and f.state = 'applied')
                     or (f.columns = p ->> 'columns' and not esl.is_read_otherwise(f))),
        'held', (select coalesce(jsonb_agg(r.variant_id), '[]') from esl.row_problems r
                 where r.source_system = p #>> '{shop,source_system}'
                   and r.source_store_id = p #>> '{shop,source_store_id}'),
        'last', (select to_jsonb(f) from used f order by f.version_at desc limit 1),
        'last_full', (select to_jsonb(f) from applied f where f.kind = 'full' order by f.version_at desc limit 1),
        'same', (select to_jsonb(f) from applied f join asked a using (sha256, kind)
                 where f.columns = p ->> 'columns'
                   and (f.name, f.size, f.modified_at) <> (a.name, a.size, a.modified_at)
                 order by f.version_at desc limit 1))
$$;

-- {shop, file: {name, size, modified_at, columns, sha256, kind, key, fields, state, reason, rows, listed, held,
-- deleted, complaints}, run_id} -> the file's row: how it was judged. One that is known already stays as it is.
-- version_at: modified_at, or as soon after it as no other file of the shop has. Read again by other columns, also by
-- those of before, a file is a newer statement each time.
create or replace function public.esl_files_note(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare f esl.source_files; v_known esl.source_files;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.source_files', 0));
    f := jsonb_populate_record(null::esl.source_files, (p -> 'file') || (p -> 'shop'));
    select * into v_known from esl.files_of(p -> 'shop') o
    where (o.name, o.size, o.modified_at, o.columns) = (f.name, f.size, f.modified_at, f.columns);
    if found and not esl.is_read_otherwise(v_known) then
        return to_jsonb(v_known);
    end if;
    f.version_at := greatest(f.modified_at, (
        select max(o.version_at) + interval '1 microsecond' from esl.files_of(p -> 'shop') o
        where (o.name, o.size, o.modified_at) = (f.name, f.size, f.modified_at)));
    while exists (select from esl.files_of(p -> 'shop') o where o.version_at = f.version_at) loop
        f.version_at := f.version_at + interval '1 microsecond';
    end loop;
    insert into esl.source_files (source_system, source_store_id, name, size, modified_at, columns, sha256, version_at,
                                  kind, key, fields, state, reason, rows, listed, held, deleted, complaints, run_id,
                                  applied_at)
    values (f.source_system, f.source_store_id, f.name, f.size, f.modified_at, f.columns, f.sha256, f.version_at,
            f.kind, f.key, coalesce(f.fields, '[]'), f.state, f.reason, coalesce(f.rows, 0), coalesce(f.listed, 0),
            coalesce(f.held, 0), coalesce(f.deleted, 0), coalesce(f.complaints, '[]'), p ->> 'run_id',
            case when f.state = 'applied' then clock_timestamp() end)
    on conflict (source_store_id, source_system, name, size, modified_at, columns) do update
    set sha256 = excluded.sha256, version_at = excluded.version_at, kind = excluded.kind, key = excluded.key,
        fields = excluded.fields, state = excluded.state, reason = excluded.reason, rows = excluded.rows,
        listed = excluded.listed, held = excluded.held, deleted = excluded.deleted, complaints = excluded.complaints,
        run_id = excluded.run_id, applied_at = excluded.applied_at
    returning * into f;
    return to_jsonb(f);
end $$;

-- {file_id, told?, run_id} -> {applied}: all that the file says is stored. Rows that were wrong in older files are so
-- no more: those of the products in `told`, or, of a full list (no `told`), all of them. Full lists that are older will
-- not be read any more, whatever they have waited for.
create or replace function public.esl_files_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare f esl.source_files; v_applied boolean;
begin
    update esl.source_files
    set state = 'applied', reason = null, applied_at = clock_timestamp(), run_id = p ->> 'run_id'
    where id = (p ->> 'file_id')::bigint and state in ('ready', 'approved') returning * into f;
    v_applied := found;
    if not found then
        select * into f from esl.source_files where id = (p ->> 'file_id')::bigint;
    end if;
    update esl.source_files o
    set state = 'refused', reason = format('it is older than %s, which was applied', f.name)
    where f.kind = 'full' and f.state = 'applied' and o.kind = 'full' and o.state in ('ready', 'approved', 'waiting')
      and o.source_store_id = f.source_store_id and o.source_system = f.source_system and o.version_at < f.version_at;
    with right_again as (
        delete from esl.row_problems r
        where r.source_store_id = f.source_store_id and r.source_system = f.source_system
          and r.version_at < f.version_at and coalesce(p -> 'told' ? r.variant_id, true)
        returning r.variant_id
    )
    update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'read'
    from right_again r
    where o.variant_id = r.variant_id and o.source_store_id = f.source_store_id
      and o.source_system = f.source_system and not o.removed;
    return jsonb_build_object('applied', v_applied);
end $$;

-- {shop?, limit} -> {files: [...]}: the newest first. is_open: refused or waiting, and no full list since.
create or replace function public.esl_files_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'files', coalesce(jsonb_agg(to_jsonb(t) - 'db_user' order by t.version_at desc, t.id desc), '[]')) from (
        select f.*, f.state in ('refused', 'waiting') and not exists (
                   select from esl.source_files o
                   where o.source_store_id = f.source_store_id and o.source_system = f.source_system
                     and o.kind = 'full' and o.state = 'applied' and o.version_at > f.version_at) as is_open
        from esl.source_files f
        where p -> 'shop' is null or (f.source_system, f.source_store_id)
            = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}')
        order by f.version_at desc, f.id desc limit (p ->> 'limit')::int) t
$$;

-- {shop, name, by} -> {file}: the newest file of that name that waits may be read; null: none waits.
create or replace function public.esl_files_approve(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare f esl.source_files;
begin
    update esl.source_files
    set state = 'approved', approved_at = clock_timestamp(), approved_by = p ->> 'by', db_user = session_user
    where id = (select o.id from esl.files_of(p -> 'shop') o
                where o.name = p ->> 'name' and o.state = 'waiting' order by o.version_at desc limit 1)
    returning * into f;
    return jsonb_build_object('file', case when found then to_jsonb(f) - 'db_user' end);
end $$;

-- {problems: [{source_system, source_store_id, variant_id, version_at, problem}]} -> {noted}: what is wrong with what
-- was said of variants, told before it is stored. Of a product of which something newer is stored nothing is noted.
create or replace function public.esl_problems_note(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with noted as (
        insert into esl.row_problems as o (source_system, source_store_id, variant_id, version_at, problem)
        select d.source_system, d.source_store_id, d.variant_id, d.version_at, d.problem
        from jsonb_populate_recordset(null::esl.row_problems, p -> 'problems') d
        where not exists (
            select from esl.product_versions v
            where v.product_id = d.variant_id and v.source_store_id = d.source_store_id
              and v.source_system = d.source_system and v.version_at > d.version_at)
        on conflict (variant_id, source_store_id, source_system) do update
        set version_at = excluded.version_at, problem = excluded.problem
        where excluded.version_at >= o.version_at
          and (o.version_at, o.problem) <> (excluded.version_at, excluded.problem)
        returning source_system, source_store_id, variant_id
    ), marked as (
        update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'read'
        from noted n
        where o.variant_id = n.variant_id and o.source_store_id = n.source_store_id
          and o.source_system = n.source_system and not o.removed
    )
    select jsonb_build_object('noted', (select count(*) from noted))
$$;

-- {snapshot_id, unclear: [{lowest, highest, title}]} -> {kept}: the source lists products of which it does not say
-- which they are. None that may be one of them is concluded to be absent: of codes in that span, else of that title,
-- else any.
create or replace function public.esl_snapshot_keep(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare s esl.snapshots; v_kept int;
begin
    select * into s from esl.snapshots
    where id = (p ->> 'snapshot_id')::uuid and state = 'open' for no key update;
    insert into esl.snapshot_variants (variant_id, snapshot_id)
    select distinct o.variant_id, s.id
    from jsonb_populate_recordset(null::esl.unclear_row, p -> 'unclear') d
    join esl.products o
      on o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
     and case when d.lowest is not null then length(ltrim(o.barcode, '0')) = length(d.lowest)
                   and ltrim(o.barcode, '0') collate "C" between d.lowest and d.highest
              when d.title is not null then lower(o.title) = lower(d.title) else true end
    on conflict do nothing;
    get diagnostics v_kept = row_count;
    update esl.snapshots set seen = seen + v_kept where id = s.id and v_kept > 0;
    return jsonb_build_object('kept', v_kept);
end $$;

-- The file that a variant's present content is from; null where it is from none.
create or replace function esl.file_of(o esl.products) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('name', f.name, 'sha256', f.sha256, 'modified_at', f.modified_at, 'kind', f.kind,
                              'run_id', f.run_id, 'applied_at', f.applied_at)
    from esl.source_files f
    where f.source_store_id = o.source_store_id and f.source_system = o.source_system
      and f.version_at = o.source_updated_at
$$;
