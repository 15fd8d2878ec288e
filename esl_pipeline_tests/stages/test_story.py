"""Why a label shows what it shows: from labels back to their webhooks and forward, and at any second of a week."""

import random
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.hipoink.devices import Devices
from esl_pipeline.model.holdings import moment
from esl_pipeline.model.story import Holding, Story
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.stages.devices import read_devices
from esl_pipeline.stages.drift import compare_store
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.world import RULES, RUN, STORE, World, level, product, variant

Row = Mapping[str, Any]


def story_of(world: World, code: str, at: datetime | None = None) -> Story:
    found = world.buffer.story(store=STORE, code=code, at=at)
    assert found is not None
    return found


def priced(price: str, version: int, *numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [product(n, version, [variant(n, price=price)], **fields) for n in numbers]


def edit(world: World, code: str, **fields: str) -> None:
    """Change a label at the label server behind everybody's back."""
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/{code}", json=fields).raise_for_status()


def repair(world: World, run_id: str = "night-1") -> None:
    compare_store(world.buffer, world.client, store=STORE, run_id=run_id)
    world.settle()


# Causes


def causes(world: World, code: str) -> list[str | None]:
    """Of all pushes of a code, oldest first; the results say the same as their intents."""
    rows = world.sql("select kind, cause, push_id from esl.sync_log where code = %s order by id", code)
    by_push = {row["push_id"]: row["cause"] for row in rows if row["kind"] == "intent"}
    assert all(by_push[row["push_id"]] == row["cause"] for row in rows)
    return list(by_push.values())


def test_each_push_says_why_it_was_made(world: World) -> None:
    mapping = world.map()
    world.settle(*priced("1.00", 1, 1, 2))
    world.settle(*priced("2.00", 2, 1))
    world.buffer.mapping_update(mapping, {"settings": {"title_template": "{title}!"}}, by="ana")
    world.settle()
    edit(world, "C-1", pp="9.99")
    repair(world)
    assert causes(world, "C-1") == ["new version", "new version", "policy", "drift"]
    assert causes(world, "C-2") == ["new version", "policy"]

    story = story_of(world, "C-1")
    kinds = ["accepted", "drift", "accepted", "policy", "accepted", "accepted", "policy"]
    assert [entry.kind for entry in story.entries] == kinds
    assert story.entries[0].because == (
        f"because it was put right: at {moment(story.entries[1].at)} the label server had 9.99; it should say 2.00"
    )
    assert (
        story.sentence.startswith("C-1 in store S1: 2.00 accepted since ")
        and "; before: 9.99" in story.sentence
    )


def test_what_is_sent_again_says_so_and_keeps_its_webhook(world: World) -> None:
    world.map()
    world.sandbox.faults({"kind": "bad_codes", "codes": ["C-1"], "error_msg": "no"})
    world.settle(*priced("1.00", 1, 1, 2), max_refusals=1)
    world.sandbox.faults()
    assert world.queue()["C-1"]["state"] == "failed"
    world.buffer.redrive(code="C-1")
    world.settle()
    assert causes(world, "C-1")[-1] == "redrive"
    entry = story_of(world, "C-1").entries[0]
    assert entry.because == (
        "because somebody had it sent again (redrive) "
        f"(its words are from webhook {entry.webhook_id} (products/update))"
    )


def test_a_newer_version_in_the_queue_is_the_cause_of_its_push(world: World) -> None:
    """What was queued for a policy and then superseded by the shop's word is told as that word."""
    mapping = world.map()
    world.settle(*priced("1.00", 1, 1))
    world.sandbox.faults({"kind": "status", "status": 503})
    world.buffer.mapping_update(mapping, {"settings": {"title_template": "{title}!"}}, by="ana")
    world.round()
    assert world.queue()["C-1"]["cause"] == "policy"
    world.update(*priced("2.00", 2, 1))
    world.round()
    assert world.queue()["C-1"]["cause"] == "new version"
    world.sandbox.faults()
    world.settle()
    assert causes(world, "C-1")[-1] == "new version"


def test_the_first_label_of_a_new_mapping_is_a_first_fill(world: World) -> None:
    world.map()
    world.settle(*priced("1.00", 1, 1))
    world.map(store="S2")
    world.settle()
    rows = world.sql("select distinct store_code, cause from esl.sync_log order by 1")
    assert [(row["store_code"], row["cause"]) for row in rows] == [
        ("S1", "new version"),
        ("S2", "first fill"),
    ]


def test_a_code_that_passes_to_another_variant_says_so(world: World) -> None:
    world.map(settings={"duplicate_rule": "lowest_id"})
    world.settle(product(1, 1, [variant(1, code="X", price="1.00")]))
    world.settle(product(2, 1, [variant(2, code="X", price="2.00")]))
    world.delete(1, 2)
    world.settle()
    assert world.prices()["X"] == "2.00" and causes(world, "X")[-1] == "other variant"


def test_stock_on_a_label_leads_back_to_its_webhook(world: World) -> None:
    world.map(settings={"stock_field": "kc", "location_id": "77"})
    world.settle(*priced("1.00", 1, 1))
    world.stock(level(1, 7, version=2))
    world.settle()
    entry = story_of(world, "C-1").entries[0]
    assert entry.cause == "new version" and entry.webhooks[0].topic == "inventory_levels/update"
    assert entry.webhook_id is not None
    (found,) = world.buffer.trace_find(entry.webhook_id)["webhooks"]
    assert [push["push_id"] for push in found["pushes"]] == [entry.push_id]


def test_an_approved_change_names_who_approved(world: World) -> None:
    world.map(settings={"guard_labels": 0, "guard_share_pct": 0})
    world.settle(*priced("1.00", 1, 1))
    world.update(*priced("9.00", 2, 1))
    world.round()
    assert world.queue()["C-1"]["state"] == "guarded"
    assert "waiting for approval" in (story_of(world, "C-1").waits or "")
    world.buffer.changes_approve(store=STORE, by="ana")
    world.settle()
    entry = story_of(world, "C-1").entries[0]
    assert (entry.cause, entry.by, entry.price) == ("approval", "ana", "9.00")


# There and back


@pytest.mark.long
def test_from_50_labels_back_to_their_webhooks_and_forward_again(world: World) -> None:
    rng = random.Random(16)
    numbers = range(1, 61)
    mapping = world.map()
    sent: dict[str, dict[str, str]] = {}  # webhook id -> code -> price

    def deliver(version: int, *groups: Sequence[int]) -> None:
        for group in groups:
            body = product(
                group[0], version, [variant(n, price=f"{version}.{rng.randrange(10, 100)}") for n in group]
            )
            world.update(body)
            (row,) = world.sql("select webhook_id from esl.webhook_inbox order by id desc limit 1")
            sent[row["webhook_id"]] = {v["barcode"]: v["price"] for v in body["variants"]}
        world.settle()

    groups = [numbers[n : n + 3] for n in range(0, 60, 3)]
    deliver(1, *groups)
    deliver(2, *rng.sample(groups, 12))
    world.buffer.mapping_update(mapping, {"settings": {"title_template": "{title} neu"}}, by="ana")
    world.settle()
    for n in rng.sample(numbers, 8):
        edit(world, f"C-{n}", pp="0.11")
    repair(world)
    deliver(3, *rng.sample(groups, 12))

    labels = rng.sample([f"C-{n}" for n in numbers], 50)
    forward: dict[str, set[str]] = {}
    seen = set()
    for code in labels:
        story = story_of(world, code)
        assert story.price == world.prices()[code]
        pushes = [entry for entry in story.entries if entry.push_id]
        assert len(pushes) == len(world.outcomes(code)), "all of them"
        for entry in pushes:
            seen.add(entry.cause)
            if entry.cause == "new version":
                assert entry.webhook_id and entry.price == sent[entry.webhook_id][code]
                assert [step.name for step in entry.steps][:5] == [
                    "received",
                    "read",
                    "queued",
                    "sent",
                    "accepted",
                ]
                assert all((step.after or 0) >= 0 for step in entry.steps)
                forward.setdefault(entry.webhook_id, set()).add(str(entry.push_id))
            elif entry.cause == "policy":
                assert entry.by == "ana" and "title_template - → {title} neu" in str(entry.because)
            else:
                assert entry.cause == "drift" and "had 0.11; it should say" in str(entry.because)
    assert seen == {"new version", "policy", "drift"}
    for webhook_id, pushes_of in forward.items():
        (webhook,) = world.buffer.trace_find(webhook_id, limit=100)["webhooks"]
        told = [push for push in webhook["pushes"] if push["cause"] == "new version"]
        assert {push["code"]: push["price"] for push in told} == sent[webhook_id]
        assert pushes_of <= {push["push_id"] for push in told}


def test_every_kind_of_name_leads_to_its_labels(world: World) -> None:
    world.map()
    world.settle(*priced("1.00", 1, 1, 2))
    edit(world, "C-2", pp="5.55")
    repair(world, "night-7")
    (device,) = world.sandbox.hang(STORE, products=["C-1"])
    read_devices(world.buffer, Devices(world.client), store=STORE, run_id=RUN)
    story = story_of(world, "C-1")
    push = story.entries[0]
    find = world.buffer.trace_find
    for name, how in (("C-1", "code"), ("sku-1", "SKU"), ("1", "variant"), (device, "label")):
        assert find(name)["places"] == [{"store_code": STORE, "code": "C-1", "how": how}]
    assert {row["code"] for row in find(str(push.push_id))["pushes"]} == {"C-1", "C-2"}
    found = find(str(push.run_id))
    assert {row["code"] for row in found["pushes"]} == {"C-1", "C-2"} and found["pushed"] == 3
    night = find("night-7")
    assert [(row["code"], row["kind"]) for row in night["drift"]] == [("C-2", "different")]
    assert find("C-404") == {"places": [], "webhooks": [], "pushes": [], "pushed": 0, "drift": []}


# A week


@dataclass
class Week:
    """A world whose time is steered: each step happens at a time of a week that is past, in the sandbox at once (its
    clock), in the buffer's audit when the step is over."""

    world: World
    store: LabelStore
    start: datetime
    at: datetime = field(init=False)
    offset: float = 0
    hands: list[tuple[str, datetime]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at = self.start

    def clock(self) -> float:
        """The sandbox's."""
        return time.time() + self.offset

    def step(self, hours: float, *bodies: Row, **rules: Any) -> "Week":
        """Let time pass; then deliver, and push what is due once. More may be done before `done`."""
        self.at += timedelta(hours=hours)
        self.begun = time.time()
        self.offset = self.at.timestamp() - self.begun
        self.world.update(*(dict(body) for body in bodies))
        self.world.round(**rules)
        return self

    def settle(self) -> "Week":
        self.world.settle()
        return self

    def by_hand(self, code: str, **fields: str) -> None:
        """Somebody changes a label at the label server: nobody here knows."""
        if fields:
            self.store.edit(STORE, code, fields)
        else:
            self.store.take_away(STORE, code)

    def done(self) -> None:
        """What was recorded since the step began is moved to the step's time; nothing else may change the audit."""
        shift = f"interval '{self.offset:.6f} s'"
        since = datetime.fromtimestamp(self.begun, UTC).isoformat()
        columns = {
            "sync_log": ["at", "queued_at"],
            "sync_queue": ["queued_at"],
            "drift": ["at"],
            "mapping_changes": ["at"],
            "webhook_inbox": ["received_at", "finished_at"],
            "refreshes": ["at", "begun_at"],
        }
        moved = [
            f"update esl.{table} set {column} = {column} + {shift} where {column} >= '{since}'"
            for table, names in columns.items()
            for column in names
        ]
        self.world.sql("; ".join(["set session_replication_role = replica", *moved]))


@pytest.fixture
def week(buffer: Buffer, buffer_dsn: str) -> Iterator[Week]:
    start = datetime.now(UTC).replace(hour=6, minute=0, second=0, microsecond=300_000) - timedelta(days=9)
    kept: list[Week] = []
    with (
        LabelStore(clock=lambda: kept[0].clock() if kept else time.time()) as store,
        running_sandbox(store) as sandbox,
        client_of(sandbox.url, retries=1, timeout_seconds=2) as client,
    ):
        kept.append(Week(World(buffer, buffer_dsn, sandbox, client, RULES), store, start))
        yield kept[0]


class Truth:
    """What the sandbox itself remembers of a code: what it held, second by second, and who brought that."""

    def __init__(self, week: Week, code: str) -> None:
        self.changes = [row for row in week.store.changes(STORE) if row["code"] == code]
        self.times = [datetime.fromisoformat(row["at"]) for row in self.changes]

    def at(self, second: datetime) -> tuple[Any, bool]:
        """The record, and whether it is there by hand."""
        n = bisect_right(self.times, second) - 1
        return (
            (self.changes[n]["record"], self.changes[n]["action"] == "by_hand") if n >= 0 else (None, False)
        )


def live(week: Week) -> None:
    """A week: changes, an outage, drift of each kind, policies, a removal and a return."""
    world = week.world
    first = [1, 2, 3, 4, 5, 6, 7, 8]
    mapping = world.map(settings={"owns_store": True})
    week.step(0, *priced("1.00", 1, *first)).settle().done()
    week.step(5, *priced("1.10", 2, 1, 2)).settle().done()
    # The first night finds a price that was changed by hand, and a label that was taken away.
    week.step(8.5)
    week.by_hand("C-3", pp="7.77")
    week.by_hand("C-4")
    week.done()
    week.step(7, *priced("1.20", 3, 5))
    repair(world, "night-1")
    week.done()
    week.step(3)
    world.buffer.mapping_update(
        mapping, {"settings": {"owns_store": True, "title_template": "{title}!"}}, by="ana"
    )
    week.settle().done()
    # A day of outage: prices change meanwhile, one twice, and one back.
    world.sandbox.faults({"kind": "status", "status": 503})
    week.step(20, *priced("1.30", 4, 1, 6)).done()
    week.step(3, *priced("1.40", 5, 1)).done()
    week.step(2, *priced("1.00", 6, 6)).done()
    world.sandbox.faults()
    week.step(6).settle().done()
    # A foreign label, and one of ours with other words, are found two nights later.
    week.step(4)
    week.by_hand("ALIEN", pn="?", pp="3.33")
    week.by_hand("C-7", pn="Something else")
    week.done()
    week.step(30, *priced("1.50", 7, 2, 8))
    repair(world, "night-3")
    week.done()
    # Removed, refused, redriven, back again.
    week.step(10)
    world.delete(8, 8)
    week.settle().done()
    world.sandbox.faults({"kind": "bad_codes", "codes": ["C-2"], "error_msg": "no"})
    week.step(9, *priced("1.60", 8, 2)).settle().done()
    world.sandbox.faults()
    week.step(12)
    world.buffer.redrive(code="C-2")
    week.settle().done()
    week.step(14, *priced("2.00", 9, 8)).settle().done()
    # Put right, and changed by hand again before the week is over.
    week.step(20)
    week.by_hand("C-3", pp="6.66")
    week.done()
    week.step(8)
    repair(world, "night-6")
    week.done()


def same(holding: Holding, record: Any) -> bool:
    """Whether a story says what the label server held; of a foreign label we keep what tells it apart."""
    return holding.known and is_like(holding.label, record)


def is_like(label: Any, record: Any) -> bool:
    if label is None or record is None:
        return label is record
    return all(label.get(name) == record.get(name) for name in ("pc", "pn", "pp"))


@pytest.mark.long
def test_at_any_second_of_a_week_it_says_what_the_label_server_held(week: Week) -> None:
    live(week)
    codes = [*(f"C-{n}" for n in range(1, 9)), "ALIEN"]
    truths = {code: Truth(week, code) for code in codes}
    found = week.world.sql("select code, at from esl.drift")
    assert {row["code"] for row in found} == {"C-3", "C-4", "C-7", "ALIEN"} and len(found) == 5
    end = week.at + timedelta(hours=1)
    assert timedelta(days=6.5) < end - week.start < timedelta(days=8)

    # Both are constant between what either has recorded, so the seconds before and after each are all seconds.
    rows = week.world.sql("select at from esl.sync_log union select at from esl.drift")
    moments = [row["at"] for row in rows] + [at for truth in truths.values() for at in truth.times]
    edges = {at.replace(microsecond=0) + timedelta(seconds=n) for at in moments for n in (0, 1)}
    rng = random.Random(7)
    anywhere = {
        week.start.replace(microsecond=0) + timedelta(seconds=rng.randrange(7 * 86_400)) for _ in range(40)
    }
    behind, on_the_way = 0, 0
    for second in sorted(edges | anywhere):
        stories = week.world.buffer.stories([(STORE, code) for code in codes], at=second)
        assert len(stories) == len(codes)
        for story in stories:
            record, by_hand = truths[story.code].at(second)
            discovery = [row["at"] for row in found if row["code"] == story.code and row["at"] > second]
            said = f"{second} {story.sentence}\nheld: {record}"
            if same(story.holding, record):
                continue
            if by_hand and discovery:
                behind += 1
                assert "found there at" in str(story.holding.doubt), said
                assert any(is_like(label, record) for label in story.holding.maybe), said
            else:
                on_the_way += 1
                assert "was on its way" in str(story.holding.doubt), said
                assert any(is_like(label, record) for label in story.holding.maybe), said
    assert behind > 20 and on_the_way < 10


def test_a_push_without_an_answer_may_have_been_taken(world: World) -> None:
    world.map()
    world.settle(*priced("1.00", 1, 1))
    world.sandbox.faults({"kind": "reset", "apply": True, "action": "create_multiple", "times": 1})
    world.update(*priced("2.00", 2, 1))
    world.round()
    assert world.outcomes("C-1")[1] == "unknown"
    (row,) = world.sql("select max(at) as at from esl.sync_log where outcome = 'unknown'")
    world.settle()
    told = story_of(world, "C-1", at=row["at"])
    assert (told.price, told.holding.maybe_prices, world.prices()["C-1"]) == ("1.00", ("2.00",), "2.00")
    assert "was taken is not known: no answer came" in told.sentence
    now = story_of(world, "C-1")
    assert (now.price, now.before, now.holding.doubt) == ("2.00", "1.00", None)
