"""Dagster in this process, on a real buffer and a real label server."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.orchestration.near_real_time import HOLDER_TAG
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.orchestration.world import KEY, OTHER_KEY

# Dagster warns about calls of its own.
DAGSTERS_OWN_WARNINGS = (
    "ignore:The `__fields__` attribute is deprecated",
    "ignore:InitResourceContext.dagster_run is deprecated",
)

ASSETS = ("shopify_products", "validated_variants", "hipoink_sync_results")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in DAGSTERS_OWN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox() as found:
        yield found


@dataclass
class Pipeline:
    """The definitions with everything that they need from outside."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    buffer: Buffer
    dsn: str
    sandbox: Sandbox
    dagster_dsn: str = ""

    def materialize(
        self, *names: str, shop: str = KEY, raise_on_error: bool = True, **resources: Any
    ) -> dg.ExecuteInProcessResult:
        """Materialize all three assets of one shop, or those named."""
        assets = [self.definitions.get_assets_def(name) for name in ASSETS]
        return dg.materialize(
            assets,
            selection=list(names) or None,
            instance=self.instance,
            partition_key=shop,
            resources={**(self.definitions.resources or {}), **resources},
            raise_on_error=raise_on_error,
        )

    def drain(self, *, raise_on_error: bool = True, holder: str = "") -> dg.ExecuteInProcessResult:
        """One drain run."""
        tags = {HOLDER_TAG: holder} if holder else {}
        return self.definitions.resolve_job_def("event_sync").execute_in_process(
            instance=self.instance, tags=tags, raise_on_error=raise_on_error
        )

    def sql(self, query: str) -> None:
        """Change the buffer behind everyone's back."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(query.encode())

    def rows(self, query: str) -> list[Any]:
        """Look behind the functions."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query.encode()).fetchall()

    def sql_elsewhere(self, query: str) -> None:
        """The same, from another database of the server."""
        with psycopg.connect(self.dsn, dbname="postgres", autocommit=True) as connection:
            connection.execute(query.encode())

    def labels(self, store: str) -> dict[str, Any]:
        """What hangs in a store, by code."""
        return self.sandbox.state()["labels"].get(store, {})


@pytest.fixture
def pipeline(
    monkeypatch: pytest.MonkeyPatch, buffer: Buffer, buffer_dsn: str, sandbox: Sandbox
) -> Iterator[Pipeline]:
    for name, value in {
        "ESL_DATABASE_URL": buffer_dsn,
        "HIPOINK_API_BASE_URL": sandbox.url,
        "HIPOINK_API_SECRET": SIGN,
        "HIPOINK_RATE_LIMIT_PER_SECOND": "1000",
        "ESL_DRAIN_IDLE_SECONDS": "0.4",
        "ESL_DRAIN_KEEP_WARM": "false",
        "RETRY_INITIAL_DELAY_SECONDS": "0.05",
    }.items():
        monkeypatch.setenv(name, value)
    # Imported here: the module reads the settings, which the fixture before has cleared.
    from esl_pipeline.definitions import build_definitions

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shops", [KEY, OTHER_KEY])
        yield Pipeline(build_definitions(), instance, buffer, buffer_dsn, sandbox)
    assert "DAGSTER_HOME" not in os.environ
