"""How environment variables are read: what every settings class of ours shares.

A field's name in capitals is the variable's name. What is wrong is reported all at once, by that name and without the
values.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, BeforeValidator, SecretStr, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from esl_pipeline.addresses import is_loopback

ENV_FILE = ".env"

_PRIVATE_NETWORKS = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)


class SettingsError(ValueError):
    """The settings cannot be used. `problems` holds one sentence per setting, without its value."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        heading = "1 setting is wrong:" if len(problems) == 1 else f"{len(problems)} settings are wrong:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in problems)]))


class Environment(BaseSettings):
    """Settings that come from the environment and the file `.env` in the working directory; the environment wins.

    An empty or blank variable counts as not set.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        stripped = {
            name: value.strip() if isinstance(value, str) else value for name, value in values.items()
        }
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _printable(cls, value: object) -> object:
        return printable_text(value) if isinstance(value, str) else value


def printable_text(value: str) -> str:
    """The text. Raises ValueError for bytes that are no UTF-8, and what slips in when copying from a web page: that
    would only fail much later."""
    if not value.isprintable():
        raise ValueError("holds a character that cannot be printed; type the value anew")
    return value


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", value):
        raise ValueError(
            "is not a web address; write http:// or https:// and a host, e.g. https://labels.example.com"
        )
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise ValueError("has a query or a fragment; leave out everything from the first '?' or '#'")
    if "@" in parts.netloc:
        raise ValueError("has a user name or password in it; leave out everything up to the '@'")
    return value.rstrip("/")


def folded(fold: Callable[[str], str]) -> BeforeValidator:
    """A text is folded before it is judged."""
    return BeforeValidator(lambda value: fold(value) if isinstance(value, str) else value)


def entries(value: SecretStr) -> tuple[str, ...]:
    """What a variable lists, separated by commas."""
    return tuple(part.strip() for part in value.get_secret_value().split(",") if part.strip())


HttpUrl = Annotated[str, AfterValidator(_http_url)]


def problem(kind: type[Environment], wrong: ErrorDetails) -> str:
    """One sentence on a variable whose value pydantic refused."""
    return f"{str(wrong['loc'][0]).upper()}: {fault(kind, wrong)}"


def fault(kind: type[BaseModel], wrong: ErrorDetails) -> str:
    """What is wrong with a value that pydantic refused."""
    if wrong["type"] == "value_error":
        return wrong["msg"].removeprefix("Value error, ")
    return f"is not {_expected(kind, str(wrong['loc'][0]))}; correct it, or remove it for the default"


def _expected(kind: type[BaseModel], field: str) -> str:
    schema = kind.model_json_schema()["properties"][field]
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema.get("type") == "boolean":
        return "true or false"
    if "maximum" in schema:
        number = "a whole number" if schema["type"] == "integer" else "a number"
        return f"{number} from {schema['minimum']} to {schema['maximum']}"
    return "text"


def did_you_mean(name: str, known: Iterable[str], fold: Callable[[str], str] = str.upper) -> str:
    """`: did you mean NAME?` for a name that is nearly one of those; else empty."""
    close = difflib.get_close_matches(fold(name), [fold(other) for other in known], 1, 0.8)
    return f": did you mean {close[0]}?" if close else ""


def misspelt(known: Iterable[str]) -> list[str]:
    """One sentence for each variable that is nearly, but not, one of the known names: of the file `.env`, or of the
    environment with the beginning of one of them."""
    names = {name.upper() for name in known}
    beginnings = tuple({f"{name.partition('_')[0]}_" for name in names})
    own = {name.upper() for name in dotenv_values(ENV_FILE, encoding="utf-8")}
    set_names = own | {name for name in map(str.upper, os.environ) if name.startswith(beginnings)}
    return [
        f"{name} is no setting of this program{hint}"
        for name in sorted(set_names - names)
        if (hint := did_you_mean(name, names))
    ]


def is_unprotected(url: str) -> bool:
    """Whether what is sent to the address can be overheard: http:// to another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def is_private(url: str) -> bool:
    """Whether the host is an IP address of a private network; a name may come to mean any machine."""
    try:
        address = ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return any(address in network for network in _PRIVATE_NETWORKS)
