"""Secrets from files: NAME_FILE names the file that holds the secret NAME, as Docker and Kubernetes mount them; and
systemd keeps one called NAME in the folder of its credentials (LoadCredential=NAME:…).

Imports little: probes read one secret so, and Dagster's own processes theirs, which Dagster takes from the environment.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dotenv import dotenv_values

SUFFIX = "_FILE"
_ENV_FILE = ".env"


class SecretFileError(ValueError):
    """A secret cannot be read; the message names the variable and says what to do."""


def from_files(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Of the secrets of these names those that files hold, and a sentence for each that cannot be read."""
    known = _variables()
    found, problems = dict[str, str](), list[str]()
    for name in map(str.upper, names):
        try:
            secret = _secret(name, known)
        except SecretFileError as error:
            problems.append(str(error))
        else:
            if secret is not None:
                found[name] = secret
    return found, problems


def read(name: str) -> str | None:
    """One setting as this process has it: of its variable, of `.env`, of a file. Raises SecretFileError."""
    variables = _variables()
    secret = _secret(name, variables)
    return secret if secret is not None else variables.get(name)


def export(name: str) -> None:
    """Put a secret into the environment, for a library that looks for it there. Raises SystemExit with a sentence."""
    try:
        secret = read(name)
    except SecretFileError as error:
        raise SystemExit(str(error)) from None
    if secret is not None:
        os.environ[name] = secret


def _variables() -> dict[str, str]:
    """What is set, by its name in capitals; what is blank is not."""
    try:
        in_file = dotenv_values(_ENV_FILE, encoding="utf-8")
    except (OSError, UnicodeError):  # as the settings say
        in_file = {}
    every = {
        name.upper(): (value or "").strip() for of in (in_file, os.environ) for name, value in of.items()
    }
    return {name: value for name, value in every.items() if value}


def _secret(name: str, variables: Mapping[str, str]) -> str | None:
    """What its file holds; None where there is none, or the variable itself is set."""
    variable, own = name + SUFFIX, variables.get(name)
    if variable in variables:
        secret = _read(variable, Path(variables[variable]))
        if own not in (None, secret):
            raise SecretFileError(f"{variable}: is set, and so is {name}; remove one of the two")
        return secret
    folder = variables.get("CREDENTIALS_DIRECTORY")
    if own is None and folder and (file := Path(folder) / name).exists():
        return _read(f"systemd's credential {name}", file)
    return None


def _read(variable: str, file: Path) -> str:
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise SecretFileError(
            f"{variable}: the file cannot be read ({type(error).__name__}); name a text file that this process may read"
        ) from None
    if not secret:
        raise SecretFileError(
            f"{variable}: the file is empty; write the secret into it, or remove the variable"
        )
    return secret
