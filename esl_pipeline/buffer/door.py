"""The way to the buffer's functions: each is called by its name, whatever the transport."""

from typing import Any

from esl_pipeline.buffer.errors import (
    BufferVersionError,
    Version,
    newer_buffer,
    older_buffer,
    unreleased_buffer,
)
from esl_pipeline.buffer.migrate import code_build, functions_digest, oldest_version
from esl_pipeline.buffer.transports import Transport

Row = dict[str, Any]


class Door:
    """Opens and closes; Buffer is made of what goes through it.

    Every method may raise BufferError (BufferUnavailable when the database cannot be reached). Every function
    behind them may be called again with the same arguments, so transports repeat calls whose answer was lost.

    `label_server` names the one that this process pushes to: what is known of its health is shared under that name.
    """

    def __init__(self, transport: Transport, *, label_server: str | None = None) -> None:
        self.transport = transport
        self.label_server = label_server

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
