-- The rows that callers send, each said once: jsonb_populate_recordset(null::esl.<name>, …) reads them.
-- A type cannot be replaced, so each is made anew; the functions that use it go with it and are made anew after this file.

-- inbox, products, snapshot

-- labels, queue, drift
