-- A removal that may unbind physical labels waits.

-- Places whose label is to go and waits (functions/grace.sql). decided_at: when that was decided. since: when the wait
-- began: once the label is blanked, or may stay as it is; null: it is still to be blanked. until: when the place is to
-- be looked at again; null: nobody has to, what is to be done is queued. label, label_hash: what hung when it was
-- decided. approved: somebody has approved the removal.
create table if not exists esl.graces (
    store_code text not null,
    code       text not null,
    decided_at timestamptz not null default clock_timestamp(),
    since      timestamptz,
    until      timestamptz,
    label      jsonb not null,
    label_hash text not null,
    approved   boolean not null default false,
    primary key (code, store_code)
);
create index if not exists graces_by_until on esl.graces (until) where until is not null;
create index if not exists graces_by_store on esl.graces (store_code);

-- Removals that were queued before there was a grace are decided again, so that it holds for them as well.
update esl.products o set due = true, revision = nextval('esl.revision')
from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
where q.operation = 'delete' and q.state <> 'leased' and not o.due
  and o.variant_id = q.variant_id and o.source_store_id = m.source_store_id and o.source_system = m.source_system
  and not exists (select from esl.graces g where g.code = q.code and g.store_code = q.store_code);

-- rise_since: the first price rise accepted that no trigger was begun for; claimed_rise_since: the one that the trigger
-- under way takes care of.
alter table esl.refresh_marks
    add column if not exists rise_since timestamptz,
    add column if not exists claimed_rise_since timestamptz;

-- Functions that have other arguments, or other columns, from now on.
drop function if exists esl.decisions(text[], text[]);
drop function if exists esl.drastic_kind(text, jsonb, text, jsonb, text, jsonb);
drop function if exists esl.want_refresh(text);
