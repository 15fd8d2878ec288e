"""What is measured, phase by phase, and what is promised of it: rows of the report.

A phase yields after each figure, so that whoever runs it can say how far it is.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count, cycle

from benchmarks import fill, growth, hang, latency, prior, receiver, servers
from benchmarks.fill import Fill
from benchmarks.latency import Measured, Shop
from benchmarks.night import Night, nights
from benchmarks.parts import DEFAULT, Deployment, eventually
from benchmarks.report import Report, Row
from benchmarks.sizes import Sizes, Steady
from benchmarks.webhooks import shop_name

Phase = Callable[[Deployment, Sizes, Report], Iterator[None]]

FILL_RATIO, JUDGED_LABELS, TIMES_PRIOR, MOVED, EXPONENT, MIB = 0.9, 5_000, 50, 1.25, 1.1, 600
# So long may an unchanged night of so many variants take, a smaller one its share and what a run takes to start.
NIGHT_SECONDS, NIGHT_VARIANTS, STARTING = 30, 100_000, 3
RECEIVER_RATIO = 0.4
QUANTILES = ("p50", "p95", "p99")
# Of shops; the numbers of those that are filled at once come after.
LATENCY, HUNG, ELSEWHERE, FILLED = 1, 2, 3, 10


def _latency_row(what: str, milliseconds: float, found: Measured, **most: float) -> Row:
    """most: the longest that is promised of a quantile."""
    every, rises = found.every, found.rises
    kept = every.missing == 0 and all(getattr(every, name) <= bound for name, bound in most.items())
    return Row(
        "latency, " + what,
        f"{milliseconds:g} ms a call, {every.changes} changes",
        f"p50 {every.p50:.2f}  p95 {every.p95:.2f}  p99 {every.p99:.2f} s"
        + (f"; rises {rises.p50:.2f}  {rises.p95:.2f}  {rises.p99:.2f} s" if rises else "")
        + (f"; {every.missing} NEVER" if every.missing else ""),
        {
            "milliseconds": milliseconds,
            "changes": every.changes,
            "missing": every.missing,
            **{name: getattr(every, name) for name in QUANTILES},
            "rises": {name: getattr(rises, name) for name in QUANTILES} if rises else None,
            "waiting": found.waiting,
        },
        ", ".join(f"{name} <= {bound:g} s" for name, bound in most.items()) or "all arrive",
        kept,
    )


def latencies(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
    """Bursts, silence (with the baseline beside it) and steady rates."""
    shop = Shop(deployed, LATENCY, sizes.products)
    deployed.take(5)
    new = latency.measure(deployed, shop.all_new())
    report.add(_latency_row(f"burst of {sizes.products:,} new", 5, new))
    yield
    # The baseline waits nearly all the time, as the idle pipeline does.
    with ThreadPoolExecutor(1) as pool:
        baseline = pool.submit(prior.labels_per_second, deployed, sizes.prior_labels)
        found = latency.idle(deployed, shop, sizes.idle_samples, sizes.silence)
        report.add(_latency_row(f"{sizes.silence:g} s of silence", 5, found, p95=1))
        kept = baseline.result()
    report.add(
        Row(
            "baseline",
            f"{sizes.prior_labels} labels, one at a time",
            f"{kept:.2f} labels/s",
            {"labels_per_second": kept},
        )
    )
    yield
    for load in sizes.steady:
        yield from _steady(deployed, shop, load, report)
    for milliseconds in sizes.bursts:
        deployed.take(milliseconds)
        found = latency.measure(deployed, [shop.change() for _ in range(2_000)], within=600)
        report.add(_latency_row("burst of 2,000", milliseconds, found))
        eventually("the end of the burst", deployed.is_idle, 60)
        yield


def _steady(deployed: Deployment, shop: Shop, load: Steady, report: Report) -> Iterator[None]:
    per_second, milliseconds = load.per_second, load.milliseconds
    deployed.take(milliseconds)
    most: dict[str, float] = {}
    if (per_second, milliseconds) == (20, 5):
        most = {"p50": 0.15, "p95": 0.5}
    if (per_second, milliseconds) == (20, 500):
        most = {"p50": 1.2 * 0.5 + 0.15}
    found = latency.measure(deployed, shop.changes(per_second, load.seconds), within=300)
    report.add(_latency_row(f"{per_second:g} events/s", milliseconds, found, **most))
    if per_second == 100:
        last = found.waiting[-1][1]
        report.add(
            Row(
                "backlog, 100 events/s",
                f"{milliseconds:g} ms a call, {load.seconds:g} s",
                f"{last} wait at the end, at most {max(number for _, number in found.waiting)}",
                {"waiting": found.waiting},
                "does not grow" if milliseconds == 5 else None,
                not found.grows or milliseconds != 5,
            )
        )
    eventually("the end", deployed.is_idle, 60)
    yield


def hanging(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
    """A store whose calls hang, beside others."""
    products = round(sizes.hang_per_second * sizes.hang_seconds)
    elsewhere = [name for name in deployed.labels if name != DEFAULT][:1]
    shops = [
        Shop(deployed, ELSEWHERE + n, products, server=name) for n, name in enumerate([DEFAULT, *elsewhere])
    ]
    hung = Shop(deployed, HUNG, products)
    deployed.take(5)
    for shop in (*shops, hung):
        if missing := latency.measure(deployed, shop.all_new()).every.missing:
            sys.exit(f"{missing} first labels of store {shop.store} never came")
    costs = hang.measure(
        deployed,
        shops,
        hung,
        per_second=sizes.hang_per_second,
        seconds=sizes.hang_seconds,
        hold=sizes.hold,
        milliseconds=5,
    )
    for cost in costs:
        report.add(
            Row(
                f"a store hangs {sizes.hold:g} s a call",
                f"p95 of {cost.where}",
                f"{cost.hanging:.2f} s, without {cost.without:.2f} s: {cost.ratio:.2f} x",
                {"without": cost.without, "hanging": cost.hanging, "ratio": cost.ratio},
                f"< {MOVED} x",
                cost.ratio < MOVED,
            )
        )
    yield


def _fill_row(how: str, found: Fill, wanted: int) -> Row:
    """The bound is promised of what takes longer than starting takes, at the latencies that are promised."""
    is_promised = found.milliseconds <= 500 and found.labels >= JUDGED_LABELS
    return Row(
        f"first fill by {how}",
        f"{found.labels:,} labels, {found.milliseconds:g} ms a call",
        f"{found.seconds:.1f} s in {found.calls} calls, {found.per_second:.0f}/s: {found.ratio:.2f} of the bound",
        {
            "size": found.labels,
            "calls": found.calls,
            "seconds": found.seconds,
            "milliseconds": found.milliseconds,
            "ratio": found.ratio,
            "labels_per_second": found.per_second,
        },
        f">= {FILL_RATIO}" if is_promised else "all arrive",
        found.labels >= wanted and (found.ratio >= FILL_RATIO or not is_promised),
    )


def fills(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
    """First fills by webhook and by night, and nights after them."""
    number, at = count(FILLED), cycle(deployed.labels)
    for labels, milliseconds in sizes.webhook_fills:
        found = fill.by_webhook(deployed, next(number), labels, milliseconds, server=next(at))
        report.add(_fill_row("webhook", found, labels))
        yield
    for variants, latencies in sizes.night_fills:
        with deployed.shopify(variants) as shopify:
            for milliseconds in latencies:
                shop = next(number)
                found, night = fill.by_night(deployed, shop, shopify, milliseconds)
                report.add(_fill_row("night", found, variants // 2))
                _check(night)
                yield
            yield from _nights_after(deployed, shop_name(shop), variants, shopify, report)


def beside_prior(report: Report) -> None:
    """The first fills beside the baseline."""
    filled = [
        row for row in report.rows if row.what == "first fill by webhook" and row.promised != "all arrive"
    ]
    slowest = min((row.values["labels_per_second"] for row in filled), default=0)
    (kept,) = (row.values["labels_per_second"] for row in report.rows if row.what == "baseline")
    report.add(
        Row(
            "first fill / baseline",
            "the slowest by webhook",
            f"{slowest / kept:.0f} x",
            {"times": slowest / kept},
            f">= {TIMES_PRIOR} x",
            slowest >= TIMES_PRIOR * kept,
        )
    )


def _nights_after(
    deployed: Deployment, shop: str, variants: int, shopify: str, report: Report
) -> Iterator[None]:
    """The nights of a shop that was just filled, at a pace that does not bind: unchanged, and with few new prices."""
    deployed.take(0)
    starts = STARTING if variants < NIGHT_VARIANTS else 0
    most = NIGHT_SECONDS * variants / NIGHT_VARIANTS + starts if variants >= JUDGED_LABELS else None
    unchanged = nights(deployed, [shop], shopify, per_second=1000)
    report.add(_night_row("night, unchanged", variants, unchanged, pushes=0, most=most))
    yield
    changed = fill.change_some(shopify, 0.01, cents=25_000)
    some = nights(deployed, [shop], shopify, per_second=1000)
    report.add(_night_row("night, 1 % changed", variants, some, pushes=changed))
    yield


def _night_row(what: str, variants: int, night: Night, *, pushes: int, most: float | None = None) -> Row:
    _check(night)
    return Row(
        what,
        f"{variants:,} variants",
        f"{night.seconds:.1f} s, {night.pushes} pushes",
        {"size": variants, "seconds": night.seconds, "steps": night.steps, "pushes": night.pushes},
        f"{pushes} pushes" + ("" if most is None else f", <= {most:g} s"),
        night.pushes == pushes and (most is None or night.seconds <= most),
    )


def _check(night: Night) -> None:
    if night.failed:
        sys.exit(f"the nights of {', '.join(night.failed)} failed")


def label_servers(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
    """Nights of several shops at several label servers."""
    found = servers.measure(deployed, shops=sizes.shops, variants=sizes.variants_of_a_shop)
    under = f"{len(deployed.labels)} servers, {sizes.shops} shops, {found.labels:,} labels"
    lost = [shop for shop in found.down.failed if shop in found.up]
    for what, night, promised, kept in (
        ("unchanged", found.unchanged, "0 pushes", found.unchanged.pushes == 0),
        ("1 % changed", found.some, f"{found.changed} pushes", found.some.pushes == found.changed),
        ("a server down", found.down, "nothing waits elsewhere", not found.left and not lost),
    ):
        report.add(
            Row(
                f"nights, {what}",
                under,
                f"{night.seconds:.1f} s, {night.pushes} pushes"
                + (f"; {found.left} labels of other servers wait" if night is found.down else ""),
                {"seconds": night.seconds, "pushes": night.pushes, "each": night.each, "steps": night.steps},
                promised,
                kept,
            )
        )
    yield


def growths(report: Report) -> None:
    """How all that was measured at several sizes grows."""
    for one in growth.exponents(report.rows):
        report.add(
            Row(
                "growth",
                f"{one.what}, up to {one.size:,}",
                f"exponent {one.exponent:.2f}" + ("" if one.judged else ", too short to judge"),
                {"exponent": one.exponent},
                f"<= {EXPONENT}" if one.judged else None,
                one.exponent <= EXPONENT or not one.judged,
            )
        )


def receivers(sizes: Sizes, report: Report) -> None:
    """The receiver beside an application that does nothing."""
    cases, wrong = receiver.measure(
        sizes.receiver_seconds, cases=sizes.receiver_cases, turns=sizes.receiver_turns
    )
    for case in cases:
        own, nothing = case.receiver, case.nothing
        is_promised = (case.connections, case.variants) == (50, 1)
        report.add(
            Row(
                "receiver",
                f"{case.connections} connections, {case.variants}-variant bodies",
                f"{own.per_second:,.0f}/s, p99 {own.p99:.0f} ms; does nothing: {nothing.per_second:,.0f}/s; "
                f"{case.ratio:.2f} x",
                {"receiver": asdict(own), "nothing": asdict(nothing), "ratio": case.ratio},
                f">= {RECEIVER_RATIO}" if is_promised else None,
                case.ratio >= RECEIVER_RATIO or not is_promised,
            )
        )
    said = "; ".join(wrong) or "each is a committed row"
    report.add(Row("receiver", "every 200", said, promised="is a committed row", kept=not wrong))


def memory(deployed: Deployment, report: Report) -> None:
    """The peak of each process of a deployment."""
    peaks = deployed.memory.peaks
    report.add(
        *(
            Row(
                "peak memory",
                f"{name} ({len(deployed.labels)} servers)",
                f"{peak:.0f} MiB",
                {"mib": peak},
                f"<= {MIB} MiB",
                peak <= MIB,
            )
            for name, peak in sorted(peaks.items())
        )
    )
