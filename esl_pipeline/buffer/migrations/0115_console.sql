-- What people search for: a code, a SKU, words of a title (functions/console.sql).
create index if not exists products_by_barcode on esl.products (barcode text_pattern_ops) where barcode <> '';
create index if not exists products_by_words on esl.products using gin
    (to_tsvector('simple', coalesce(title, '') || ' ' || coalesce(variant_title, '')));
