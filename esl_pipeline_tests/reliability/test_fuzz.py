"""What `make fuzz` runs for minutes, for seconds: a hostile shop changes nothing for others, and what does is found."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.reliability.breaks import A_CALL_FAILS, BREAKS, Break
from esl_pipeline_tests.reliability.fuzz import FoundError, Fuzz, Side, fuzzing

pytestmark = pytest.mark.long


@pytest.fixture
def dsns(postgres: EmbeddedPostgres, buffer_dsn: str) -> Iterator[tuple[str, str]]:
    """Two migrated databases."""
    postgres.create_database("fuzz", template="migrated")
    yield buffer_dsn, postgres.dsn("fuzz")
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("drop database fuzz with (force)")


def rounds(run: Fuzz, most: int) -> None:
    turns = itertools.count()
    run.run(lambda: next(turns) < most)


def test_a_hostile_shop_changes_nothing_for_others(dsns: tuple[str, str], tmp_path: Path) -> None:
    with fuzzing(*dsns, tmp_path, seed=1) as run:
        rounds(run, 2)
    assert run.counted.total() > 40


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param(BREAKS["pairs"], "findings of ", id="pairs"),
        pytest.param(BREAKS["taken"], "of ", id="taken"),
        pytest.param(A_CALL_FAILS, "esl_variants_merge failed", id="call", marks=pytest.mark.slow),
    ],
)
def test_what_is_broken_on_purpose_is_found(
    dsns: tuple[str, str], tmp_path: Path, broken: Break, said: str
) -> None:
    def break_it(side: Side) -> None:
        side.sql(broken.sql)

    with fuzzing(*dsns, tmp_path, seed=1, break_it=break_it) as run, pytest.raises(FoundError, match=said):
        rounds(run, 30)
    print(f"found in round {run.rounds}")
