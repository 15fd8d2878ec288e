"""The soak: `make soak MINUTES=20`, or `python -m esl_pipeline_tests.reliability.soak 20 --seed 7`.

A shop that feeds a store at each of two label servers changes all the time while the pipeline is killed in parts and as
a whole, now the one label server fails and now the other, and messages and settings that say nothing of the shop's
prices come between (unrest.py). Drains hand over every few seconds, and some are killed while they do (handover.py).
When the time is up, the faults end, everything drains, a full_reconciliation reads what webhooks did not tell, and
every label of both servers is compared with the shop. Exits 1 on any wrong label, lost event, hole in the audit, fewer
kills than minutes, or when no drain was killed during a handover.
"""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import psycopg
import psycopg.rows
import typer

from esl_pipeline.demo.day import Difference
from esl_pipeline.local.variables import running_environment
from esl_pipeline.local.webserver import Webserver
from esl_pipeline.sandbox.shopify.delivery import Switches, WebhookSender
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN, Shop, real_time
from esl_pipeline_tests.reliability.handover import Handovers
from esl_pipeline_tests.reliability.outside import (
    NORTH,
    NORTHERN_STORE,
    WEBHOOK_SECRET,
    LabelServer,
    Row,
    Senders,
    Traffic,
    applied,
    as_text,
    body_hash,
    further_server,
    map_shop,
    open_shop,
    pipeline_settings,
    scratch_home,
)
from esl_pipeline_tests.reliability.unrest import OURS, Unrest
from esl_pipeline_tests.reliability.victim import Trouble, Victim, until_sound
from esl_pipeline_tests.waiting import eventually

RATE = 20.0
PAUSE = 8.0
TRICKS = Switches(drop=0.02, duplicate=0.03, delay=0.1, delay_seconds=3)
# Shopify's eight retries within four minutes instead of four hours: the outages here are as much shorter.
RETRY_HOURS = 4 / 60
CONNECTIONS = 8
DRAIN_SECONDS = 300.0
# So that drains hand over all the time.
OFTEN = {"ESL_DRAIN_KEEP_WARM": "true", "ESL_DRAIN_MAX_AGE_SECONDS": "20", "ESL_DRAIN_IDLE_SECONDS": "10"}
_HANDOVER_SECONDS = 180.0


@dataclass
class Report:
    """What happened, as figures; `problems` are sentences, none when all is well."""

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        f = self.figures
        verdict = "FAILED" if self.problems else "passed"
        return (
            f"soak {verdict}: {f['minutes']:g} min, seed {f['seed']}, {f['changes']} changes at {f['rate']:.1f}/s, "
            f"{f['events']} events ({f['dropped']} dropped, {f['duplicates absorbed']} duplicates absorbed), "
            f"{f['kills']} kills, handovers {f['handovers']}, killed in one {f['killed in a handover']}, "
            f"{f['label-server faults']} label-server faults, {f['unrest']} unrests, "
            f"{f['pushed labels']} labels pushed, "
            f"{f['retries of pushes']} retries, {f['corrections']} corrections, longest lag {f['longest lag']}, "
            f"{f['wrong labels']} wrong, {f['not shown']} not shown, {f['lost events']} lost, "
            f"{f['audit holes']} audit holes"
        )


def soak(minutes: float, seed: int, *, rate: float = RATE, pause: float = PAUSE, home: Path) -> Report:
    """Run it all; `home` is an empty folder. Raises AssertionError when the pipeline does not come back."""
    shop = open_shop(seed)
    outside, north = home / "outside", home / NORTH
    outside.mkdir()
    north.mkdir()
    with LabelServer(outside) as labels, LabelServer(north, NORTH, NORTHERN_STORE) as northern:
        victim = Victim(home / "up", {})
        with (
            WebhookSender(
                f"{victim.receiver}/webhooks/shopify",
                WEBHOOK_SECRET,
                retry_hours=RETRY_HOURS,
                connections=CONNECTIONS,
                seed=seed,
            ) as sender,
            running_shopify(shop, sender=(senders := Senders(sender))) as shopify,  # type: ignore[arg-type]
        ):
            victim.variables |= pipeline_settings(labels.url, shopify.url) | further_server(northern, north)
            victim.variables |= OFTEN
            try:
                victim.start()
                victim.wait()
                traffic = Traffic(shopify.sandbox, random.Random(seed))
                codes = [
                    variant.barcode for product in shop.products.values() for variant in product.variants
                ]
                both = (labels, northern)
                trouble = Trouble(victim, both, random.Random(seed), [code for code in codes if code])
                told = _Soak(victim, both, shop, sender, senders, traffic, trouble, random.Random(seed))
                return told.run(minutes, seed, rate, pause)
            finally:
                victim.stop()


class _Soak:
    def __init__(
        self,
        victim: Victim,
        labels: Sequence[LabelServer],
        shop: Shop,
        sender: WebhookSender,
        senders: Senders,
        traffic: Traffic,
        trouble: Trouble,
        rng: random.Random,
    ) -> None:
        self._victim, self._labels, self._shop = victim, labels, shop
        self._sender, self._senders = sender, senders
        self._traffic, self._trouble = traffic, trouble
        self._dsn = running_environment(victim.home)["ESL_DATABASE_URL"]
        self._handovers = Handovers(victim.home, rng)
        self._unrest = Unrest(self._dsn, victim.receiver, shop, senders, rng)

    def run(self, minutes: float, seed: int, rate: float, pause: float) -> Report:
        self._first_fill()
        began = time.monotonic()
        stop = threading.Event()
        self._sender.switches = TRICKS
        with ThreadPoolExecutor(1) as pool, self._handovers:
            stream = pool.submit(self._stream, rate, stop)
            try:
                for done in self._trouble.make(began + minutes * 60, pause):
                    self._say(began, done)
                    self._say(began, self._unrest.stir())
                self._handovers.wait_for_kill(_HANDOVER_SECONDS)
            finally:
                stop.set()
        stream.result()
        seconds = time.monotonic() - began
        self._say(began, "no more faults")
        self._sender.switches = Switches()
        until_sound(self._victim)
        self._unrest.settle()
        assert self._sender.wait(RETRY_HOURS * 3600 + 60), self._sender.state(20)
        removed = self._sender.state(0)["removed"]
        drained = self._drain()
        told = self._wrong()
        self._say(began, f"drained after {drained:.0f} s, {len(told)} labels not told of")
        log = self._last_log()
        self._reconcile()
        self._say(began, "reconciled")
        report = Report()
        report.figures = {
            "minutes": round(seconds / 60, 1),
            "seed": seed,
            "changes": self._traffic.made.total(),
            "rate": self._traffic.made.total() / seconds,
            **self._events(),
            "subscriptions removed": ", ".join(removed) or 0,
            "kills": self._victim.kills.total(),
            **{f"  {kind}": n for kind, n in sorted(self._victim.kills.items())},
            "handovers": self._handovers.made,
            "killed in a handover": self._handovers.kills.total(),
            **{f"  the {which} run": n for which, n in sorted(self._handovers.kills.items())},
            "label-server faults": self._trouble.faults.total(),
            **{f"  {kind}": n for kind, n in sorted(self._trouble.faults.items())},
            "unrest": self._unrest.made.total(),
            **{f"  {kind}": n for kind, n in sorted(self._unrest.made.items())},
            **self._pushes(log),
            "not told by webhooks": len(told),
            "drained after": f"{drained:.0f} s",
        }
        self._judge(report, minutes)
        return report

    # --- the stages

    def _first_fill(self) -> None:
        map_shop(self._dsn)
        map_shop(self._dsn, hipoink_store_code=NORTHERN_STORE, label_server=NORTH)
        self._reconcile()
        assert not self._wrong(), "the labels are not right before anything was broken"

    def _stream(self, rate: float, stop: threading.Event) -> None:
        began = time.monotonic()
        while not stop.is_set():
            self._traffic.change()
            stop.wait(max(0.0, began + self._traffic.made.total() / rate - time.monotonic()))

    def _reconcile(self) -> None:
        """One full_reconciliation to its end, and all that follows from it."""
        eventually(self._partition, 60, "the sensor to add the shop's partition")
        # What changed in the second of the read is not concluded from it; the shop's clock is a little ahead.
        eventually(lambda: self._shop.now + timedelta(seconds=2) < real_time(), 30, "a quiet moment")
        webserver = Webserver(self._victim.ui)
        webserver.wait(self._launch(webserver), DRAIN_SECONDS)
        self._drain()

    def _launch(self, webserver: Webserver) -> str:
        """Start it; the webserver may answer once with an error after its Postgres was killed under it."""
        for _ in range(5):
            try:
                return webserver.launch("full_reconciliation", partition=f"shopify:{DOMAIN}")
            except httpx.HTTPStatusError as error:
                print(f"Dagster's webserver answered {error.response.status_code} to the launch", flush=True)
                time.sleep(2)
        raise AssertionError("Dagster's webserver does not launch a run")

    def _partition(self) -> bool:
        address = running_environment(self._victim.home)["ESL_DAGSTER_DATABASE_URL"]
        with psycopg.connect(address.replace("+psycopg2", "", 1)) as connection:
            return bool(connection.execute("select 1 from dynamic_partitions").fetchone())

    def _drain(self) -> float:
        """Wait until nothing is due, neither now nor after a pause; the seconds it took."""

        def is_drained() -> bool:
            self._victim.check()
            (row,) = self._sql(
                "select (select count(*) from esl.webhook_inbox where state in ('ready', 'leased'))"
                " + (select count(*) from esl.products where due)"
                " + (select count(*) from esl.sync_queue where state in ('ready', 'leased'))"
                " + (select count(*) from esl.refresh_marks where since is not null or lease_until is not null) as n"
            )
            return row["n"] == 0

        return eventually(is_drained, DRAIN_SECONDS, "inbox, variants and queue to drain")

    # --- the figures

    def _events(self) -> Row:
        """What was sent and what became of it. An event is lost when it was answered 2xx and is not in the inbox."""
        attempts = self._sender.attempts()
        delivered = [one for one in attempts if one.outcome == "delivered"]
        rows = self._sql(
            "select topic, webhook_id, body_sha256, state from esl.webhook_inbox"
            " where not starts_with(webhook_id, %s)",
            OURS,
        )
        kept = {row["webhook_id"] for row in rows}
        bodies = {(row["topic"], row["body_sha256"]) for row in rows}
        lost = [
            one.webhook_id
            for one in delivered
            if one.webhook_id not in kept
            and (one.topic, body_hash(self._senders.sent[one.webhook_id])) not in bodies
        ]
        unfit = [row["webhook_id"] for row in rows if row["state"] not in ("done", "superseded")]
        return {
            "events": len(self._senders.sent),
            "delivered": len({one.webhook_id for one in delivered}),
            "dropped": sum(one.outcome == "dropped" for one in attempts),
            "unsubscribed": sum(one.outcome == "unsubscribed" for one in attempts),
            "webhook retries": sum(one.outcome == "failed" for one in attempts),
            "duplicates absorbed": len(delivered) - len(rows),
            "superseded": sum(row["state"] == "superseded" for row in rows),
            "lost events": len(set(lost)),
            "unfinished events": len(unfit),
            "longest acknowledgement": f"{max((one.seconds for one in delivered), default=0):.2f} s",
        }

    def _pushes(self, before_reconciliation: int) -> Row:
        outcomes = self._sql(
            "select outcome, count(*) as n from esl.sync_log where kind = 'result' group by outcome"
        )
        by_outcome = {row["outcome"]: row["n"] for row in outcomes}
        (lag,) = self._sql(
            "select extract(epoch from max(at - received_at)) as longest,"
            " extract(epoch from percentile_cont(0.5) within group (order by at - received_at)) as median from ("
            " select min(r.at) as at, i.received_at from esl.sync_log r"
            " join lateral (select max(e) as newest from unnest(r.event_ids) e) x on true"
            " join esl.webhook_inbox i on i.id = x.newest"
            " where r.kind = 'result' and r.outcome = 'accepted' group by r.code, i.id, i.received_at) lags"
        )
        (corrected,) = self._sql(
            "select count(*) as n from esl.sync_log where kind = 'result' and outcome = 'accepted' and id > %s",
            before_reconciliation,
        )
        (stuck,) = self._sql("select count(*) as n from esl.sync_queue")
        return {
            "pushed labels": by_outcome.pop("accepted", 0),
            "retries of pushes": sum(by_outcome.values()),
            **{f"  {outcome}": n for outcome, n in sorted(by_outcome.items())},
            "corrections": corrected["n"],
            "median lag": f"{lag['median'] or 0:.1f} s",
            "longest lag": f"{lag['longest'] or 0:.1f} s",
            "left in the queue": stuck["n"],
            "audit holes": len(self._holes()),
        }

    def _holes(self) -> list[str]:
        return [hole for labels in self._labels for hole in self._holes_at(labels)]

    def _holes_at(self, labels: LabelServer) -> list[str]:
        """Changes at a label server of which no earlier intent of ours tells: none may be there."""
        state = labels.state()
        intents: dict[tuple[str, str], Any] = {}
        count: dict[str, int] = {}
        for row in self._sql(
            "select code, label, operation, at from esl.sync_log where kind = 'intent' and store_code = %s order by id",
            labels.store,
        ):
            shown = as_text(row["label"] if row["operation"] == "upsert" else None)
            intents.setdefault((row["code"], shown), row["at"])
            count[row["code"]] = count.get(row["code"], 0) + 1
        holes = [
            f"{labels.name} {code}: {entry['record']} at {entry['at']}"
            for code, entry in applied(state, labels.store)
            if (first := intents.get((code, as_text(entry["record"])))) is None
            or first > datetime.fromisoformat(entry["at"])
        ]
        # The client may try one call twice.
        calls = state["pushes"].get(labels.store, {})
        return holes + [
            f"{labels.name} {code}: {n} calls" for code, n in calls.items() if n > 2 * count.get(code, 0)
        ]

    def _wrong(self) -> list[Difference]:
        products = list(self._shop.products.values())
        return [one for labels in self._labels for one in labels.wrong(products)]

    def _not_shown(self) -> list[Difference]:
        products = list(self._shop.products.values())
        return [one for labels in self._labels for one in labels.not_shown(products)]

    def _last_log(self) -> int:
        (row,) = self._sql("select coalesce(max(id), 0) as n from esl.sync_log")
        return int(row["n"])

    def _judge(self, report: Report, minutes: float) -> None:
        figures = report.figures
        wrong = self._wrong()
        figures["wrong labels"] = len(wrong)
        report.problems += [f"wrong label: {one}" for one in wrong[:20]]
        not_shown = self._not_shown()
        figures["not shown"] = len(not_shown)
        report.problems += [f"not shown: {one}" for one in not_shown[:20]]
        for figure in ("lost events", "unfinished events", "audit holes", "left in the queue"):
            if figures[figure]:
                report.problems.append(f"{figure}: {figures[figure]}")
        report.problems += self._holes()[:20] + self._unrest.problems(self._labels[0])
        if not figures["killed in a handover"]:
            report.problems.append(f"no drain was killed in one of {figures['handovers']} handovers")
        if figures["kills"] < minutes:
            report.problems.append(f"only {figures['kills']} kills in {minutes:g} minutes")

    def _sql(self, query: str, *values: Any) -> list[Row]:
        with psycopg.connect(self._dsn, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def _say(self, began: float, what: str) -> None:
        sent = self._sender.state(0)
        print(
            f"{time.monotonic() - began:7.1f} s  {what}  ({sent['sent']} sent, {sent['pending']} under way)",
            flush=True,
        )


def main(
    minutes: Annotated[float, typer.Argument(help="How long faults are made.")] = 20,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same faults and changes.")] = None,
    rate: Annotated[float, typer.Option(help="Changes of the shop a second.")] = RATE,
    pause: Annotated[float, typer.Option(help="Seconds between two faults, about.")] = PAUSE,
) -> None:
    """Run the soak and print what happened."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    print(f"soak of {minutes:g} minutes, seed {seed}", flush=True)
    with scratch_home("esl-soak-") as home:
        report = soak(minutes, seed, rate=rate, pause=pause, home=home)
        for name, figure in report.figures.items():
            print(f"{name:<34}{figure if not isinstance(figure, float) else round(figure, 1)}")
        for problem in report.problems:
            print(f"PROBLEM: {problem}")
        print(report.summary())
        if report.problems:
            print(f"logs in {home}")
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
