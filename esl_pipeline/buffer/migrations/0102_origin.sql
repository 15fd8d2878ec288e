-- Where a product comes from, as far as its source says it.
alter table esl.products add column if not exists origin text;
