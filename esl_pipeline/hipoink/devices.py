"""The actions for physical labels: which there are, what is bound to them, and where one hangs."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from esl_pipeline.hipoink.answers import Answer, Judge, Reply, whole_number
from esl_pipeline.hipoink.client import HipoinkClient, read_page
from esl_pipeline.hipoink.errors import HipoinkError, RejectedError, TransientError
from esl_pipeline.hipoink.limiter import Call
from esl_pipeline.hipoink.paging import Listing, Page, Row, every_page

# No public source says how a server of the 2020 generation refuses what it does not know.
_NO_SUCH_ACTION = re.compile(
    r"\b(?:action|method|route|api|interface|function|url|path)\b[^\"]*"
    r"\b(?:not (?:exists?|found|defined|supported|allowed)|undefined|unknown|invalid)\b"
    r"|\b(?:unknown|undefined|unsupported|invalid|no such) (?:action|method|route|api|interface|function|url|path)\b"
    r"|\bnot implemented\b",
    re.IGNORECASE,
)
_TEMPLATES_AT_ONCE = 100
# A page that takes long keeps a call from prices: it grows no further.
_MOST_SECONDS = 1.0

T = TypeVar("T")


def is_not_known(error: HipoinkError) -> bool:
    """Whether the label server says that it has no such action."""
    return error.http_status in (404, 405, 501) or (
        isinstance(error, RejectedError) and bool(_NO_SUCH_ACTION.search(error.answer or ""))
    )


@dataclass(frozen=True)
class Reachable:
    """How many labels of a store the server can reach, and how many not."""

    online: int
    offline: int


@dataclass(frozen=True)
class Binding:
    """A label, the product that it is to show, and by which template; None: the server's own choice."""

    esl_code: str
    product_code: str
    template_id: str | int | None = None


class Devices:
    """What a client can do with physical labels. `reads`: how its reads take their slots (limiter.Call).

    Rows are as the server has them: `esl_code`, `product_code`, `esltype_code`, `ap_code`, `esl_battery` (mV), `online`
    (0 or 1), `action`, `created_at`, `updated_at` (in the server's zone), ... All methods raise the leaves of
    HipoinkError; a server that does not know an action raises one of which `is_not_known` is true.
    """

    def __init__(self, client: HipoinkClient, reads: Call | None = None) -> None:
        self._client = client
        self._reads = reads or Call()
        self._zone: str | None = None

    def query_page(self, store_code: str, page: int, size: int) -> Page:
        """One page of the store's labels, with what it cost; page from 1."""
        arguments = {"f1": str(page), "f2": str(size)}
        return self._client.get("esl/query", store_code, arguments, _of("labels", read_page), self._reads)

    def query_pages(
        self, store_code: str, size: int = 200, count: Callable[[], int | None] | None = None
    ) -> Iterator[list[Row]]:
        """All labels of the store, once each; see paging.every_page. count: in place of asking `query_count`."""
        listing = Listing(
            called=f"query for store {store_code}",
            of="labels",
            page=partial(self.query_page, store_code),
            count=count or partial(self._counted, store_code),
            name_of=_name_of,
            is_exact=True,
        )
        return every_page(listing, self._client.turns(size, _MOST_SECONDS))

    def query_count(self, store_code: str) -> Reachable:
        """How many labels the server counts for the store."""
        return self._client.get("esl/query_count", store_code, {}, _reachable, self._reads)

    def query_status(self, store_code: str, codes: Sequence[str]) -> list[Row]:
        """The rows of those of these labels that the store has."""
        arguments = {"f1": 1, "f2": len(codes), "f3": _named(codes)}
        return self._client.ask(
            "esl/query_status", store_code, arguments, _of("labels", Judge.rows), self._reads
        )

    def templates(self, store_code: str) -> list[Row]:
        """The templates that a label can be bound with: `id`, `esltype_code` (model), `esltemplate_name`, ..."""
        found: list[Row] = []
        for page in range(1, 101):
            arguments = {"f1": str(page), "f2": str(_TEMPLATES_AT_ONCE)}
            rows = self._client.get(
                "template/query", store_code, arguments, _of("templates", Judge.rows), self._reads
            )
            if not rows or rows[-1] in found:
                return found
            found += rows
            if len(rows) < _TEMPLATES_AT_ONCE:
                return found
        raise TransientError(f"query for store {store_code}: the listing of templates did not end.")

    def time_zone(self) -> str | None:
        """The zone of the server's own times, as it calls it; None: it does not say. Asked once."""
        if self._zone is None:
            zone = self._client.get_of_server("query/env", Judge.fields, self._reads).get("timezone")
            self._zone = zone.strip() if isinstance(zone, str) else ""
        return self._zone or None

    def bind(self, store_code: str, binding: Binding) -> Answer:
        """Bind a label to a product, whatever it was bound to. Where the server waits for its trigger, so does it."""
        template = {} if binding.template_id is None else {"f3": str(binding.template_id)}
        named = {"f1": _code(binding.esl_code), "f2": _code(binding.product_code), **template}
        return self._client.post("esl/bind", store_code, named)

    def bind_multiple(self, store_code: str, bindings: Sequence[Binding]) -> Answer:
        """The same for several in one call."""
        return self._client.post("esl/bind_multiple", store_code, {"f1": list(map(_binding, bindings))})

    def unbind(self, store_code: str, esl_code: str) -> Answer:
        """A label shows no product any more."""
        return self._client.post("esl/unbind", store_code, {"f1": _code(esl_code)})

    def flash(self, store_code: str, codes: Sequence[str]) -> Answer:
        """Let the labels' lights flash, so that somebody finds them."""
        return self._client.post("esl/search", store_code, {"f1": _named(codes)})

    def _counted(self, store_code: str) -> int | None:
        """None: the server does not know how to count them."""
        try:
            counted = self.query_count(store_code)
        except HipoinkError as error:
            if is_not_known(error):
                return None
            raise
        return counted.online + counted.offline


def _of(lists: str, read: Callable[[Judge, Reply], T]) -> Callable[[Judge, Reply], T]:
    """Read a list of these, by which name messages call them."""
    return lambda judge, reply: read(replace(judge, lists=lists), reply)


def _reachable(judge: Judge, reply: Reply) -> Reachable:
    fields = judge.fields(reply)
    counts = [whole_number(fields.get(name)) for name in ("online_count", "offline_count")]
    online, offline = (count if count is not None and count >= 0 else None for count in counts)
    if online is None or offline is None:
        raise RejectedError(f"{judge.call}: the label server did not answer with two counts.")
    return Reachable(online, offline)


def _binding(binding: Binding) -> Mapping[str, object]:
    named: dict[str, object] = {
        "esl_code": _code(binding.esl_code),
        "product_code": _code(binding.product_code),
    }
    if binding.template_id is not None:
        # Public sources do not agree what it is called; what a server does not know it leaves.
        named |= dict.fromkeys(("esltemplate_id", "template_id"), binding.template_id)
    return named


def _named(codes: Sequence[str]) -> list[str]:
    once = list(dict.fromkeys(map(_code, codes)))
    if not once:
        raise ValueError("no label is named")
    return once


def _code(code: str) -> str:
    if (trimmed := code.strip()) in ("", "0"):
        raise ValueError(f"code {code!r} names nothing")
    return trimmed


def _name_of(row: Mapping[str, object]) -> int:
    """A hash of a label's code, or of its whole content where it has none."""
    code = row.get("esl_code")
    try:
        return hash(repr(row)) if code is None else hash(repr(code))
    except RecursionError:  # nested deeper than any label
        return 0
