"""Reading the physical labels of a large store beside a drain: `python -m benchmarks.shelf 100000`.

A store has so many labels at the label server; another one's prices change 20 times a second. In turns, three times
each, its changes are measured while nothing else happens and while the labels are read, by the job `shelf` in a process
of its own. Exits 1 when the median p95 moves by more than a quarter, when a pass reads a page twice, misses a label or
(unchanged) writes one, or when it does not fit its share of the pace.
"""

import json
import os
import statistics
import sys
import time
from datetime import timedelta

import httpx

from benchmarks import latency
from benchmarks.latency import Shop
from benchmarks.parts import DEFAULT, STORE_SETTINGS, Deployment, deployment
from benchmarks.webhooks import shop_name

TURNS, PER_SECOND, SECONDS, MOVED = 3, 20, 10, 1.25
# Of the label server's pace (stages/slots.py), in calls a second at its default of 10.
SHARE = 2.0
WATCHED, LARGE = 1, 2
_PASSES = """
select state, devices, pages, changed, extract(epoch from finished_at - started_at)::float8 from esl.device_passes
where store_code = %(store)s order by started_at desc limit 1"""


def main(labels: int) -> int:
    """Measure, print, judge."""
    broken = []
    with deployment(beside={"shelf": ("-m", "benchmarks.shelf", "--serve")}) as deployed:
        shop = Shop(deployed, WATCHED, 500)
        deployed.take(5)
        latency.measure(deployed, shop.all_new())
        large = f"S{LARGE}"
        deployed.map_shops({shop_name(LARGE): large}, STORE_SETTINGS)
        _hang(deployed, large, labels)
        _read(deployed)
        broken += _judged("the first pass", deployed, large, labels, changed=labels)
        p95: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(TURNS):
            for reads in (False, True):
                if reads:
                    _begin(deployed)
                found = latency.measure(deployed, shop.changes(PER_SECOND, SECONDS))
                if reads:
                    _end(deployed)
                    broken += _judged("a pass beside the drain", deployed, large, labels, changed=0)
                p95[reads].append(found.every.p95)
                how, took = "beside a pass" if reads else "alone", found.every
                print(f"{how:<14} p50 {took.p50:.2f}  p95 {took.p95:.2f} s")
    alone, beside = (statistics.median(p95[reads]) for reads in (False, True))
    if beside > MOVED * alone:
        broken.append(f"p95 {beside:.2f} s beside a pass, {alone:.2f} s alone")
    print("\n".join(f"BROKEN: {one}" for one in broken))
    print(
        f"shelf {labels:,}: p95 {alone:.2f} s alone, {beside:.2f} s beside a pass ({beside / alone:.2f} x), "
        f"{len(broken)} broken"
    )
    return 1 if broken else 0


def _hang(deployed: Deployment, store: str, labels: int) -> None:
    wish = {"store": store, "unbound": labels}
    httpx.put(f"{deployed.labels[DEFAULT]}/sandbox/devices", json=wish, timeout=300).raise_for_status()


def _begin(deployed: Deployment) -> None:
    child = deployed.beside["shelf"]
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def _end(deployed: Deployment) -> None:
    child = deployed.beside["shelf"]
    assert child.stdout is not None
    while line := child.stdout.readline():
        if line.startswith("{"):
            if json.loads(line)["failed"]:
                sys.exit("a pass failed")
            return
    sys.exit("the process that reads the labels has ended")


def _read(deployed: Deployment) -> None:
    _begin(deployed)
    _end(deployed)


def _judged(what: str, deployed: Deployment, store: str, labels: int, *, changed: int) -> list[str]:
    """What is wrong with the newest pass."""
    ((state, devices, pages, moved, seconds),) = deployed.rows(_PASSES, store=store)
    print(
        f"{what}: {devices:,} labels in {pages} pages, {moved:,} changed, {timedelta(seconds=round(seconds))}"
    )
    wrong = []
    if (state, devices, moved) != ("complete", labels, changed):
        wrong.append(f"{what} is {state}, has {devices:,} labels and wrote {moved:,}")
    if pages > SHARE * seconds + 1:
        wrong.append(f"{what} made {pages} calls in {seconds:.0f} s, more than its share")
    return wrong


def _serve() -> None:
    """In the child: the job shelf, once for each line."""
    from benchmarks.instance import opened
    from esl_pipeline.definitions import build_definitions

    job, parent = build_definitions().resolve_job_def("shelf"), os.getppid()
    with opened() as instance:
        for _ in sys.stdin:
            if os.getppid() != parent:
                return
            began = time.monotonic()
            config = {"ops": {"read_shelves": {"config": {"shops": [f"shopify:{shop_name(LARGE)}"]}}}}
            done = job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)
            print(json.dumps({"seconds": time.monotonic() - began, "failed": not done.success}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve()
    else:
        sys.exit(main(int(sys.argv[1])))
