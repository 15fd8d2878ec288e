-- A SKU is searched for by its beginning, whatever its case (functions/console.sql). (0115 had given this index the
-- name of another, so it was never made.)
create index if not exists products_by_sku_start on esl.products (lower(sku) text_pattern_ops) where sku <> '';
-- Twice the same: mapping_changes_by_mapping.
drop index if exists esl.mapping_changes_of;
