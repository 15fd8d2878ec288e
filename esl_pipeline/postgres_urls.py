"""Addresses of Postgres databases, as settings: what can be read, and what is said about it. Pure."""

import os
import re
from typing import Annotated

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, SecretStr

from esl_pipeline.addresses import is_loopback


def _postgres_url(value: SecretStr) -> SecretStr:
    dsn = value.get_secret_value()
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise ValueError("is not a Postgres address; write postgresql://user:password@host:5432/database")
    try:
        conninfo_to_dict(dsn)
    except (psycopg.Error, UnicodeError):
        if unknown := _unknown_parameters(dsn):
            raise ValueError(
                f"has {' and '.join(unknown)} after the '?', which Postgres does not know as a parameter; leave it out "
                "(a pooler needs none of its own)"
            ) from None
        raise ValueError(
            "cannot be read as a Postgres address; write postgresql://user:password@host:5432/database and"
            " percent-encode special characters in the password (@ is %40, / is %2F, # is %23, % is %25)"
        ) from None
    return value


def _unknown_parameters(dsn: str) -> list[str]:
    """The names of parameters that libpq does not have; none where what follows a '?' may be part of a password."""
    place, _, query = dsn.partition("?")
    authority = place.partition("://")[2].partition("/")[0]
    if "@" in query or not ("@" in authority or re.fullmatch(r"[^:]*(:[0-9]+)?", authority)):
        return []
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} | {"ssl"}
    names = [part.partition("=")[0] for part in query.split("&")]
    return [name for name in names if name not in known and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)]


def _dagster_url(value: SecretStr) -> SecretStr:
    _postgres_url(SecretStr(without_driver(value)))
    return value


def without_driver(dsn: SecretStr) -> str:
    """A Postgres address as libpq reads it. SQLAlchemy's form, which Dagster's may have, names a driver too."""
    return re.sub(r"^postgresql\+psycopg2://", "postgresql://", dsn.get_secret_value())


def ports(dsn: SecretStr) -> list[str]:
    """The ports that the address names."""
    return str(conninfo_to_dict(without_driver(dsn)).get("port", "")).split(",")


def may_be_overheard(dsn: SecretStr) -> bool:
    """Whether it reaches another machine without saying how it is protected."""
    parameters = conninfo_to_dict(without_driver(dsn))
    hosts = str(parameters.get("hostaddr") or parameters.get("host") or "").split(",")
    there = [host for host in hosts if host and not host.startswith(("/", "@")) and not is_loopback(host)]
    return bool(there) and not (parameters.get("sslmode") or os.environ.get("PGSSLMODE"))


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
DagsterUrl = Annotated[SecretStr, AfterValidator(_dagster_url)]
