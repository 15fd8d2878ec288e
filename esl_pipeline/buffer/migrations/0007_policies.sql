-- Store policies: what more is known of variants and shops, previews, removals that wait for approval, price history.

-- is_dry_run: labels are evaluated and queued, so that the differences can be looked at, but nothing is pushed.
alter table esl.store_mappings add column if not exists is_dry_run boolean not null default false;
update esl.store_mappings
set settings = settings - 'currency' || jsonb_build_object('expected_currency', settings -> 'currency')
where settings ? 'currency';

alter table esl.products
    add column if not exists handle text,
    add column if not exists option1 text,
    add column if not exists option2 text,
    add column if not exists option3 text,
    add column if not exists source_created_at text;
create index if not exists products_due_by_shop on esl.products (source_store_id, source_system) where due;

-- What only the Admin API says of a variant; kept apart, because webhooks would take it away again.
create table if not exists esl.variant_details (
    source_system          text not null,
    source_store_id        text not null,
    variant_id             text not null,
    gift_card              boolean not null default false,
    unit_price             text,
    unit_price_measurement jsonb,
    primary key (variant_id, source_store_id, source_system)
);

-- What a shop's prices are.
create table if not exists esl.shops (
    source_system   text not null,
    source_store_id text not null,
    currency        text,
    taxes_included  boolean,
    time_zone       text,
    updated_at      timestamptz not null,
    primary key (source_store_id, source_system)
);

-- kept: the variant has left, its label stays. blank: its label stays without text. precedence: see duplicate_rule.
alter table esl.labels add column if not exists precedence text;
alter table esl.labels drop constraint if exists labels_state_check;
alter table esl.labels
    add constraint labels_state_check check (state in ('publish', 'held', 'kept', 'blank', 'withdrawn'));

-- guarded: one of too many removals or large price changes at once, which wait for somebody's approval.
-- is_drastic: a removal, or a price change by more than max_change_pct.
alter table esl.sync_queue
    add column if not exists is_drastic boolean not null default false,
    add column if not exists approved boolean not null default false;
update esl.sync_queue set is_drastic = true where operation = 'delete';
alter table esl.sync_queue drop constraint if exists sync_queue_state_check;
alter table esl.sync_queue
    add constraint sync_queue_state_check check (state in ('ready', 'leased', 'failed', 'dead', 'guarded'));
create index if not exists sync_queue_drastic on esl.sync_queue (store_code) where is_drastic;

create table if not exists esl.approvals (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    store_code text not null,
    removals   integer not null,
    prices     integer not null,
    by         text not null
);
create or replace trigger approvals_append_only before update or delete or truncate on esl.approvals
    for each statement execute function esl.refuse_change();

-- The prices that labels have shown, from when on; for the lowest price of the last 30 days.
create table if not exists esl.price_history (
    variant_id text not null,
    mapping_id uuid not null,
    since      timestamptz not null,
    price      numeric not null,
    primary key (variant_id, mapping_id, since)
);
insert into esl.price_history
select variant_id, mapping_id, at, price from (
    select i.variant_id, i.mapping_id, r.at, (i.label ->> 'pp')::numeric as price,
           lag((i.label ->> 'pp')::numeric) over (partition by i.variant_id, i.mapping_id order by r.id) as before
    from esl.sync_log i join esl.sync_log r using (push_id, code)
    where i.kind = 'intent' and r.kind = 'result' and r.outcome = 'accepted' and i.operation = 'upsert') shown
where price is distinct from before
on conflict do nothing;
