"""`/metrics`: the buffer's numbers as Prometheus reads them, for those whom the gate admits.

Labelled by store, shop and label server, never by product code: a store's series are some fifty, a code's would be
without end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.numbers import Measure, Numbers, Spread
from esl_pipeline.receiver.answers import refusals
from esl_pipeline.receiver.tokens import Gate, admitted

Value = tuple[tuple[str, ...], float | None]


def metrics_router(gate: Gate, buffer: Buffer) -> APIRouter:
    """`/metrics`, for the scope read."""
    router = APIRouter(tags=["metrics"])

    @router.get(
        "/metrics",
        summary="The numbers of all stores and shops, for Prometheus",
        dependencies=[admitted(gate, "read")],
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}},
            **refusals(
                {
                    401: "No valid token.",
                    403: "No token is valid at all.",
                    429: "Too many wrong tokens came from this address.",
                    503: "The buffer cannot be used now.",
                }
            ),
        },
    )
    def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry_of(buffer.numbers())), headers={"Content-Type": kind})

    return router


def registry_of(numbers: Numbers) -> CollectorRegistry:
    """All metrics, with those of this process."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Told(numbers))
    return registry


class _Told(Collector):
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        return families(self._numbers)


def families(numbers: Numbers) -> Iterator[Metric]:
    """Every metric of the buffer's numbers."""
    yield from _of_labels(numbers)
    yield from _of_label_servers(numbers)
    yield from _of_shops(numbers)
    yield from _of_stores(numbers)


def _of_labels(numbers: Numbers) -> Iterator[Metric]:
    yield _histogram(
        "esl_webhook_accepted_seconds",
        "From a webhook's receipt until the label server accepted its labels; rises of the price apart.",
        ("store", "change"),
        _spreads(numbers, "accepted", lambda measure: (measure.party, measure.kind)),
    )
    yield _counter(
        "esl_pushes",
        "Labels pushed to the label server, by what became of them.",
        ("store", "label_server", "outcome"),
        (((m.party, m.server, m.kind), m.n) for m in numbers.named("pushes")),
    )
    yield _counter(
        "esl_pushes_avoided",
        "Labels that did not have to be pushed: the webhook said nothing new, or the label was right already.",
        ("store", "reason"),
        (((m.party, m.kind), m.n) for m in _sums(numbers.named("avoided"))),
    )
    wrong = _sums(numbers.named("wrong"))
    yield _counter(
        "esl_wrong_price_seconds",
        "Seconds for which labels showed another price than the shop, until theirs was accepted; over: less than the "
        "till asks. Waiting for a raise_window does not count.",
        ("store", "direction"),
        (((m.party, m.kind), m.total) for m in wrong),
    )
    yield _counter(
        "esl_wrong_prices",
        "Labels accepted that had shown another price than the shop.",
        ("store", "direction"),
        (((m.party, m.kind), m.n) for m in wrong),
    )
    rows = numbers.rows["wrong"]
    yield _gauge(
        "esl_wrong_price_labels",
        "Labels that show another price than the shop now.",
        ("store", "direction"),
        (((row["store"], row["kind"]), row["labels"]) for row in rows),
    )
    yield _gauge(
        "esl_wrong_price_open_seconds",
        "For how long they have, all of them together.",
        ("store", "direction"),
        (((row["store"], row["kind"]), row["seconds"]) for row in rows),
    )


def _of_label_servers(numbers: Numbers) -> Iterator[Metric]:
    yield _histogram(
        "esl_label_server_call_seconds",
        "Calls that push labels, by outcome.",
        ("label_server", "outcome"),
        _spreads(numbers, "calls", lambda measure: (measure.server, measure.kind)),
    )
    servers = numbers.rows["servers"]

    def of_each(value: Callable[[Mapping[str, Any]], float | None]) -> Iterator[Value]:
        return (((row["server"],), value(row)) for row in servers)

    named = ("label_server",)
    yield _gauge(
        "esl_label_server_up",
        "0 while the circuit breaker keeps all but a try from it.",
        named,
        of_each(lambda row: row["down_seconds"] is None),
    )
    yield _gauge(
        "esl_label_server_down_seconds",
        "For how long it has been down.",
        named,
        of_each(lambda row: row["down_seconds"] or 0),
    )
    yield _gauge(
        "esl_label_server_failures", "Failed calls in a row.", named, of_each(lambda row: row["failures"])
    )
    yield _gauge(
        "esl_drain_alive",
        "1 while a drain run of it is at work.",
        named,
        of_each(lambda row: row["drain_is_alive"]),
    )


def _of_shops(numbers: Numbers) -> Iterator[Metric]:
    inbox = numbers.rows["inbox"]
    yield _gauge(
        "esl_inbox_deliveries",
        "Webhooks that wait to be read.",
        ("shop",),
        (((row["shop"],), row["waiting"]) for row in inbox),
    )
    yield _gauge(
        "esl_inbox_oldest_seconds",
        "How long the oldest of them has waited.",
        ("shop",),
        (((row["shop"],), row["oldest_seconds"] or 0) for row in inbox),
    )
    yield _counter(
        "esl_deliveries",
        "Webhooks that wait no longer, by how they ended.",
        ("shop", "outcome"),
        (((row["shop"], outcome), n or 0) for row in inbox for outcome, n in row["ended"].items()),
    )
    yield _counter(
        "esl_refused_signatures",
        "Webhooks with a wrong signature that claimed to be a mapped shop's.",
        ("shop",),
        (((m.party,), m.n) for m in numbers.named("refused")),
    )


def _of_stores(numbers: Numbers) -> Iterator[Metric]:
    queue = numbers.rows["queue"]
    by_state = ("store", "state")
    for name, says, key in (
        ("labels", "Labels that differ from what the label server has, by what they wait for.", "labels"),
        ("rises", "Of them rises of a price.", "rises"),
        ("oldest_seconds", "How long the oldest of them has waited.", "oldest_seconds"),
        ("oldest_rise_seconds", "How long the oldest rise of them has waited.", "oldest_rise_seconds"),
    ):
        yield _gauge(f"esl_queue_{name}", says, by_state, (((r["store"], r["state"]), r[key]) for r in queue))
    yield _gauge(
        "esl_store_paused",
        "1 for a store that is left alone for a while: it refuses everything, or somebody has paused it.",
        ("store",),
        (((store,), 1) for store in numbers.rows["paused"]),
    )
    mappings = numbers.rows["mappings"]
    counted = [row for row in mappings if row["counted_at"] is not None]
    ends = ("store", "shop")

    def of_each(
        rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
    ) -> Iterator[Value]:
        return (((row["store"], row["shop"]), value(row)) for row in rows)

    yield _gauge(
        "esl_labels_publishable",
        "Labels that should hang.",
        ends,
        of_each(counted, lambda row: row["publishable"]),
    )
    yield _gauge(
        "esl_labels_accurate",
        "Of them those that the label server has accepted as they should be now.",
        ends,
        of_each(counted, lambda row: row["accurate"]),
    )
    yield _gauge(
        "esl_accuracy_counted_timestamp_seconds",
        "When these two were counted last.",
        ends,
        of_each(counted, lambda row: datetime.fromisoformat(row["counted_at"]).timestamp()),
    )
    yield _gauge(
        "esl_labels_held_back",
        "Variants that a finding keeps from their label.",
        ends,
        of_each(mappings, lambda row: row["held_back"]),
    )
    yield _counter(
        "esl_drift",
        "Labels that were found to differ at the label server, and are put right.",
        ("store", "kind"),
        (((m.party, m.kind), m.n) for m in _sums(numbers.named("drift"))),
    )
    comparisons = numbers.rows["comparisons"]
    for name, says, value in (
        (
            "timestamp_seconds",
            "When the last comparison with the label server's own list began.",
            lambda row: datetime.fromisoformat(row["at"]).timestamp(),
        ),
        ("complete", "1 when it was complete.", lambda row: row["complete"]),
        (
            "given_up_labels",
            "Labels whose repair did not hold three times.",
            lambda row: row["given_up"],
        ),
    ):
        yield _gauge(
            f"esl_comparison_{name}", says, ("store",), (((row["store"],), value(row)) for row in comparisons)
        )


def _sums(measures: Iterable[Measure]) -> list[Measure]:
    """The same without the label server, for what happens to a store wherever that is."""
    found: dict[tuple[str, str], Measure] = {}
    for m in measures:
        before = found.get((m.party, m.kind))
        n, total = (before.n, before.total or 0) if before else (0, 0)
        found[m.party, m.kind] = Measure(m.name, m.party, "", m.kind, n + m.n, total + (m.total or 0))
    return list(found.values())


def _gauge(name: str, says: str, labels: tuple[str, ...], values: Iterable[Value]) -> Metric:
    family = GaugeMetricFamily(name, says, labels=labels)
    for named, value in values:
        if value is not None:
            family.add_metric(named, float(value))
    return family


def _counter(name: str, says: str, labels: tuple[str, ...], values: Iterable[Value]) -> Metric:
    family = CounterMetricFamily(name, says, labels=labels)
    for named, value in values:
        family.add_metric(named, float(value or 0))
    return family


def _histogram(
    name: str, says: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], Spread]]
) -> Metric:
    family = HistogramMetricFamily(name, says, labels=labels)
    for named, spread in values:
        family.add_metric(named, buckets=spread.up_to, sum_value=spread.total)
    return family


def _spreads(
    numbers: Numbers, measured: str, named: Callable[[Measure], tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], Spread]]:
    """The counts of a name, those together that are to be named alike."""
    together: dict[tuple[str, ...], list[Measure]] = {}
    for measure in numbers.named(measured):
        together.setdefault(named(measure), []).append(measure)
    return ((labels, Spread.of(measures, numbers.bounds)) for labels, measures in together.items())
