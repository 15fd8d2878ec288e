"""The way to the buffer's functions: each is called by its name, whatever the transport."""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

from esl_pipeline.buffer.errors import (
    BufferVersionError,
    Version,
    newer_buffer,
    older_buffer,
    unreleased_buffer,
)
from esl_pipeline.buffer.migrate import code_build, functions_digest, oldest_version
from esl_pipeline.buffer.transports import Transport
from esl_pipeline.model.label_server import DEFAULT_SERVER

Row = dict[str, Any]


class Door:
    """Opens and closes; Buffer is made of what goes through it.

    Every method may raise BufferError (BufferUnavailable when the database cannot be reached). Every function
    behind them may be called again with the same arguments, so transports repeat calls whose answer was lost.

    `label_server` names the one that is worked for: labels, refreshes and what is known of its health are those of its
    stores. `label_servers`: all that the settings name; the first also reads the shops that are at none of them.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        label_server: str = DEFAULT_SERVER,
        label_servers: Sequence[str] = (DEFAULT_SERVER,),
    ) -> None:
        self.transport = transport
        self.label_server = label_server
        self.label_servers = tuple(label_servers)

    def at(self, label_server: str) -> Self:
        """The same for another label server, over the same connections."""
        other = copy(self)
        other.label_server = label_server
        return other

    def __repr__(self) -> str:
        return f"Buffer({self.transport.describe()})"

    def close(self) -> None:
        """Give the connections back."""
        self.transport.close()

    def ping(self) -> None:
        """Raise BufferUnavailable when the buffer cannot be reached."""
        self.transport.call("esl_version", {})

    def check_version(self) -> None:
        """Raise BufferVersionError unless tables and functions are exactly those of this code."""
        answer = self.transport.call("esl_version", {})
        # No build: the functions of a release that did not number them.
        found, wanted = Version(answer["version"], answer.get("build", 0)), code_build()
        if found > wanted:
            raise newer_buffer(found, wanted)
        if 0 < found.tables < oldest_version():
            raise unreleased_buffer(found.tables)
        if found < wanted:
            raise older_buffer(found, wanted)
        if answer.get("functions") != functions_digest():
            raise BufferVersionError(
                f"the buffer's functions go by the name of build {wanted.build} and are others: "
                "run `esl-pipeline migrate`"
            )

    def _call(self, function: str, **p: Any) -> Row:
        answer: Row = self.transport.call(function, {k: v for k, v in p.items() if v is not None})
        return answer
