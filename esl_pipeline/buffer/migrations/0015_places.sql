-- Places: what waits for the window and what the guard counts are facts of their own, judged again at every requeue;
-- mappings say what is wrong with them.

-- Replaced by functions of other names or shapes.
drop view if exists esl.pushable;
drop function if exists esl.publishers(text[], text[]);
drop function if exists esl.window_is_open(jsonb, timestamptz);

-- problem: what labels/policy.py found unusable in the settings when the shop was evaluated last; null: nothing.
-- awaits_read_since: the mapping was given another shop then, which has not been read completely yet.
alter table esl.store_mappings
    add column if not exists problem text,
    add column if not exists awaits_read_since timestamptz;

-- priority is urgency alone: 0 a rise or a correction, 1 a cut, 2 other, 3 a removal.
-- is_rise: higher than what this variant's label shows; what raise_window holds back.
-- drastic: what the guard counts it as; null: nothing. A label that is blanked is a removal.
alter table esl.sync_queue
    add column if not exists is_rise boolean not null default false,
    add column if not exists drastic text check (drastic in ('removal', 'price'));
drop index if exists esl.sync_queue_drastic;
do $$
begin
    if exists (select from pg_catalog.pg_attribute where attrelid = 'esl.sync_queue'::regclass
               and attname = 'is_drastic' and not attisdropped) then
        update esl.sync_queue set drastic = case operation when 'delete' then 'removal' else 'price' end
        where is_drastic and drastic is null;
        alter table esl.sync_queue drop column is_drastic;
    end if;
end $$;
create index sync_queue_drastic on esl.sync_queue (store_code) where drastic is not null;
update esl.sync_queue q set is_rise = true from esl.hipoink_products s
where s.code = q.code and s.store_code = q.store_code and (s.mapping_id, s.variant_id) = (q.mapping_id, q.variant_id)
  and q.operation = 'upsert' and q.priority = 0 and not q.in_doubt and not q.is_rise;

-- What the label server accepted of drastic changes that nobody had approved, a row per push and kind; gone: of those,
-- labels that left the ledger. Kept as long as the longest guard_hours.
create table if not exists esl.drastic_changes (
    store_code text not null,
    at         timestamptz not null default clock_timestamp(),
    kind       text not null check (kind in ('removal', 'price')),
    labels     integer not null,
    gone       integer not null
);
create index if not exists drastic_changes_by_store on esl.drastic_changes (store_code, at);
create index if not exists approvals_by_store on esl.approvals (store_code, at);
create index if not exists hipoink_products_by_store on esl.hipoink_products (store_code, code);

-- Numbers beyond what the policy takes from now on are as good as its greatest.
do $$
declare v_name text;
begin
    foreach v_name in array array['guard_labels', 'max_change_pct'] loop
        update esl.store_mappings set settings = settings || jsonb_build_object(v_name, 1000000000)
        where case when jsonb_typeof(settings -> v_name) = 'number'
                   then (settings ->> v_name)::numeric > 1000000000 end;
    end loop;
end $$;

-- Numbers beyond a double's range: no process could read the answer that holds them.
alter table esl.store_mappings drop constraint if exists store_mappings_settings_numbers;
alter table esl.store_mappings add constraint store_mappings_settings_numbers check (
    not jsonb_path_exists(settings, '$.** ? (@.type() == "number" && (@ > 1e300 || @ < -1e300))')) not valid;

-- What mappings left behind in stores that they had left before: its variants are evaluated again, and it goes.
update esl.products o set due = true, revision = nextval('esl.revision')
from esl.hipoink_products s join esl.store_mappings m on m.id = s.mapping_id
where s.store_code <> m.hipoink_store_code and o.variant_id = s.variant_id and not o.due
  and o.source_system = m.source_system and o.source_store_id = m.source_store_id;
