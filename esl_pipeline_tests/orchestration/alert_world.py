"""What alerts are about, provoked for real: the sensor's rounds, and the trouble and its end for each kind."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from esl_pipeline.orchestration import runless
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.receiver.refusals import Refusals
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.alerts.listener import Listener
from esl_pipeline_tests.hipoink.servers import client_of
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import KEY, SHOP, STORE, arrive, product
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import RULES, drain_round

OURS = {"source_system": "shopify", "source_store_id": SHOP}


@dataclass
class Watch:
    """The alert sensor, round after round, and what a listener hears of it."""

    pipeline: Pipeline
    listener: Listener
    cursor: str | None = None
    asks_instance: bool = True
    ticks: list[dg.SensorResult] = field(default_factory=list)

    def tick(self) -> dg.SensorResult:
        """One tick of the sensor, which asks Dagster's instance every time, or as seldom as it does."""
        sensor = self.pipeline.definitions.resolve_sensor_def("alert_sensor")
        if self.asks_instance and self.cursor:
            self.cursor = json.dumps(json.loads(self.cursor) | {"instance_at": 0})
        with dg.build_sensor_context(
            instance=self.pipeline.instance, definitions=self.pipeline.definitions, cursor=self.cursor
        ) as context:
            result = sensor(context, buffer=self.pipeline.buffer, sources=Sources(load_settings()))
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        self.ticks.append(result)
        return result

    def wait(self, seconds: float = 3600) -> None:
        """What the passing of time does to alerts."""
        back = f"interval '{seconds} s'"
        self.pipeline.sql(f"update esl.alerts set seen_at = seen_at - {back}, gone_at = gone_at - {back}")
        self.pipeline.sql(
            f"update esl.alert_deliveries set next_at = next_at - {back}, lease_until = lease_until - {back}"
        )

    def settle(self) -> list[tuple[str, str]]:
        """Enough rounds and time for what has begun or ended to be told, and one more; all that was told so far."""
        for _ in range(3):
            self.tick()
            self.wait()
        return self.listener.events()

    # What happens to labels

    def drain(self, *, sign: str | None = None, **rules: Any) -> None:
        """Push until nothing is due, as a drain does."""
        signed = {"sign": sign} if sign else {}
        with client_of(self.pipeline.sandbox.url, retries=1, **signed) as client:
            drain_round(self.pipeline.buffer, client, replace(RULES, **rules))

    def drain_until(self, sql: str, **how: Any) -> None:
        """Until the buffer has a row of this."""

        def done() -> bool:
            self.drain(**how)
            return bool(self.pipeline.rows(sql))

        eventually(done, 20, sql)

    def labels(self, count: int, first: int = 1, **fields: Any) -> None:
        """Products arrive, whose labels are to be written."""
        arrive(self.pipeline.buffer, *(product(n, **fields) for n in range(first, first + count)))


@dataclass(frozen=True)
class Trouble:
    """How a kind of alert is provoked, and how it is mended. says: what its reader is told, among more. labels: how
    many it is about."""

    kind: str
    begin: Callable[[Watch], None]
    end: Callable[[Watch], None]
    says: str
    labels: int = 0
    subject: str = STORE
    severity: str = "warning"


def _server_fails(w: Watch) -> None:
    w.labels(3)
    w.pipeline.sandbox.faults({"kind": "status", "status": 503})
    w.drain_until("select from esl.label_servers where down_since is not null")


def _server_answers(w: Watch) -> None:
    w.pipeline.sandbox.faults()
    w.drain_until("select from esl.label_servers where down_since is null")


def _wrong_sign(w: Watch) -> None:
    w.labels(2)
    w.drain_until("select from esl.store_health where pauses > 0", sign="wrong", pause=60)


def _right_sign(w: Watch) -> None:
    w.pipeline.sql("update esl.store_health set until = now()")
    w.drain_until("select from esl.store_health where pauses = 0")


def _twelve_refused(w: Watch) -> None:
    w.labels(14, first=100)  # the first of them is written
    w.pipeline.sandbox.faults({"kind": "bad_codes", "codes": [f"C-{n}" for n in range(101, 113)]})
    w.drain_until("select from esl.sync_queue where state = 'failed' having count(*) = 12")


def _repaired(w: Watch) -> None:
    w.pipeline.sandbox.faults()
    w.pipeline.buffer.redrive()
    w.drain_until("select from esl.sync_queue having count(*) = 0")


def _rise_waits(w: Watch) -> None:
    w.labels(2)
    w.drain()
    w.labels(2, price="1.70")
    w.pipeline.materialize("shopify_products")
    w.pipeline.materialize("validated_variants")
    w.pipeline.sql("update esl.sync_queue set created_at = now() - interval '10 minutes'")


def _label_waits(w: Watch) -> None:
    w.labels(2)
    w.pipeline.materialize("shopify_products")
    w.pipeline.materialize("validated_variants")
    w.pipeline.sql("update esl.sync_queue set created_at = now() - interval '20 minutes'")


def _drained(w: Watch) -> None:
    w.drain_until("select from esl.sync_queue having count(*) = 0")


def _too_much_at_once(w: Watch) -> None:
    w.labels(20)
    w.drain()
    w.labels(20, price="150.00")
    w.drain()
    assert w.pipeline.rows("select from esl.sync_queue where state = 'guarded' having count(*) > 0")


def _approved(w: Watch) -> None:
    w.pipeline.buffer.changes_approve(store=STORE, by="ana")
    w.drain_until("select from esl.sync_queue having count(*) = 0")


def _bad_settings(w: Watch) -> None:
    w.pipeline.sql("update esl.store_mappings set problem = 'raise_window: opens must be a time'")


def _good_settings(w: Watch) -> None:
    w.pipeline.sql("update esl.store_mappings set problem = null")


def _moved_away(w: Watch) -> None:
    w.pipeline.sql("insert into esl.stores (store_code, label_server) values ('S1', 'north')")


def _moved_back(w: Watch) -> None:
    w.pipeline.sql("delete from esl.stores")


def _uninstalled(w: Watch) -> None:
    w.pipeline.sql(
        f"select esl.switch_off('shopify', '{SHOP}', 'app/uninstalled', 'app/uninstalled of 2026-03-01')"
    )


def _switched_on(w: Watch) -> None:
    (mapping,) = w.pipeline.buffer.mapping_list()
    w.pipeline.buffer.mapping_update(mapping["id"], {"is_active": True}, by="ana")


def _disconnected(w: Watch) -> None:
    w.pipeline.buffer.connection_set(OURS, "toml", "ana")
    w.pipeline.buffer.connection_end(OURS, "ana")


def _connected(w: Watch) -> None:
    w.pipeline.buffer.connection_set(OURS, "toml", "ana")


def _five_wrong_signatures(w: Watch) -> None:
    refusals = Refusals()
    asyncio.run(refusals.tell(w.pipeline.buffer))
    for _ in range(5):
        refusals.refused("shopify", SHOP, datetime.now(UTC))
    asyncio.run(refusals.tell(w.pipeline.buffer))


def _a_good_one(w: Watch) -> None:
    w.labels(1)
    w.drain()


def _no_word(w: Watch) -> None:
    w.labels(1)
    w.drain()
    w.pipeline.sql("update esl.shop_deliveries set last_received_at = now() - interval '2 days'")


def _webhook_waits(w: Watch) -> None:
    w.labels(2)
    w.pipeline.sql("update esl.webhook_inbox set received_at = now() - interval '20 minutes'")


def _odd_bodies(w: Watch) -> None:
    from esl_pipeline_tests.world import kept

    odd = [
        kept("products/update", product(n)) | {"state": "unusable", "reason": "no product"} for n in (1, 2)
    ]
    w.pipeline.buffer.inbox_add(odd)


def _an_hour_later(w: Watch) -> None:
    w.pipeline.sql("update esl.webhook_inbox set finished_at = finished_at - interval '61 minutes'")


def _given_up(w: Watch) -> None:
    w.labels(1)
    w.pipeline.sql(
        "update esl.webhook_inbox set state = 'dead', finished_at = now(), reason = 'it was too much'"
    )


def _redriven(w: Watch) -> None:
    w.pipeline.buffer.redrive()
    w.drain()


def _paused(w: Watch) -> None:
    w.labels(2)
    w.pipeline.materialize("shopify_products")
    w.pipeline.materialize("validated_variants")
    w.pipeline.sql(
        "create table if not exists esl.store_pauses (store_code text, reason text, by text, since timestamptz,"
        " until timestamptz, ended_at timestamptz)"
    )
    w.pipeline.sql(
        "insert into esl.store_pauses (store_code, reason, by, since, until)"
        " values ('S1', 'stock taking', 'ana', now() - interval '1 hour', '2999-01-01T06:00Z')"
    )


def _resumed(w: Watch) -> None:
    w.pipeline.sql("update esl.store_pauses set ended_at = now()")
    w.drain()


def _check_says(passed: bool) -> Callable[[Watch], None]:
    def say(w: Watch) -> None:
        runless.report(
            w.pipeline.instance,
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("validated_variants"),
                check_name="codes_are_unique",
                passed=passed,
                severity=dg.AssetCheckSeverity.WARN,
                description="3 variants share their code with another",
                partition=KEY,
            ),
        )

    return say


def _cannot_be_read(w: Watch) -> None:
    runless.report(w.pipeline.instance, _reading(passed=False))


def _can_be_read(w: Watch) -> None:
    runless.report(w.pipeline.instance, _reading(passed=True))


def _reading(*, passed: bool) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("shopify_products"),
        check_name="shop_is_read",
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description="cannot be read: the token was refused",
        partition=KEY,
    )


def _run_fails(w: Watch) -> None:
    w.pipeline.sql("alter table esl.leases rename to hidden")
    assert not w.pipeline.drain(raise_on_error=False).success
    w.pipeline.sql("alter table esl.hidden rename to leases")


def _run_goes_well(w: Watch) -> None:
    assert w.pipeline.drain().success


def cron_before(minutes: int) -> str:
    """A time of every day that was so long ago, in UTC."""
    at = datetime.now(UTC) - timedelta(minutes=minutes)
    return f"{at.minute} {at.hour} * * *"


TROUBLES = [
    Trouble("server_down", _server_fails, _server_answers, "The label server is down: ", 3, "default", "critical"),
    Trouble("store_refused", _wrong_sign, _right_sign, "refuses everything of store S1", 2, severity="critical"),
    Trouble("store_paused", _paused, _resumed, "S1 is paused until 2999-01-01 06:00Z: by ana: stock taking", 2,
            severity="info"),
    Trouble("labels_refused", _twelve_refused, _repaired, "12 labels refused or given up", 12),
    Trouble("rises_overdue", _rise_waits, _drained, "2 labels too low", 2, severity="critical"),
    Trouble("backlog", _label_waits, _drained, "have waited for more than 15 minutes. 2 labels wait", 2),
    Trouble("approval_waiting", _too_much_at_once, _approved, "Drastic changes wait", 20),
    Trouble("settings_unusable", _bad_settings, _good_settings, "opens must be a time", 0, f"S1 of {KEY}"),
    Trouble("server_unknown", _moved_away, _moved_back, "no label server north", 0, "north", "critical"),
    Trouble("switched_off", _uninstalled, _switched_on, "was switched off by a message", 0, KEY, "critical"),
    Trouble("connection_ended", _disconnected, _connected, "was ended", 0, KEY),
    Trouble("signatures_refused", _five_wrong_signatures, _a_good_one, "5 webhooks that name shop corner-", 0, KEY),
    Trouble("silent", _no_word, _a_good_one, "no webhook for longer", 0, KEY),
    Trouble("deliveries_late", _webhook_waits, _a_good_one, "2 webhooks of shop", 0, KEY),
    Trouble("deliveries_unusable", _odd_bodies, _an_hour_later, "could not be used in the last hour: no p", 0, KEY),
    Trouble("deliveries_dead", _given_up, _redriven, "were given up: it was too much", 0, KEY),
    Trouble("check_failed", _check_says(False), _check_says(True), "codes_are_unique fails: 3 variants", 0,
            f"codes_are_unique {KEY}"),
    Trouble("shop_unread", _cannot_be_read, _can_be_read, "the token was refused", 0, KEY),
    Trouble("run_failed", _run_fails, _run_goes_well, "A run of event_sync failed", 0, "event_sync"),
]  # fmt: skip
