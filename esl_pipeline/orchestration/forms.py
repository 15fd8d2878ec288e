"""Configuration that people may type into the Launchpad: explained field by field, and a bad value is one sentence."""

from typing import Any

import dagster as dg
from pydantic import ValidationError

from esl_pipeline.environment import SettingsError
from esl_pipeline.orchestration.resources import LabelServer, LabelServers


class Form(dg.Config):
    """Base of the configurations. A value that its field does not allow ends the run, which is not tried again."""

    def __init__(self, **said: Any) -> None:
        try:
            super().__init__(**said)
        except ValidationError as error:
            raise dg.Failure(
                "; ".join(
                    f"{'.'.join(map(str, problem['loc']))} is {problem['input']!r}: {_lower(problem['msg'])}"
                    for problem in error.errors(include_url=False)
                ),
                allow_retries=False,
            ) from None


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def known_server(servers: LabelServers, name: str) -> LabelServer:
    """A label server by its name. Raises dg.Failure, not to be retried, when the settings name none so."""
    try:
        return servers.of(name)
    except SettingsError as error:
        raise dg.Failure(error.problems[0], allow_retries=False) from None
