-- How much may wait, and how long: of each shop, and of one that no store is mapped for.

-- Of each shop, how many deliveries wait and how many bytes their bodies have: the sum over its slots. A session counts in
-- one slot (its process number mod 16), so that deliveries which arrive at once do not wait for each other's commit; one
-- slot alone may be negative.
create table if not exists esl.shop_waiting (
    source_system   text not null,
    source_store_id text not null,
    slot            smallint not null,
    deliveries      bigint not null,
    bytes           bigint not null,
    primary key (source_store_id, source_system, slot)
) with (fillfactor = 50);
alter table esl.shop_waiting enable row level security;

-- not_kept: deliveries that were refused because too much waited already. expired: those that waited too long for a store
-- to be mapped, and were deleted.
alter table esl.shop_deliveries add column if not exists not_kept bigint not null default 0;
alter table esl.shop_deliveries add column if not exists last_not_kept_at timestamptz;
alter table esl.shop_deliveries add column if not exists expired bigint not null default 0;

-- Making a trigger locks the inbox until the end of the migration, so that the first count is right (as in 0016).
create or replace trigger webhook_inbox_count_deleted after delete on esl.webhook_inbox
    referencing old table as gone for each statement execute function esl.count_deliveries();
delete from esl.shop_waiting;
insert into esl.shop_waiting (source_system, source_store_id, slot, deliveries, bytes)
select source_system, source_store_id, 0, count(*), coalesce(sum(octet_length(body)), 0)
from esl.webhook_inbox where state in ('ready', 'leased') group by 1, 2;

-- The longest that ESL_WEBHOOK_BODY_LIMIT_BYTES lets through. Not valid: what is kept already stays.
alter table esl.webhook_inbox drop constraint if exists webhook_inbox_body_size;
alter table esl.webhook_inbox add constraint webhook_inbox_body_size check (octet_length(body) <= 10000000) not valid;
