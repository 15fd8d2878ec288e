-- Several label servers, by the names that the settings give them; a store is at one of them.
create table if not exists esl.stores (
    store_code   text primary key,
    label_server text not null default 'default' check (label_server ~ '^[a-z0-9][a-z0-9-]{0,31}$'),
    placed_at    timestamptz not null default now()
);

-- What was known under a server's address: its health and pace, which are learnt again.
delete from esl.label_servers where server ~ '[^a-z0-9-]';
delete from esl.leases where name = 'event_sync';  -- each server's drain has its own
drop function if exists esl.note_change(text, esl.store_mappings, esl.store_mappings);
drop function if exists esl.has_jump(timestamptz);
