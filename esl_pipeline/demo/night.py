"""The demo's night: somebody meddles with the labels at the label server, and a run of full_reconciliation finds it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import psycopg

from esl_pipeline.demo.day import Label
from esl_pipeline.local.webserver import Webserver
from esl_pipeline.settings import Settings

RUN_SECONDS = 120.0
_MISSING, _DIFFERENT = 3, 5
FOREIGN: Mapping[str, Label] = {
    code: {"pc": code, "pn": "Somebody else's", "pp": "1.00"} for code in ("OTHERS-1", "OTHERS-2")
}
"""What somebody else hangs up."""


@dataclass(frozen=True)
class Meddling:
    """What was done behind the pipeline's back."""

    missing: list[str]
    different: list[str]
    foreign: Mapping[str, Label]

    @property
    def drift(self) -> dict[str, int]:
        """What has to be found, by kind."""
        return {"missing": len(self.missing), "different": len(self.different), "foreign": len(self.foreign)}


def meddle(labels: str, store: str, codes: Sequence[str], rng: random.Random) -> Meddling:
    """Change 5 of these labels of a store, take 3 away and hang up 2 strange ones; `labels` is the server's address."""
    chosen = rng.sample(codes, _MISSING + _DIFFERENT)
    done = Meddling(chosen[:_MISSING], chosen[_MISSING:], FOREIGN)
    with httpx.Client(base_url=f"{labels}/sandbox/labels/{store}/", timeout=30) as http:
        for code in done.missing:
            http.delete(code).raise_for_status()
        for number, code in enumerate(done.different):
            http.put(code, json={"pn": "Sale!"} if number % 2 else {"pp": "0.01"}).raise_for_status()
        for code, label in done.foreign.items():
            http.put(code, json=label).raise_for_status()
    return done


def await_reads(ui: str) -> None:
    """Until no run reads a whole shop that was started by itself: it would find what is done to the labels."""
    Webserver(ui).wait_for_others("full_reconciliation", RUN_SECONDS)


def reconcile(ui: str, partition: str) -> str:
    """Run full_reconciliation for a shop to its end, over Dagster's webserver -> the run's id."""
    webserver = Webserver(ui)
    run_id = webserver.launch_night(partition)
    webserver.wait(run_id, RUN_SECONDS)
    return run_id


def run_job(ui: str, job: str) -> None:
    """Run a job of all shops to its end."""
    webserver = Webserver(ui)
    webserver.wait(webserver.launch(job), RUN_SECONDS)


def drift_in_dagster(ui: str, run_id: str) -> dict[str, int]:
    """The drift that the run shows in Dagster, by kind."""
    numbers = Webserver(ui).numbers(run_id).get("hipoink_sync_results", {})
    return {
        label.removeprefix("drift "): number
        for label, number in numbers.items()
        if label.startswith("drift ")
    }


def repaired_in_buffer(settings: Settings, run_id: str) -> dict[str, int]:
    """The drift that the run has put right as the buffer has it, by kind. Foreign labels are left alone."""
    address = settings.esl_database_url
    if address is None:
        raise ValueError("the demo's buffer is a Postgres of its own")
    with psycopg.connect(address.get_secret_value()) as connection:
        rows = connection.execute(
            "select kind, count(*) from esl.drift where run_id = %s and kind <> 'foreign' group by kind",
            [run_id],
        ).fetchall()
    return dict(rows)
