"""Temporary: the two fixtures of the database tests, until esl_pipeline_tests/conftest.py provides them."""

import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.gateway import create_supabase_roles

_numbers = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the session, in a place that its own user may enter (pytest's directories are closed to it)."""
    place = Path(tempfile.mkdtemp(prefix="esl-test-", dir="/tmp"))
    place.chmod(0o755)
    try:
        with EmbeddedPostgres.start(place / "data", durable=False) as server:
            yield server
    finally:
        shutil.rmtree(place)


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Admin DSN of a fresh database with the roles of a hosted project."""
    name = f"test_{next(_numbers)}"
    postgres.create_database(name)
    create_supabase_roles(postgres.dsn(name))
    yield postgres.dsn(name)
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)".encode())
