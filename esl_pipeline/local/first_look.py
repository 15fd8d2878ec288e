"""The first minutes of `esl-pipeline up`: fill the sandbox shop's store at once, and say what to try next."""

import time
from collections.abc import Iterator

import httpx

from esl_pipeline.local.stack import Urls
from esl_pipeline.local.webserver import Webserver, WebserverError

_FILL_SECONDS = 300.0


def fill(urls: Urls, shop: str) -> str:
    """Run one full_reconciliation of a shop (its key) and wait for it; what came of it, as a sentence."""
    began = time.monotonic()
    ui = Webserver(urls.ui)
    try:
        run = ui.launch_night(shop)
        ui.wait(run, _FILL_SECONDS)
    except (httpx.HTTPError, WebserverError) as error:
        return f"the store could not be filled at once: {error}; see {urls.ui}/runs"
    seconds = time.monotonic() - began
    return (
        f"{_labels(urls)} labels hang, after one full_reconciliation ({seconds:.0f} s): {urls.ui}/runs/{run}"
    )


def _labels(urls: Urls) -> str:
    try:
        stores = httpx.get(f"{urls.labels}/sandbox/state", timeout=10).json()["labels"]
    except (httpx.HTTPError, ValueError, KeyError):
        return "all"
    return str(sum(map(len, stores.values())))


def next_steps(urls: Urls, program: str) -> Iterator[str]:
    """What somebody may try now, each on a line; program: how the command was called."""
    faults = f"{urls.labels}/sandbox/faults"
    yield "What to try next:"
    if urls.shop:
        yield f"  change a price at {urls.shop}, and look at {urls.labels}"
    for command, says in (
        ("status", "how everything stands"),
        ("findings", "what is wrong with the shop's data"),
        ("queue", "what waits, and why"),
        ("report", "the last night, label by label"),
        ("trace CODE", "why a label shows what it shows"),
    ):
        yield f"  {program} {command:<11} {says}"
    if urls.labels:
        yield "  break the label server, change prices, look at status, and repair it:"
        yield f'    curl -d \'[{{"kind": "status", "status": 503}}]\' -H \'Content-Type: application/json\' {faults}'
        yield f"    curl -X DELETE {faults}"
