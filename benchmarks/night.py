"""Nights as Dagster runs them, in processes of their own: `python -m benchmarks.night`.

In the child: for each line on stdin, `{"variables", "shops"}`, full_reconciliation of these shops, one after another,
in the environment of these variables; answered with a line. The process stays, so that no start of Python is in the
figures.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.parts import Deployment, eventually

STEPS = ("shopify_products", "validated_variants", "hipoink_sync_results")
# Whole shops that run at once, as dagster.yaml has it: what is to run beside a deployment.
WORKERS = dict.fromkeys(("night 1", "night 2"), ("-m", "benchmarks.night"))


@dataclass(frozen=True)
class Night:
    """seconds: until the last run had ended; pushes: how many labels were sent; each: seconds of each shop's run;
    steps: of each step, all shops together; failed: shops whose run failed."""

    seconds: float
    pushes: int
    each: Mapping[str, float]
    steps: Mapping[str, float]
    failed: Sequence[str]


def nights(
    deployed: Deployment,
    shops: Sequence[str],
    shopify: str,
    *,
    at_once: int = 1,
    per_second: float | None = None,
    settles: bool = True,
) -> Night:
    """The nights of these shops, so many at once. per_second: another pace of the label server `default`; settles:
    whether all that they lead to is waited for."""
    before = _intents(deployed)
    variables = {"SHOPIFY_ADMIN_URL": shopify}
    if per_second is not None:
        variables["HIPOINK_RATE_LIMIT_PER_SECOND"] = str(per_second)
    workers = [child for name, child in deployed.beside.items() if name in WORKERS][:at_once]
    asked = [
        json.dumps({"variables": variables, "shops": shops[number :: len(workers)]})
        for number in range(len(workers))
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(len(workers)) as pool:
        runs = {shop: run for answer in pool.map(_told, workers, asked) for shop, run in answer.items()}
    seconds = time.monotonic() - began
    if settles:
        eventually("the end of the night", deployed.is_idle, 600)
    return Night(
        seconds,
        _intents(deployed) - before,
        {shop: run["seconds"] for shop, run in runs.items()},
        {step: sum(run[step] for run in runs.values()) for step in STEPS},
        [shop for shop, run in runs.items() if run["failed"]],
    )


def _told(child: subprocess.Popen[str], asked: str) -> dict[str, dict[str, float]]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(asked + "\n")
    child.stdin.flush()
    while line := child.stdout.readline():
        if line.startswith("{"):
            answer: dict[str, dict[str, float]] = json.loads(line)
            return answer
    sys.exit("a night failed")


def _intents(deployed: Deployment) -> int:
    ((count,),) = deployed.rows("select count(*) from esl.sync_log where kind = 'intent'")
    return int(count)


def _serve() -> None:
    """In the child."""
    from benchmarks.instance import opened
    from esl_pipeline.definitions import build_definitions

    job = build_definitions().resolve_job_def("full_reconciliation")
    with opened() as instance:
        for line in sys.stdin:
            asked, own = json.loads(line), dict(os.environ)
            os.environ.update(asked["variables"])
            answer = {shop: _run(job, instance, f"shopify:{shop}") for shop in asked["shops"]}
            os.environ.clear()
            os.environ.update(own)
            print(json.dumps(answer), flush=True)


def _run(job: Any, instance: Any, key: str) -> dict[str, float]:
    """The night of one shop: its seconds, and those of each step."""
    instance.add_dynamic_partitions("shops", [key])
    began = time.monotonic()
    result = job.execute_in_process(instance=instance, partition_key=key, raise_on_error=False)
    found = {"seconds": round(time.monotonic() - began, 2)} | dict.fromkeys(STEPS, 0.0)
    for step in STEPS if result.success else ():
        (made,) = result.asset_materializations_for_node(step)
        found[step] = float(made.metadata["duration (s)"].value)
    return found | {"failed": float(not result.success)}


if __name__ == "__main__":
    _serve()
