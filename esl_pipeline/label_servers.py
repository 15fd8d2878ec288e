"""The label servers of the settings: today's single variables are `default`, a TOML file names further ones.

    [north]                                     # its name; its sign is HIPOINK_API_SECRET__NORTH
    base_url = "https://labels-north.example.com"

The keys of a table are those of `_KEYS`, each judged as the single variable is. No sign may stand in the file.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, create_model, field_validator
from pydantic.fields import FieldInfo

from esl_pipeline.environment import ENV_FILE, did_you_mean, fault, is_private, is_unprotected, printable_text
from esl_pipeline.model.label_server import DEFAULT_SERVER

# The sign of a fresh label server's "default" app key, as printed in the vendor's documentation.
PUBLIC_SIGN = "80805d794841f1b4"
FILE_VARIABLE = "HIPOINK_SERVERS_FILE"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_SIGN_OF_DEFAULT = "HIPOINK_API_SECRET"
_SIGN_PREFIX = f"{_SIGN_OF_DEFAULT}__"
# The keys of a table, and the single variable that each is like.
_KEYS = {
    "base_url": "hipoink_api_base_url",
    "client_id": "hipoink_client_id",
    "rate_limit_per_second": "hipoink_rate_limit_per_second",
    "concurrency": "hipoink_concurrency",
    "batch_size": "hipoink_batch_size",
    "ca_file": "hipoink_ca_file",
}
_SECRET = re.compile(r"secret|sign|password|token|key", re.IGNORECASE)


@dataclass(frozen=True)
class LabelServerSettings:
    """One label server: where it is, how it is spoken to, and how much of it is used."""

    base_url: str
    client_id: str
    rate_limit_per_second: float
    concurrency: int
    batch_size: int
    ca_file: Path | None = None
    sign: SecretStr = field(default=SecretStr(PUBLIC_SIGN))

    @property
    def uses_public_sign(self) -> bool:
        """Whether it is addressed with the documented default sign, which is no secret."""
        return self.sign.get_secret_value() == PUBLIC_SIGN


def is_server_name(text: str) -> bool:
    """Whether a label server may be called so."""
    return _NAME.fullmatch(text) is not None


def sign_variable(name: str) -> str:
    """The variable that holds a label server's sign. No two names have the same one: they hold no `_`."""
    return _SIGN_OF_DEFAULT if name == DEFAULT_SERVER else _SIGN_PREFIX + name.upper().replace("-", "_")


def is_sign_variable(name: str) -> bool:
    """Whether a variable would hold the sign of a server of the file."""
    return name.upper().startswith(_SIGN_PREFIX)


def check_protected(url: str, *, insecure_allowed: bool) -> None:
    """Raises ValueError where the sign would travel unprotected without a clear word that it may."""
    if not is_unprotected(url):
        return
    if not insecure_allowed:
        raise ValueError(
            "is http:// to another machine, where the sign and the prices travel unprotected; use https://, "
            "or on a private network set ALLOW_INSECURE_LABEL_SERVER=true"
        )
    if not is_private(url):
        raise ValueError(
            "is http:// to an address that is not private; use https://, or write the label server's private "
            "IP address, e.g. http://192.168.1.5:8090"
        )


def signs_given(given: Mapping[str, Any]) -> dict[str, str]:
    """The signs of the file's servers by their variable: of the environment, and of these overrides, which win."""
    try:
        in_file = dotenv_values(ENV_FILE, encoding="utf-8")
    except (OSError, UnicodeError):  # as the other settings say
        in_file = {}
    found = {
        name.upper(): str(value or "").strip()
        for source in (in_file, os.environ, given)
        for name, value in source.items()
        if is_sign_variable(name)
    }
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class ServersFile:
    """What the file and the signs beside it say. problems: a sentence each, with file, table and key."""

    servers: Mapping[str, LabelServerSettings]
    problems: list[str]
    warnings: list[str]


def read_servers(
    file: Path | None,
    signs: Mapping[str, str],
    fields: Mapping[str, FieldInfo],
    *,
    default_sign: SecretStr | None,
    has_default: bool,
    insecure_allowed: bool,
) -> ServersFile:
    """The label servers of the file; fields: the single variables, whose rules hold for its keys too.

    has_default: the single variables describe a server `default` already.
    """
    problems: list[str] = []
    tables = _tables(file, problems) if file else {}
    if has_default and DEFAULT_SERVER in tables:
        problems.append(
            f"{file} [{DEFAULT_SERVER}]: is set by HIPOINK_API_BASE_URL as well; remove one of the two"
        )
    known = {sign_variable(name) for name in tables}
    problems += [
        f"{name}: holds a character that cannot be printed; type the value anew"
        for name, sign in signs.items()
        if name in known and not sign.isprintable()
    ]
    servers: dict[str, LabelServerSettings] = {}
    model = _table_model(fields)
    for name, table in tables.items():
        values, wrong = _values(model, name, table, insecure_allowed=insecure_allowed)
        problems += [f"{file} [{name}] {sentence}" for sentence in wrong]
        if not wrong:
            own = signs.get(sign_variable(name))
            sign = default_sign if name == DEFAULT_SERVER else SecretStr(own) if own else None
            servers[name] = LabelServerSettings(**values, sign=sign or SecretStr(PUBLIC_SIGN))
    warnings = [_nobodys(name, known, file) for name in sorted(signs.keys() - known)]
    return ServersFile(servers, problems, [*warnings, *_doubtful(servers)])


def _tables(file: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The tables whose names are names; what else there is is a problem."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        problems.append(
            f"{FILE_VARIABLE}: {file} cannot be read ({type(error).__name__}); name a readable TOML file"
        )
        return {}
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{FILE_VARIABLE}: {file} is not TOML: {error}")
        return {}
    for name, value in content.items():
        if not isinstance(value, dict):
            problems.append(
                f"{file} {name}: stands in no table; write the server's name above it, e.g. [north]"
            )
        elif not is_server_name(name):
            problems.append(
                f"{file} [{name}]: is no name for a label server; use 1 to 32 small letters, digits and '-'"
            )
    return {
        name: value for name, value in content.items() if isinstance(value, dict) and is_server_name(name)
    }


def _values(
    model: type[BaseModel], name: str, table: Mapping[str, Any], *, insecure_allowed: bool
) -> tuple[dict[str, Any], list[str]]:
    """A table's values, with the defaults of what it leaves out, and what is wrong with which key."""
    wrong: dict[str, str] = {}
    for key in table.keys() - _KEYS.keys():
        wrong[key] = (
            f"no secret may stand in this file; set {sign_variable(name)}"
            if _SECRET.search(key)
            else f"is no setting of a label server{did_you_mean(key, _KEYS, str.lower) or '; remove it'}"
        )
    values: dict[str, Any] = {}
    try:
        values = model.model_validate({key: table[key] for key in _KEYS if key in table}).model_dump()
    except ValidationError as error:
        wrong |= {str(found["loc"][0]): fault(model, found) for found in error.errors()}
    else:
        try:
            if values["base_url"] is None:
                raise ValueError("is missing; write the label server's address")
            check_protected(values["base_url"], insecure_allowed=insecure_allowed)
        except ValueError as error:
            wrong["base_url"] = str(error)
    return values, [f"{key}: {says}" for key, says in sorted(wrong.items())]


class _Table(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _written(cls, value: object) -> object:
        if isinstance(value, bool):  # which would pass for 1
            raise ValueError("is neither a number nor a text; write the value itself")
        return printable_text(value.strip()) if isinstance(value, str) else value


def _table_model(fields: Mapping[str, FieldInfo]) -> type[BaseModel]:
    described: dict[str, Any] = {key: (fields[name].annotation, fields[name]) for key, name in _KEYS.items()}
    return create_model("Table", __base__=_Table, **described)


def _nobodys(variable: str, known: set[str], file: Path | None) -> str:
    there = f"{file} has no such server" if file else f"{FILE_VARIABLE} is not set"
    return f"{variable} is the sign of no label server: {there}{did_you_mean(variable, known)}"


def _doubtful(servers: Mapping[str, LabelServerSettings]) -> list[str]:
    """What works but deserves a second look."""
    said = []
    for name, server in servers.items():
        if server.uses_public_sign:
            said.append(
                f"{sign_variable(name)} is not set or is the documented public default sign: anybody who reaches the "
                f"label server {name} can change its labels. Make an app key of your own and set its sign."
            )
        if is_unprotected(server.base_url):
            said.append(
                f"{FILE_VARIABLE}: base_url of {name} is http:// to another machine (ALLOW_INSECURE_LABEL_SERVER): "
                "whoever is on that network can read the sign and change labels. Use https:// (ca_file for an "
                "authority of your own)."
            )
    return said
