"""`esl-pipeline stats`: how fast, how right and how busy the labels were, for people; the same numbers as /metrics."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from esl_pipeline.commands.shared import AsJson, CommandError, buffer_here, out, print_json
from esl_pipeline.commands.times import moment
from esl_pipeline.model.numbers import Measure, Numbers, Spread
from esl_pipeline.printable import printable

KEPT_DAYS = 35
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def stats(
    since: Annotated[str, typer.Option(help="How far back: 24h, 7d, 2w, or a date or time in UTC.")] = "7d",
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="Labels that change most, at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Speed, wrong prices, accuracy and work of each store, and the labels that change most."""
    begin = since_when(since, datetime.now(UTC))
    with buffer_here() as buffer:
        if store is not None and store not in {m["hipoink_store_code"] for m in buffer.mapping_list()}:
            raise CommandError(f"no shop is mapped to store {store}: see `esl-pipeline stores list`")
        told = summary(buffer.stats(since=begin, store=store, limit=limit), buffer.numbers(), store)
    print_json(told) if as_json else print_stats(out, told)


def since_when(text: str, now: datetime) -> datetime:
    """The time that is meant. Raises CommandError when none is, or nothing is kept of it."""
    if match := re.fullmatch(r"([0-9]{1,4})([hdw])", text.strip()):
        begin = now - int(match[1]) * _UNITS[match[2]]
    else:
        try:
            begin = datetime.fromisoformat(text.strip())
        except ValueError:
            raise CommandError(
                f"--since {printable(text)}: write 24h, 7d, 2w, or a date or time such as 2026-11-27"
            ) from None
        begin = begin if begin.tzinfo else begin.replace(tzinfo=UTC)
    if begin > now:
        raise CommandError(f"--since {printable(text)}: that is still to come")
    if begin < now - timedelta(days=KEPT_DAYS):
        raise CommandError(f"--since {printable(text)}: numbers are kept by the hour for {KEPT_DAYS} days")
    return begin


def summary(past: Numbers, present: Numbers, store: str | None = None) -> dict[str, Any]:
    """Both in the shape that --json prints: {since, stores: [...], label_servers: [...], changing: [...]}.

    store: that one alone; else all that are mapped or were pushed to.
    """
    calls = past.named("calls")
    named = {row["store"] for row in present.rows["mappings"]}
    named |= {m.party for m in past.measures if m.name != "refused"}
    return {
        "since": past.rows["since"],
        "stores": [_of_store(name, past, present) for name in sorted(named) if store in (None, name)],
        "label_servers": [
            {
                "label_server": server,
                **_spread([m for m in calls if m.server == server and m.kind == "accepted"], past),
                "calls": _by_kind(m for m in calls if m.server == server),
            }
            for server in sorted({m.server for m in calls})
        ],
        "refused_signatures": {m.party: m.n for m in past.named("refused")},
        "changing": past.rows["changing"],
    }


def _of_store(store: str, past: Numbers, present: Numbers) -> dict[str, Any]:
    def of(name: str, kind: str | None = None) -> list[Measure]:
        return [m for m in past.named(name) if m.party == store and kind in (None, m.kind)]

    mappings = [row for row in present.rows["mappings"] if row["store"] == store]
    counted = [row for row in mappings if row["counted_at"] is not None]
    publishable = sum(row["publishable"] for row in counted)
    pushed, avoided = _by_kind(of("pushes")), _by_kind(of("avoided"))
    return {
        "store": store,
        "shops": [row["shop"] for row in mappings],
        "webhook_to_accepted": {kind: _spread(of("accepted", kind), past) for kind in ("rise", "other")},
        "pushes": pushed,
        "pushes_avoided": avoided,
        "wrong_prices": {kind: _lasting(of("wrong", kind)) for kind in ("over", "under")},
        "wrong_now": {row["kind"]: row["labels"] for row in present.rows["wrong"] if row["store"] == store},
        "waiting": {row["state"]: row["labels"] for row in present.rows["queue"] if row["store"] == store},
        "accuracy": sum(row["accurate"] for row in counted) / publishable if publishable else None,
        "accuracy_counted_at": min((row["counted_at"] for row in counted), default=None),
        "held_back": sum(row["held_back"] for row in mappings),
        "drift": _by_kind(of("drift")),
    }


def _by_kind(measures: Iterable[Measure]) -> dict[str, int]:
    found: dict[str, int] = {}
    for measure in measures:
        found[measure.kind] = found.get(measure.kind, 0) + measure.n
    return found


def _lasting(measures: list[Measure]) -> dict[str, Any]:
    return {"labels": sum(m.n for m in measures), "seconds": sum(m.total or 0 for m in measures)}


def _spread(measures: list[Measure], numbers: Numbers) -> dict[str, Any]:
    spread = Spread.of(measures, numbers.bounds)
    quantiles = {f"p{share * 100:.0f}_seconds": spread.quantile(share) for share in (0.5, 0.95, 0.99)}
    return {"n": spread.n, **quantiles}


def print_stats(console: Console, told: dict[str, Any]) -> None:
    """For people: short lines, for they stand on phones and in terminals of 80 columns."""

    def say(line: str) -> None:
        console.print(escape(printable(line)), soft_wrap=True, highlight=False)

    say(f"since {moment(told['since'])}")
    for store in told["stores"]:
        say("")
        say(f"store {store['store']}" + (f"   {', '.join(store['shops'])}" if store["shops"] else ""))
        for line in _lines_of(store):
            say(f"  {line}")
    for server in told["label_servers"]:
        say("")
        say(f"label server {server['label_server']}")
        say(f"  calls           {_listed(server['calls'])}")
        say(f"  accepted after  {_quantiles(server)}")
    for shop, n in told["refused_signatures"].items():
        say("")
        say(f"{shop}: {n:,} webhooks with a wrong signature claimed to be its")
    if told["changing"]:
        say("")
        say("labels that change most")
    for row in told["changing"]:
        flaps = f"{row['contents']} different" if row["contents"] < row["pushes"] else "all different"
        titles = (row["title"], row["variant_title"])
        title = " · ".join(text for text in titles if text and text != "Default Title")
        say(f"  {row['store_code']} {row['code']}  {row['pushes']:,} pushes, {flaps}  {title}")


def _lines_of(store: dict[str, Any]) -> Iterable[str]:
    for kind, says in (("rise", "price rises"), ("other", "other news")):
        spread = store["webhook_to_accepted"][kind]
        yield f"{says:<15} {spread['n']:,}" + (
            f": accepted after {_quantiles(spread)}" if spread["n"] else ""
        )
    pushed, avoided = sum(store["pushes"].values()), sum(store["pushes_avoided"].values())
    yield f"pushed          {_listed(store['pushes'])}"
    yield f"avoided         {avoided:,}" + (
        f" ({avoided / (avoided + pushed):.0%} of what could have been pushed)" if avoided else ""
    )
    for kind, says in (("over", "in overcharge"), ("under", "in undercharge")):
        wrong, now = store["wrong_prices"][kind], store["wrong_now"].get(kind, 0)
        yield (
            f"{says:<15} {wrong['labels']:,} labels"
            + (f", {_lasted(wrong['seconds'])} in all" if wrong["labels"] else "")
            + (f"; {now:,} now" if now else "")
        )
    share = store["accuracy"]
    at = moment(store["accuracy_counted_at"])
    yield f"accuracy        {'not counted yet' if share is None else f'{_share(share)} at {at}'}"
    yield f"held back       {store['held_back']:,}"
    yield f"waiting         {_listed(store['waiting'])}"
    yield f"drift           {_listed(store['drift'])}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in counts.items()) or "0"


def _quantiles(spread: dict[str, Any]) -> str:
    if not spread["n"]:
        return "-"
    return ", ".join(f"{name} {_lasted(spread[f'{name}_seconds'])}" for name in ("p50", "p95", "p99"))


def _share(share: float) -> str:
    """Never 100 % when it is not all of them."""
    return "100 %" if share == 1 else f"{int(share * 10_000) / 100:.2f} %"


def _lasted(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
