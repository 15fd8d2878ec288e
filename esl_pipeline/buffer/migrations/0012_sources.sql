-- What a source said, said empty, and did not say; and when it said it.

-- unsaid: content that nobody has ever said of the variant (a webhook subscription with include_fields). What differs is
-- seen by comparing the columns themselves.
alter table esl.products
    add column if not exists unsaid text[] not null default '{}',
    drop column if exists content_hash;
create index if not exists products_unsaid
    on esl.products (product_id, source_store_id, source_system) where unsaid <> '{}' and not removed;

-- A level has a version, as a product has, and a tombstone: gone, so that late older news does not bring it back.
alter table esl.inventory_levels
    add column if not exists triggered_at timestamptz,
    add column if not exists body_sha256 text collate "C" not null default '',
    add column if not exists gone boolean not null default false;
-- Reads used to stand a microsecond above the webhook of the same second.
update esl.inventory_levels set triggered_at = updated_at, updated_at = date_trunc('second', updated_at)
where triggered_at is null;
alter table esl.inventory_levels alter column triggered_at set not null;

-- The levels that a snapshot has read, as esl.snapshot_variants. stock_as_of: when that read began; null: no stock read.
create unlogged table if not exists esl.snapshot_levels (
    inventory_item_id text not null,
    location_id       text not null,
    snapshot_id       uuid not null,
    primary key (inventory_item_id, location_id, snapshot_id)
);
alter table esl.snapshots
    add column if not exists levels_seen bigint not null default 0,
    add column if not exists stock_as_of timestamptz;

-- said_at: the time in the signed body. A copy is a copy when its trigger time says so too: within one second a price may
-- go and come back, in two bodies that are equal.
alter table esl.webhook_inbox add column if not exists said_at timestamptz;
do $$
declare v_name text;
begin
    select c.conname into v_name from pg_catalog.pg_constraint c
    where c.conrelid = 'esl.webhook_inbox'::regclass and c.contype = 'u'
      and pg_get_constraintdef(c.oid) = 'UNIQUE (source_system, source_store_id, topic, body_sha256)';
    if found then
        execute format('alter table esl.webhook_inbox drop constraint %I', v_name);
    end if;
end $$;
create unique index if not exists webhook_inbox_copies
    on esl.webhook_inbox (body_sha256, topic, source_store_id, source_system, triggered_at) nulls not distinct;
drop index if exists esl.webhook_inbox_revivable;
create index if not exists webhook_inbox_said
    on esl.webhook_inbox (source_store_id, source_system, said_at) where said_at is not null;

-- activated_at: when it was made or switched on last. switched_off: by which message, until somebody decides.
alter table esl.store_mappings
    add column if not exists activated_at timestamptz,
    add column if not exists switched_off text;
update esl.store_mappings set activated_at = created_at where activated_at is null;
alter table esl.store_mappings
    alter column activated_at set default now(),
    alter column activated_at set not null;

-- confirmed_at: nothing speaks against it. void: what did; then it is finished as well.
alter table esl.redactions
    add column if not exists inbox_id bigint,
    add column if not exists confirmed_at timestamptz,
    add column if not exists void text;
