"""What `esl-pipeline doctor` looks at: settings, buffer, label server, receiver, Dagster's storage."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import httpx
import psycopg
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.migrate import code_version
from esl_pipeline.connections import open_buffer, open_label_server
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.settings import Settings, SettingsError, without_driver


@dataclass(frozen=True)
class Check:
    """One thing looked at: ok, warning or wrong, and what to know or do."""

    what: str
    state: Literal["ok", "warning", "wrong"]
    says: str


def examine(settings: Settings) -> list[Check]:
    """Every check, in the order of the data's way. Raises nothing for what is wrong; that is a Check."""
    return [
        *(Check("settings", "warning", warning) for warning in settings.warnings()),
        *_buffer_checks(settings),
        _receiver_check(settings),
        _dagster_check(settings.esl_dagster_database_url),
    ]


def _buffer_checks(settings: Settings) -> Iterator[Check]:
    try:
        buffer = open_buffer(settings, attempts=1)
    except SettingsError as error:
        yield Check("buffer", "wrong", error.problems[0])
        return
    try:
        buffer.check_version()
        mappings = buffer.mapping_list()
    except BufferError as error:
        yield Check("buffer", "wrong", str(error))
        return
    else:
        yield Check("buffer", "ok", f"{buffer.transport.describe()}, version {code_version()}")
        if not mappings:
            yield Check(
                "stores", "warning", "no shop is mapped to a store: esl-pipeline stores add SHOP STORE"
            )
        active = {mapping["hipoink_store_code"] for mapping in mappings if mapping["is_active"]}
        yield from _label_server_checks(settings, buffer, sorted(active))
    finally:
        buffer.close()


def _label_server_checks(settings: Settings, buffer: Buffer, stores: list[str]) -> Iterator[Check]:
    try:
        client = open_label_server(settings, buffer)
    except SettingsError as error:
        yield Check("label server", "wrong", error.problems[0])
        return
    with client:
        if not stores:
            yield Check("label server", "warning", "not asked: no store is mapped yet")
        for store in stores:
            what = f"label server, store {store}"
            try:
                yield Check(what, "ok", f"holds {client.query_count(store)} labels")
            except HipoinkError as error:
                yield Check(what, "wrong", str(error))


def _receiver_check(settings: Settings) -> Check:
    if settings.app_base_url is None:
        return Check("receiver", "warning", "not asked: APP_BASE_URL is not set")
    try:
        answer = httpx.get(f"{settings.app_base_url}/health", timeout=10)
    except httpx.HTTPError as error:
        return Check("receiver", "wrong", f"{settings.app_base_url} does not answer: {type(error).__name__}")
    if answer.status_code == httpx.codes.OK:
        return Check("receiver", "ok", f"{settings.app_base_url} keeps webhooks")
    return Check("receiver", "wrong", f"{settings.app_base_url}/health answers {answer.status_code}")


def _dagster_check(url: SecretStr | None) -> Check:
    if url is None:
        return Check("Dagster's storage", "ok", "the embedded Postgres of `esl-pipeline up`")
    try:
        dsn = without_driver(url)
        with psycopg.connect(dsn, connect_timeout=10) as connection:
            row = connection.execute("select current_schema()").fetchone()
    except psycopg.Error as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Check("Dagster's storage", "wrong", f"cannot be reached: {reason}")
    schema = row[0] if row else None
    if schema == "public":
        return Check(
            "Dagster's storage",
            "wrong",
            "its tables would be in schema public, which Supabase exposes: give Dagster a role with a "
            "search_path of its own",
        )
    if schema is None:
        return Check(
            "Dagster's storage", "wrong", "no schema of its role's search_path exists: create one for it"
        )
    return Check("Dagster's storage", "ok", f"schema {schema}")
