"""Whether a login may do what its process does: it does so, with nothing in hand. So no process that starts, and no
health check, takes a login for good that is another process'."""

from collections.abc import Callable
from typing import Literal

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError

Work = Literal["receiver", "admin", "run"]

# The group of functions/access.sql that does it, and what nobody else may call.
_GROUPS: dict[Work, tuple[str, Callable[[Buffer], object]]] = {
    # Also refused where nothing can be written now: the database is a standby, or its disk is full.
    "receiver": ("esl_receiver", lambda buffer: buffer.inbox_add([])),
    "admin": ("esl_admin", lambda buffer: buffer.token_check("of nobody")),
    "run": ("esl_pipeline", lambda buffer: buffer.due_everywhere()),
}


def check_login(buffer: Buffer, work: Work) -> None:
    """Raise BufferError unless the buffer's login can do this work now."""
    group, do = _GROUPS[work]
    try:
        do(buffer)
    except BufferError as error:
        if error.code != "42501":
            raise
        raise BufferError(
            f"{error}: it is no login for this process, which needs one of the group {group} (see SECURITY.md)",
            code=error.code,
            message=error.message,
        ) from None
