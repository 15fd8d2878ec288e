"""Dagster's own storage for what runs beside a benchmark: in Postgres, as in production."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg


@contextmanager
def opened() -> Iterator[dg.DagsterInstance]:
    """The instance; who comes first makes its tables."""
    with psycopg.connect(os.environ["ESL_DAGSTER_DATABASE_URL"]) as connection:
        connection.execute("select pg_advisory_xact_lock(1)")
        instance = dg.DagsterInstance.get()
    with instance:
        yield instance
