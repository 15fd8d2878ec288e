-- Whose a product is, by evidence; what the tables themselves refuse; and who was there.

-- proven: signed with a secret that no other shop has, so that it cannot be another shop's body. contested: the product or
-- inventory item that kept it from being used, because another shop has it (see functions/owners.sql).
alter table esl.webhook_inbox
    add column if not exists proven boolean not null default false,
    add column if not exists contested text;
create index if not exists webhook_inbox_contested on esl.webhook_inbox (contested) where contested is not null;

-- own_secret: whether its newest finished delivery was proven.
alter table esl.shop_deliveries add column if not exists own_secret boolean not null default false;

-- What several shops claim, of a source whose ids are unique over all of its shops. thing: product:1, inventory_item:1.
-- owner: whose it is, null until that is settled; settled_by: on what evidence or by whom, db_user: through which login.
create table if not exists esl.contests (
    source_system text not null,
    thing         text not null,
    shops         text[] not null,
    since         timestamptz not null default clock_timestamp(),
    owner         text,
    settled_at    timestamptz,
    settled_by    text,
    db_user       text,
    primary key (thing, source_system)
);
create index if not exists contests_open on esl.contests (since) where owner is null;
alter table esl.contests enable row level security;

-- The Admin token of a shop goes to the address of its name, so whoever writes the table, the name is a shop's. What was
-- otherwise could never be read and never sent a webhook: it is switched off, and stays so.
update esl.store_mappings set is_active = false, switched_off = 'an update: its shop''s name is no myshopify.com domain'
where is_active and source_system = 'shopify' and source_store_id !~ '^[a-z0-9][a-z0-9-]{0,62}[.]myshopify[.]com$';
do $$
begin
    if not exists (select from pg_catalog.pg_constraint where conname = 'store_mappings_shop'
                   and conrelid = 'esl.store_mappings'::regclass) then
        alter table esl.store_mappings add constraint store_mappings_shop check (
            source_system <> 'shopify' or source_store_id ~ '^[a-z0-9][a-z0-9-]{0,62}[.]myshopify[.]com$') not valid;
    end if;
end $$;

-- The login that the database saw, beside the name that the caller gave. Older rows: not known.
alter table esl.mapping_changes add column if not exists db_user text;
alter table esl.mapping_changes alter column db_user set default session_user;
alter table esl.approvals add column if not exists db_user text;
alter table esl.approvals alter column db_user set default session_user;

-- An order to erase is judged two days after it came, and carried out then.
alter table esl.redactions add column if not exists not_before timestamptz not null
    default clock_timestamp() + interval '48 hours';
