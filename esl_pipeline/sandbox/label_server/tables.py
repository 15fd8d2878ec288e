"""The tables of the sandbox's devices, beside those of its labels (store.py)."""

SCHEMA = """
create table if not exists device (
    id integer primary key autoincrement, store text not null, esl text not null,
    product text, template integer, model text not null, ap text not null,
    offline integer not null default 0, asleep integer not null default 0, fallen integer not null default 0,
    reach integer not null default 1, silent integer not null default 0, since real not null,
    battery real not null, battery_at real not null, drain real not null, dies_at real not null,
    waits integer not null default 0, due_at real, shown text, shown_at real,
    created real not null, updated real not null, flashes integer not null default 0, change integer not null,
    unique (store, esl)
);
create index if not exists device_order on device (store, id);
create index if not exists device_product on device (store, product);
create index if not exists device_change on device (change);
create index if not exists device_waits on device (store) where waits = 1;
create index if not exists device_due on device (due_at) where reach = 1 and due_at is not null;
create table if not exists dead_ap (store text not null, ap text not null, primary key (store, ap));
create table if not exists floor (store text primary key, floor text not null);
create table if not exists template (
    id integer primary key, model text not null, name text not null, is_default integer not null, fields text
);
create temp view if not exists place as
select d.*, l.record as held, l.search, t.fields,
    exists (select 1 from dead_ap a where a.store = d.store and a.ap = d.ap) as ap_dead
from device d
left join label l on l.store = d.store and l.code = d.product
left join template t on t.id = d.template;
"""

TEMPLATES = """
insert or ignore into template (id, model, name, is_default, fields) values
    (1, 'ESL29', 'Price', 1, null), (2, 'ESL29', 'Text without a price', 0, '["pn", "ps", "f1"]'),
    (3, 'ESL42', 'Price, large', 1, null), (4, 'ESL42', 'Text without a price, large', 0, '["pn", "ps", "f1"]')
"""
"""The server's own templates: two for each model, the default one with a price."""
