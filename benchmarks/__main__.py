"""The benchmark: `python -m benchmarks [--quick] [--out DIR]` (make bench, make bench QUICK=1). Linux.

Against the sandboxes over loopback, each part in a process of its own. What is measured stands in the table, with what
is promised of it; table, JSON and pictures are written to DIR. The last line is the summary; exits 1 when a promise is
broken.

Latency is of a pipeline that runs: the drain of each label server is production's job, run again and again by a process
that stays, so the start of a run by Dagster's daemon is in none of the figures.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks import fill, growth, hang, latency, pictures, prior, receiver, servers
from benchmarks.fill import Fill
from benchmarks.latency import Measured, Shop
from benchmarks.night import WORKERS, Night, nights
from benchmarks.parts import DEFAULT, Deployment, deployment, eventually
from benchmarks.report import Report, Row, machine, versions
from benchmarks.sizes import FULL, QUICK, Sizes, Steady
from benchmarks.webhooks import shop_name

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


def _latencies(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
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


def _hanging(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
    products = round(sizes.hang_per_second * sizes.hang_seconds)
    elsewhere = [name for name in deployed.labels if name != DEFAULT][:1]
    shops = [
        Shop(deployed, ELSEWHERE + n, products, server=name) for n, name in enumerate([DEFAULT, *elsewhere])
    ]
    hung = Shop(deployed, HUNG, products)
    deployed.take(5)
    for shop in (*shops, hung):
        latency.measure(deployed, shop.all_new())
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


def _fills(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
    number = count(FILLED)
    for labels, milliseconds in sizes.webhook_fills:
        report.add(
            _fill_row("webhook", fill.by_webhook(deployed, next(number), labels, milliseconds), labels)
        )
        yield
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
    for variants, latencies in sizes.night_fills:
        with deployed.shopify(variants) as shopify:
            for milliseconds in latencies:
                shop = next(number)
                found, night = fill.by_night(deployed, shop, shopify, milliseconds)
                report.add(_fill_row("night", found, variants // 2))
                _check(night)
                yield
            yield from _nights_after(deployed, shop_name(shop), variants, shopify, report)


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


def _label_servers(deployed: Deployment, sizes: Sizes, report: Report) -> Iterator[None]:
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


def _growth(report: Report) -> None:
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


def _receiver(sizes: Sizes, report: Report) -> None:
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


def _memory(deployed: Deployment, report: Report) -> None:
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


def _draw(report: Report, folder: Path) -> None:
    waits = [row for row in report.rows if row.what.startswith("latency")]
    (folder / "latency.svg").write_text(
        pictures.bars(
            "From the receiver's 200 to the label server's acceptance",
            "seconds",
            QUANTILES,
            [
                pictures.Bars(
                    f"{row.what.removeprefix('latency, ')}, {row.values['milliseconds']:g} ms a call",
                    [row.values[name] for name in QUANTILES],
                )
                for row in waits
            ],
        )
    )
    rates = [row for row in report.rows if "labels_per_second" in row.values]
    (folder / "throughput.svg").write_text(
        pictures.bars(
            "First fills beside what the label server allows",
            "labels a second",
            ("measured", "bound"),
            [
                pictures.Bars(
                    f"{row.what.removeprefix('first fill ')}, {row.under}",
                    [
                        row.values["labels_per_second"],
                        row.values["labels_per_second"] / row.values["ratio"]
                        if "ratio" in row.values
                        else None,
                    ],
                )
                for row in rates
            ],
        )
    )


Phase = Callable[[Deployment, Sizes, Report], Iterator[None]]


def _plan(sizes: Sizes) -> list[tuple[list[str], list[Phase]]]:
    """What is measured on which deployment, by the names of its label servers."""
    names = [DEFAULT, *(f"server-{n}" for n in range(2, sizes.servers + 1))]
    if sizes.servers == 2:
        return [(names, [_latencies, _hanging, _fills, _label_servers])]
    return [(names[:2], [_latencies, _hanging, _fills]), (names, [_label_servers])]


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="the same bounds at smaller sizes, in four minutes"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-result"), help="folder of what is written")
    given = parser.parse_args()
    sizes, folder = QUICK if given.quick else FULL, given.out.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    report, began = Report(), time.monotonic()
    about: dict[str, Any] = {
        "mode": sizes.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    about |= {"machine": machine(), "versions": versions(0)}
    try:
        for places, phases in _plan(sizes):
            idle = {"ESL_DRAIN_IDLE_SECONDS": str(sizes.drain_idle)}
            with deployment(places, settings=idle, beside=WORKERS) as deployed:
                about["versions"] = versions(deployed.postgres.version)
                for phase in phases:
                    for _ in phase(deployed, sizes, report):
                        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
                _memory(deployed, report)
        _receiver(sizes, report)
        _growth(report)
    except SystemExit as ended:
        report.add(Row("the run", "to its end", str(ended), promised="ends", kept=False))
    about["seconds"] = time.monotonic() - began
    report.write(folder, about)
    _draw(report, folder)
    broken = report.broken
    print("\n".join(["", *(f"BROKEN: {one}" for one in broken)]))
    kept = sum(row.promised is not None for row in report.rows) - len(broken)
    verdict = f"{len(broken)} BROKEN" if broken else "none broken"
    print(f"bench {sizes.name}: {kept} promises kept, {verdict}, in {about['seconds']:.0f} s; {folder}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
