"""What the label server's answer means: pure functions from a reply to a result or an error.

The rules come from the vendor's documents and from clients in production: only `error_code` 0 is
success; logical errors arrive with HTTP 200; a failure may be plain text. The word "error" says
nothing, because a success carries it too (`error_code`).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson

from esl_pipeline.hipoink.errors import (
    AuthenticationError,
    HipoinkError,
    RejectedError,
    TransientError,
    UnknownOutcomeError,
)
from esl_pipeline.http import parse_retry_after
from esl_pipeline.printable import printable

_BODY_KEPT = 2_000
_WORDS_KEPT = 200

# A hint only: no public source lists these texts. Matched against the whole message, so that a
# product's title inside an error message cannot pause a store.
_WHO = r"(?:app[_ ]?key|sign(?:ature)?|client(?:[_ ]?id)?)"
_BAD = r"(?:disabled?|wrong|invalid|incorrect|error|expired|not (?:exists?|found|match|valid))"
_ABOUT_THE_KEY = re.compile(
    rf"(?:\S+ )?(?:{_WHO} (?:is )?{_BAD}|{_BAD} {_WHO}|miss(?:ing)? {_WHO}(?: field)?)[.!]?", re.IGNORECASE
)


@dataclass(frozen=True)
class Reply:
    """One HTTP answer as it came: `complete` is False when the body was cut at our size limit."""

    http_status: int
    retry_after: str | None
    body: bytes = field(repr=False)  # a server may repeat the sign in it
    complete: bool
    duration_ms: int


@dataclass(frozen=True)
class Answer:
    """A change that the label server confirmed; `body` is its text without the sign, cut at 2,000."""

    http_status: int
    error_code: int
    error_msg: str
    body: str
    duration_ms: int


@dataclass(frozen=True)
class Judge:
    """Reads the replies to one call.

    `call` names it for the reader ("create_multiple for store 001"), `changes_labels` says whether
    a lost answer leaves its outcome open, `redact` removes the sign from a text, `lists` says what a list is of.
    """

    call: str
    changes_labels: bool
    redact: Callable[[str], str]
    lists: str = "products"

    def change(self, reply: Reply) -> Answer:
        """The confirmation of a create or delete; raises a HipoinkError for anything else."""
        data = self._data(reply)
        if not isinstance(data, dict) or _error_code(data) is None:
            raise self._error(self._lost, reply, "did not say whether it succeeded")
        words = self._words(data.get("error_msg"))
        return Answer(reply.http_status, 0, words, self._body(reply), reply.duration_ms)

    def rows(self, reply: Reply) -> list[dict[str, object]]:
        """The rows of a listing, which is a bare array of objects; among them, what is none is a row of nothing."""
        data = self._data(reply)
        if isinstance(data, list) and (not data or any(isinstance(row, dict) for row in data)):
            return [row if isinstance(row, dict) else {} for row in data]
        raise self._error(RejectedError, reply, f"did not answer with a list of {self.lists}")

    def count(self, reply: Reply) -> int:
        """The number in a count's answer."""
        data = self._data(reply)
        count = whole_number(data.get("count")) if isinstance(data, dict) else None
        if count is None or count < 0:
            raise self._error(RejectedError, reply, "did not answer with a count")
        return count

    def fields(self, reply: Reply) -> dict[str, object]:
        """An answer that is one object, whatever is in it."""
        data = self._data(reply)
        if not isinstance(data, dict):
            raise self._error(RejectedError, reply, "did not answer with an object")
        return data

    def no_connection(self, reason: str) -> TransientError:
        """The error for a request that never reached the server."""
        return TransientError(f"{self.call}: no connection to the label server: {self._words(reason)}")

    def no_answer(self, reason: str) -> TransientError:
        """The error for a request that was sent, at least in part, and not answered in full."""
        return self._lost(f"{self.call}: no answer from the label server: {self._words(reason)}")

    @property
    def _lost(self) -> type[TransientError]:
        return UnknownOutcomeError if self.changes_labels else TransientError

    def _data(self, reply: Reply) -> object:
        """The decoded body of a reply that is no failure by its status, its text or its `error_code`."""
        data, is_json = _decode(reply)
        told = data if isinstance(data, dict) else {}
        code = _error_code(told)
        words = self._words(told.get("error_msg") if is_json else self._body(reply))
        about_the_key = bool(_ABOUT_THE_KEY.fullmatch(words))
        if not 200 <= reply.http_status < 300:
            leaf = self._leaf_of_status(reply.http_status, about_the_key)
            said = f' "{words}"' if words else ""
            raise self._error(leaf, reply, f"answered HTTP {reply.http_status}{said}", code)
        if not is_json and about_the_key:
            raise self._error(AuthenticationError, reply, f'answered "{words}"')
        if code:
            leaf = AuthenticationError if about_the_key else RejectedError
            raise self._error(leaf, reply, f'answered "{words}" (error_code {code})', code)
        if not reply.complete and not self.changes_labels:
            raise self._error(RejectedError, reply, "sent more than we accept: ask for smaller pages")
        if not is_json:
            raise self._error(self._lost, reply, "sent an answer that is not JSON")
        return data

    def _leaf_of_status(self, status: int, about_the_key: bool) -> type[HipoinkError]:
        if status in (408, 409, 423, 425, 429, 503):
            return TransientError
        if 400 <= status < 500:
            return AuthenticationError if status in (401, 403) or about_the_key else RejectedError
        # Other 5xx come from a gateway that lost the server, or from a server that broke somewhere in
        # the middle of a batch. A redirect (a moved address, a captive portal) applied nothing.
        return self._lost if status >= 500 else TransientError

    def _error(
        self, leaf: type[HipoinkError], reply: Reply, did: str, code: int | None = None
    ) -> HipoinkError:
        return leaf(
            f"{self.call}: the label server {did}.",
            http_status=reply.http_status,
            error_code=code,
            answer=self._body(reply),
            retry_after=parse_retry_after(reply.retry_after, datetime.now(UTC)),
        )

    def _body(self, reply: Reply) -> str:
        # Read a few times what is kept, so that no sign is cut in two before it is redacted.
        text = reply.body[: 8 * _BODY_KEPT].decode("utf-8", errors="replace")
        return printable(self.redact(text))[:_BODY_KEPT]

    def _words(self, text: object) -> str:
        return printable(self.redact("" if text is None else str(text))).strip()[:_WORDS_KEPT]


def _decode(reply: Reply) -> tuple[object, bool]:
    if not reply.complete:
        return None, False
    try:
        return orjson.loads(reply.body), True
    except orjson.JSONDecodeError:
        return _decode_leniently(reply.body)


def _decode_leniently(body: bytes) -> tuple[object, bool]:
    """JSON with half a surrogate pair, bytes that are no UTF-8, or NaN: one odd text spoils no list of thousands."""
    try:
        text = body.decode("utf-8", errors="replace")
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else digits), True
    except (ValueError, RecursionError):
        return None, False


def _error_code(data: dict[str, object]) -> int | None:
    return whole_number(data.get("error_code"))


def whole_number(value: object) -> int | None:
    """An int, or text that spells one; True and 0.0 are neither."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
