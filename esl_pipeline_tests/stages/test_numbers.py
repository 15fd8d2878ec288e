"""Numbers: what a world that has lived says of itself, in /metrics, in `stats` and in the dashboard; and the cost."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from rich.console import Console

import esl_pipeline
from esl_pipeline.commands.shared import CommandError
from esl_pipeline.commands.stats import print_stats, since_when, summary
from esl_pipeline.model.numbers import Measure, Spread
from esl_pipeline.stages.drain import read_round
from esl_pipeline.stages.drift import compare_store
from esl_pipeline_tests.receiver.support import TOKEN, call, make_app
from esl_pipeline_tests.world import SHOP, STORE, World, product, variant

DASHBOARD = Path(esl_pipeline.__file__).parents[1] / "deploy" / "grafana" / "esl-pipeline.json"
ASKED = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/openmetrics-text; version=1.0.0"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(world: World) -> Samples:
    """Every sample of the OpenMetrics answer, counted at this moment."""
    world.sql("delete from esl.number_answers")
    answer = call(make_app(world.buffer), "GET", "/metrics", headers=ASKED)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


# What


def lived(world: World) -> None:
    """A day in little: a first fill, a rise, a cut, news without anything new, a refusal, an outage, drift, a bad
    variant, and a wrong signature."""
    world.map()
    world.settle(product(1), product(2), product(3))
    world.settle(product(1, version=2, variants=[variant(1, price="2.00")]))
    world.settle(product(2, version=2, variants=[variant(2, price="0.50")]))
    world.settle(product(3, version=2))
    world.settle(product(4, version=2, variants=[variant(4, code=None, sku=None)]))
    world.buffer.accuracy()
    series = {"refused": 5, "since": "2026-11-28T10:00:00+00:00", "last_at": "2026-11-28T10:01:00+00:00"}
    told = {"source_system": "shopify", "source_store_id": SHOP, **series}
    world.buffer.refusals_note(receiver="r", refused=[told])
    world.buffer.refusals_note(receiver="r", refused=[told])
    world.buffer.refusals_note(receiver="r", refused=[told | {"refused": 7}])


def test_a_world_is_told_in_numbers(world: World) -> None:
    lived(world)
    samples = scraped(world)
    shop, default = f"shopify:{SHOP}", "default"

    pushed = value(samples, "esl_pushes_total", store=STORE, label_server=default, outcome="accepted")
    assert pushed == 5
    assert (
        value(samples, "esl_label_server_call_seconds_count", label_server=default, outcome="accepted") == 3
    )
    accepted = {
        change: value(samples, "esl_webhook_accepted_seconds_count", store=STORE, change=change)
        for change in ("rise", "other")
    }
    assert accepted == {"rise": 1, "other": 4}
    longest = value(samples, "esl_webhook_accepted_seconds_bucket", store=STORE, change="other", le="+Inf")
    assert longest == 4
    assert 0 < value(samples, "esl_webhook_accepted_seconds_sum", store=STORE, change="rise") < 60
    for direction in ("over", "under"):
        assert value(samples, "esl_wrong_prices_total", store=STORE, direction=direction) == 1
        assert 0 < value(samples, "esl_wrong_price_seconds_total", store=STORE, direction=direction) < 60
    assert value(samples, "esl_pushes_avoided_total", store=STORE, reason="same_product") == 1
    assert value(samples, "esl_labels_publishable", store=STORE, shop=shop) == 3
    assert value(samples, "esl_labels_accurate", store=STORE, shop=shop) == 3
    assert value(samples, "esl_labels_held_back", store=STORE, shop=shop) == 1
    assert value(samples, "esl_label_server_up", label_server=default) == 1
    assert value(samples, "esl_drain_alive", label_server=default) == 0
    assert value(samples, "esl_inbox_deliveries", shop=shop) == 0
    assert value(samples, "esl_deliveries_total", shop=shop, outcome="done") == 7
    assert value(samples, "esl_refused_signatures_total", shop=shop) == 7


def troubled(world: World) -> None:
    """What else has a metric: an outage, a store that pauses, labels that wait, drift, a comparison."""
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/C-1", json={"pp": "0.01"}).raise_for_status()
    compare_store(world.buffer, world.client, store=STORE, run_id="r")
    world.settle()
    world.sandbox.faults({"action": "create_multiple", "kind": "status", "status": 500, "times": 99})
    world.update(product(1, version=9, variants=[variant(1, price="9.00")]))
    world.round()
    world.sql("update esl.store_health set until = now() + interval '1 hour', pauses = 1")


@pytest.mark.long
def test_drift_outages_and_pauses_are_told(world: World) -> None:
    lived(world)
    troubled(world)
    samples = scraped(world)
    assert value(samples, "esl_drift_total", store=STORE, kind="different") == 1
    assert value(samples, "esl_comparison_complete", store=STORE) == 1
    assert time.time() - value(samples, "esl_comparison_timestamp_seconds", store=STORE) < 120
    failed = value(samples, "esl_pushes_total", store=STORE, label_server="default", outcome="unknown")
    calls = value(samples, "esl_label_server_call_seconds_count", label_server="default", outcome="unknown")
    assert failed == calls >= 1
    assert value(samples, "esl_store_paused", store=STORE) == 1
    assert value(samples, "esl_wrong_price_labels", store=STORE, direction="over") == 1


@pytest.mark.long
def test_every_name_and_label_of_the_dashboard_is_in_the_real_answer(world: World) -> None:
    lived(world)
    troubled(world)
    real: dict[str, set[str]] = {}
    for name, labels in scraped(world):
        real.setdefault(name, set()).update(label for label, _ in labels)
    queries = list(queries_of(json.loads(DASHBOARD.read_text())))
    assert len(queries) > 30
    named = set[str]()
    for query in queries:
        for name, matchers in re.findall(r"\b(esl_\w+)(?:\{([^}]*)\})?", query):
            named.add(name)
            assert name in real, query
            wanted = {label for label, _ in re.findall(r"(\w+)\s*(=~|!=|=)\s*\"", matchers)}
            assert wanted <= real[name], query
        for grouped in re.findall(r"(?:by|on) \(([^)]*)\)", query):
            names = re.findall(r"\besl_\w+", query)
            assert set(grouped.split(", ")) <= set().union(*(real[name] for name in names)), query
    # Said by others of the dashboard in another way.
    families = {
        re.sub("_(total|bucket|count|sum|created)$", "", name) for name in real if name.startswith("esl_")
    }
    shown = {re.sub("_(total|bucket|count|sum)$", "", name) for name in named}
    assert families - shown == {"esl_wrong_prices", "esl_wrong_price_open_seconds", "esl_queue_rises"}


def queries_of(part: Any) -> Any:
    """Every PromQL text of a dashboard."""
    if isinstance(part, dict):
        for key, inner in part.items():
            if key in ("expr", "definition"):
                yield inner
            else:
                yield from queries_of(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from queries_of(inner)


@pytest.mark.long
def test_no_series_is_labelled_by_a_code(world: World) -> None:
    lived(world)
    labels = {name for _, named in scraped(world) for name, _ in named}
    assert labels == {
        "store",
        "shop",
        "label_server",
        "outcome",
        "change",
        "direction",
        "reason",
        "state",
        "le",
    } - {
        "state"  # nothing waits
    }


def test_what_waits_is_told_with_its_age_and_what_the_shelf_shows_wrong(world: World) -> None:
    world.map()
    world.settle(product(1), product(2))
    world.update(product(1, version=2, variants=[variant(1, price="2.00")]))
    world.update(product(2, version=2, variants=[variant(2, price="0.50")]))
    samples = scraped(world)
    assert value(samples, "esl_inbox_deliveries", shop=f"shopify:{SHOP}") == 2
    assert 0 <= value(samples, "esl_inbox_oldest_seconds", shop=f"shopify:{SHOP}") < 60
    read_round(world.buffer, run_id="r")
    samples = scraped(world)
    assert value(samples, "esl_queue_labels", store=STORE, state="ready") == 2
    assert value(samples, "esl_queue_rises", store=STORE, state="ready") == 1
    assert value(samples, "esl_queue_oldest_rise_seconds", store=STORE, state="ready") >= 0
    for direction in ("over", "under"):
        assert value(samples, "esl_wrong_price_labels", store=STORE, direction=direction) == 1


def test_a_rise_that_waits_for_its_window_shows_nothing_wrong(world: World) -> None:
    mapping = world.map(settings={"raise_window": closed_window()})
    world.settle(product(1))
    world.update(product(1, version=2, variants=[variant(1, price="2.00")]))
    read_round(world.buffer, run_id="r")
    samples = scraped(world)
    assert value(samples, "esl_queue_labels", store=STORE, state="window") == 1
    assert not [name for name, _ in samples if name == "esl_wrong_price_labels"]
    # The window opens: late is what is late after that.
    world.sql("update esl.sync_queue set created_at = now() - interval '10 hours'")
    world.buffer.mapping_update(mapping, {"settings": {"raise_window": closed_window(hours=-1)}})
    world.settle()
    samples = scraped(world)
    late = value(samples, "esl_wrong_price_seconds_total", store=STORE, direction="over")
    assert 3_600 - 90 <= late <= 2 * 3_600


def closed_window(hours: int = 2) -> dict[str, Any]:
    """A window that opens at the full hour so many hours from now, and is open for six."""
    now = time.gmtime(time.time() + hours * 3_600)
    return {"opens": f"{now.tm_hour:02}:00", "closes": f"{(now.tm_hour + 6) % 24:02}:00", "time_zone": "UTC"}


# What it costs


def test_it_is_counted_once_for_all_who_ask_at_a_time(world: World) -> None:
    world.map()
    first = world.buffer.numbers(seconds=0)
    world.sql("update esl.number_answers set took = 0")
    world.settle(product(1))
    assert world.buffer.numbers(seconds=60) == first
    assert world.buffer.numbers(seconds=0) != first


def test_what_took_long_to_count_is_kept_for_longer(world: World) -> None:
    first = world.buffer.numbers(seconds=0)
    world.sql("update esl.number_answers set took = 1")
    world.map()
    assert world.buffer.numbers(seconds=0) == first
    world.sql("update esl.number_answers set at = at - interval '21 seconds'")
    assert world.buffer.numbers(seconds=0) != first


def test_while_another_counts_the_answer_before_is_told(world: World) -> None:
    first = world.buffer.numbers(seconds=0)
    world.sql("update esl.number_answers set took = 0")
    world.map()
    with psycopg.connect(world.dsn) as other:
        other.execute("select pg_advisory_xact_lock(hashtextextended('esl.numbers', 0))")
        assert world.buffer.numbers(seconds=0) == first
    assert world.buffer.numbers(seconds=0) != first


# For people


def test_what_a_policy_changes_is_no_news_of_a_webhook_that_came_before(world: World) -> None:
    mapping = world.map()
    world.settle(product(1), product(2))
    world.settle(product(1, version=2, vendor="which is on no label"))
    world.sql(
        "update esl.webhook_inbox set received_at = received_at - interval '1 day',"
        " finished_at = finished_at - interval '1 day'"
    )
    world.buffer.mapping_update(mapping, {"settings": {"title_template": "{title}!"}})
    world.settle()
    assert {label["pn"] for label in world.labels().values()} == {"Product 1!", "Product 2!"}
    (accepted,) = world.buffer.stats(since=datetime.now(UTC)).named("accepted")
    assert accepted.n == 2


def test_the_stats_of_a_world(world: World) -> None:
    lived(world)
    world.settle(product(1, version=5, variants=[variant(1, price="1.00")]))
    world.sql("delete from esl.number_answers")
    buffer = world.buffer
    told = summary(buffer.stats(since=datetime.now(UTC) - timedelta(days=1)), buffer.numbers())
    (store,) = told["stores"]
    assert (store["store"], store["shops"]) == (STORE, [f"shopify:{SHOP}"])
    assert store["pushes"] == {"accepted": 6}
    assert store["pushes_avoided"]["same_product"] == 1
    assert {kind: spread["n"] for kind, spread in store["webhook_to_accepted"].items()} == {
        "rise": 1,
        "other": 5,
    }
    assert 0 < store["webhook_to_accepted"]["other"]["p95_seconds"] < 60
    assert store["wrong_prices"]["under"]["labels"] == 2
    assert (store["accuracy"], store["held_back"]) == (1, 1)
    assert told["refused_signatures"] == {f"shopify:{SHOP}": 7}
    most = told["changing"][0]
    assert (most["code"], most["pushes"], most["contents"], most["title"]) == ("C-1", 3, 2, "Product 1")
    (server,) = told["label_servers"]
    assert server["calls"] == {"accepted": 4}
    assert (
        summary(buffer.stats(since=datetime.now(UTC), store="elsewhere"), buffer.numbers(), "elsewhere")[
            "stores"
        ]
        == []
    )


def test_stats_are_short_lines(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    lived(world)
    troubled(world)
    buffer = world.buffer
    print_stats(Console(width=80), summary(buffer.stats(since=datetime.now(UTC)), buffer.numbers()))
    said = capsys.readouterr().out
    print(said)
    assert "price rises     1: accepted after p50" in said
    assert max(map(len, said.splitlines())) <= 100


def test_hours_are_kept_for_five_weeks_and_totals_for_ever(world: World) -> None:
    world.map()
    world.settle(product(1))
    world.sql("update esl.measures set hour = hour - interval '36 days' where hour > '-infinity'")
    world.buffer.housekeep(keep_bodies_days=30, keep_deliveries_days=365, limit=2)
    while world.buffer.housekeep(keep_bodies_days=30, keep_deliveries_days=365, limit=2)["more"]:
        pass
    assert {row["hour"] for row in world.sql("select hour::text from esl.measures")} == {"-infinity"}


@pytest.mark.parametrize("wrong", ["", "7", "7y", "yesterday", "2999-01-01", "36d", "2020-01-01"])
def test_a_time_that_is_none_is_refused_in_a_sentence(wrong: str) -> None:
    with pytest.raises(CommandError, match="--since"):
        since_when(wrong, datetime.now(UTC))


def test_quantiles_lie_between_the_bounds() -> None:
    spread = Spread.of(
        [Measure("x", "s", "", "", 4, 7.0, (1, 2, 0, 1)), Measure("x", "s", "", "", 1)], (1, 2, 4)
    )
    assert (spread.n, spread.total) == (4, 7.0)
    assert spread.up_to == [("1", 1), ("2", 3), ("4", 3), ("+Inf", 4)]
    assert [spread.quantile(share) for share in (0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 4]
    assert Spread.of([], (1, 2)).quantile(0.5) is None
