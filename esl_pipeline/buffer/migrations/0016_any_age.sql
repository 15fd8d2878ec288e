-- What status asks, and what housekeeping deletes, is found without reading what is over.

-- Of each shop, how its deliveries have ended since it was first heard of, those included that are no longer kept.
-- refused_in_a_row: how many were not used since the last one that was; last_refusal: why not.
create table if not exists esl.shop_deliveries (
    source_system    text not null,
    source_store_id  text not null,
    done             bigint not null default 0,
    superseded       bigint not null default 0,
    unusable         bigint not null default 0,
    replays          bigint not null default 0,  -- of the unusable ones
    dead             bigint not null default 0,
    last_received_at timestamptz,                -- of the finished ones
    refused_in_a_row bigint not null default 0,
    last_refusal     text,
    primary key (source_store_id, source_system)
) with (fillfactor = 50);
alter table esl.shop_deliveries enable row level security;

-- Kept by triggers, whatever finishes a delivery; what they do is in functions/counters.sql. Making them locks the inbox
-- until the end of the migration, so that nothing is finished between them and the first count.
create or replace function esl.count_deliveries() returns trigger language plpgsql set search_path = '' as $$
begin
    return null;
end $$;
create or replace trigger webhook_inbox_count_added after insert on esl.webhook_inbox
    referencing new table as added for each statement execute function esl.count_deliveries();
create or replace trigger webhook_inbox_count_changed after update on esl.webhook_inbox
    referencing old table as was new table as is_now for each statement execute function esl.count_deliveries();

insert into esl.shop_deliveries
    (source_system, source_store_id, done, superseded, unusable, replays, dead, last_received_at)
select source_system, source_store_id,
       count(*) filter (where state = 'done'), count(*) filter (where state = 'superseded'),
       count(*) filter (where state = 'unusable'),
       count(*) filter (where state = 'unusable' and reason like 'replay suspected%'),
       count(*) filter (where state = 'dead'), max(received_at)
from esl.webhook_inbox where state not in ('ready', 'leased') group by 1, 2
on conflict do nothing;

-- The deliveries that esl_housekeep may forget one day.
create index if not exists webhook_inbox_forgettable on esl.webhook_inbox (finished_at)
    where finished_at is not null
      and topic in ('products/create', 'products/update', 'inventory_levels/update', 'app/uninstalled');

create index if not exists findings_open
    on esl.findings (level, check_name, variant_id, mapping_id) where resolved_at is null;
