"""The label servers of the settings: today's single variables are `default`, a TOML file names further ones.

    [north]                                     # its name; its sign is HIPOINK_API_SECRET__NORTH
    base_url = "https://labels-north.example.com"

The keys of a table are those of `_KEYS`, each judged as the single variable is. No sign may stand in the file.
"""

import os
import re
import ssl
import tomllib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)

from esl_pipeline.environment import (
    ENV_FILE,
    Environment,
    HttpUrl,
    SettingsError,
    did_you_mean,
    fault,
    is_private,
    is_unprotected,
    printable_text,
)
from esl_pipeline.model.label_server import DEFAULT_SERVER
from esl_pipeline.secret_files import SUFFIX, from_files

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


def _signs(given: Mapping[str, Any]) -> dict[str, str]:
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


def _names_a_file(name: str, known: Container[str]) -> bool:
    """Whether a variable names the file of a server's sign. (A server may be called north-file.)"""
    return name not in known and name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in known


@dataclass(frozen=True)
class ServersFile:
    """What the file and the signs beside it say. problems: a sentence each, with file, table and key."""

    servers: Mapping[str, LabelServerSettings]
    problems: list[str]
    warnings: list[str]


def _expanded(value: Path) -> Path:
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("cannot be found; write the file's whole path") from None


def _ca_file(value: Path) -> Path:
    try:
        ssl.create_default_context(cafile=value)
    except (OSError, ssl.SSLError):
        raise ValueError("cannot be read as certificates; name a readable file in PEM form") from None
    return value


def _client_id(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("cannot stand in the path of an address; use letters, digits, '_', '-' and '.'")
    return value


class FurtherServers(Environment):
    """What has to be known to judge the servers' file, whatever else is wrong."""

    allow_insecure_label_server: bool = Field(
        False,
        description="Accept http:// to a label server on another machine, by its private IP address: the sign and the "
        "prices travel unprotected.",
    )
    hipoink_servers_file: Annotated[Path, AfterValidator(_expanded)] | None = Field(
        None,
        description="TOML file of further label servers, a table each: see docs/label-servers.md. Their signs are "
        "variables of their own, e.g. HIPOINK_API_SECRET__NORTH.",
    )


class LabelServerVariables(FurtherServers):
    """The single variables and, once `add_servers` was told of them, the file's tables."""

    hipoink_api_base_url: HttpUrl | None = Field(
        None, description="Address of the label server, e.g. https://labels.example.com."
    )
    hipoink_ca_file: Annotated[Path, AfterValidator(_ca_file)] | None = Field(
        None,
        description="PEM file of the authority that signed the label server's certificate, when it is no public one. "
        "Only that one is trusted then.",
    )
    hipoink_client_id: Annotated[str, AfterValidator(_client_id)] = Field(
        "default", description="Name of the label server's app key; part of every request's path."
    )
    hipoink_api_secret: SecretStr | None = Field(
        None,
        description="Sign of that app key, sent as is. Without it the documented public default is used, "
        "which anybody may know.",
    )
    hipoink_username: str | None = Field(
        None,
        description="Account of the label server's admin page. Accepted; the product API does not use it.",
    )
    hipoink_password: SecretStr | None = Field(
        None, description="Password of that account. Accepted; the product API does not use it."
    )
    hipoink_rate_limit_per_second: float = Field(
        10, ge=0.01, le=1000, description="Requests per second to the label server, over all runs."
    )
    hipoink_batch_size: int = Field(
        100, ge=1, le=1000, description="Labels in one request to the label server, at most."
    )
    hipoink_concurrency: int = Field(
        4, ge=1, le=32, description="Requests in flight at the label server at a time, over all runs."
    )

    _further_servers: dict[str, LabelServerSettings] = PrivateAttr(default_factory=dict)
    _servers_doubts: list[str] = PrivateAttr(default_factory=list)

    @field_validator("hipoink_api_base_url")
    @classmethod
    def _insecure_only_when_allowed(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url:
            check_protected(url, insecure_allowed=info.data.get("allow_insecure_label_server", True))
        return url

    def add_servers(self, file: ServersFile) -> None:
        """The file has been read without a problem."""
        self._further_servers.update(file.servers)
        self._servers_doubts.extend(file.warnings)

    @property
    def uses_public_sign(self) -> bool:
        """Whether the label server is addressed with the documented default sign, which is no secret."""
        return self.hipoink_sign.get_secret_value() == PUBLIC_SIGN

    @property
    def hipoink_sign(self) -> SecretStr:
        """The sign to send: HIPOINK_API_SECRET, else the documented public default."""
        return self.hipoink_api_secret or SecretStr(PUBLIC_SIGN)

    @property
    def label_servers(self) -> Mapping[str, LabelServerSettings]:
        """Every label server by name; `default`, where there is one, comes first."""
        if self.hipoink_api_base_url is None:
            return self._further_servers
        single = LabelServerSettings(
            base_url=self.hipoink_api_base_url,
            client_id=self.hipoink_client_id,
            rate_limit_per_second=self.hipoink_rate_limit_per_second,
            concurrency=self.hipoink_concurrency,
            batch_size=self.hipoink_batch_size,
            ca_file=self.hipoink_ca_file,
            sign=self.hipoink_sign,
        )
        return {DEFAULT_SERVER: single, **self._further_servers}

    def label_server(self, name: str) -> LabelServerSettings:
        """One of them. Raises SettingsError when there is none of this name."""
        servers = self.label_servers
        if name in servers:
            return servers[name]
        if not servers:
            says = (
                "HIPOINK_API_BASE_URL is not set: set the label server's address; "
                "`esl-pipeline up` brings a sandbox of its own"
            )
        elif name == DEFAULT_SERVER:
            says = (
                f"no label server is called {name}: HIPOINK_API_BASE_URL is not set, and HIPOINK_SERVERS_FILE names "
                f"{', '.join(servers)}"
            )
        else:
            says = (
                f"no label server is called {name}: there is {', '.join(servers)}; add a table [{name}] to "
                "HIPOINK_SERVERS_FILE"
            )
        raise SettingsError([says])

    def label_server_warnings(self) -> list[str]:
        """Sentences about label servers that work but deserve a second look; no secret in them."""
        said = list(self._servers_doubts)
        if self.uses_public_sign and (self.hipoink_api_base_url or not self._further_servers):
            said.append(
                "HIPOINK_API_SECRET is not set or is the documented public default sign: anybody who reaches "
                "the label server can change its labels. Make an app key of your own and set its sign."
            )
        if self.hipoink_api_base_url and is_unprotected(self.hipoink_api_base_url):
            said.append(
                "HIPOINK_API_BASE_URL is http:// to another machine (ALLOW_INSECURE_LABEL_SERVER): whoever is on that "
                "network can read the sign and change labels. Use https:// (HIPOINK_CA_FILE for an authority of your "
                "own)."
            )
        return said


def read_servers(
    further: FurtherServers, variables: LabelServerVariables | None, given: Mapping[str, Any]
) -> ServersFile:
    """The label servers of the file, and what is wrong with it.

    variables: None where something is wrong with those. given: overrides of the environment, for the signs.
    """
    file, signs = further.hipoink_servers_file, _signs(given)
    problems: list[str] = []
    tables = _tables(file, problems) if file else {}
    if variables and variables.hipoink_api_base_url and DEFAULT_SERVER in tables:
        problems.append(
            f"{file} [{DEFAULT_SERVER}]: is set by HIPOINK_API_BASE_URL as well; remove one of the two"
        )
    known = {sign_variable(name) for name in tables}
    may_be_in_files = {name for name in known if name + SUFFIX not in known and name.lower() not in given}
    in_files, unread = from_files(may_be_in_files)
    signs = {name: sign for name, sign in signs.items() if not _names_a_file(name, known)} | in_files
    problems += unread
    problems += [
        f"{name}: holds a character that cannot be printed; type the value anew"
        for name, sign in signs.items()
        if name in known and not sign.isprintable()
    ]
    servers: dict[str, LabelServerSettings] = {}
    model, default_sign = _table_model(), variables.hipoink_api_secret if variables else None
    for name, table in sorted(tables.items(), key=lambda named: named[0] != DEFAULT_SERVER):  # that one first
        values, wrong = _values(model, name, table, insecure_allowed=further.allow_insecure_label_server)
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


def _table_model() -> type[BaseModel]:
    fields = LabelServerVariables.model_fields
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
