"""Plans are kept only while they are of tables about as large as those that are there."""

import psycopg

MODE = "select set_config('plan_cache_mode', 'auto', true), esl.choose_plans(), current_setting('plan_cache_mode')"
GROW = """
insert into esl.sync_log (kind, push_id, mapping_id, variant_id, store_code, code, operation, attempt)
select 'intent', gen_random_uuid(), gen_random_uuid(), 'v' || n, '001', 'C-' || n, 'delete', 1
from generate_series(1, %s) n"""


def test_plans_are_kept_until_a_table_has_grown_and_again_once_it_is_analysed(buffer_dsn: str) -> None:
    def mode() -> str:
        found = connection.execute(MODE).fetchone()
        assert found is not None
        return str(found[2])

    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        connection.execute("analyze")
        assert mode() == "force_generic_plan"
        connection.execute(GROW, [3_000])
        assert mode() == "force_custom_plan"
        connection.execute("analyze")
        assert mode() == "force_generic_plan"
