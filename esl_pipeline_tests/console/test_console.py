"""The console over HTTP: who comes in, what is refused, what the buttons do, and that no title is anything but text."""

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from markupsafe import escape

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.console.health import stores
from esl_pipeline.console.sessions import Sessions
from esl_pipeline.console.words import ago, harmless
from esl_pipeline_tests.console.conftest import (
    EMOJI,
    LONG,
    ODD_CODE,
    READER,
    RIGHT_TO_LEFT,
    SCRIPT,
    WRITER,
    a_day,
    approvals,
    browsing,
    guarded_app,
    odd_code,
    sent,
    told,
)
from esl_pipeline_tests.receiver.support import TOKEN, served
from esl_pipeline_tests.watched import WatchedBuffer
from esl_pipeline_tests.world import SHOP, STORE, World, product, variant

LABEL = f"/console/label?store={STORE}&code=C-1"
PAGES = ("/console", "/console/approvals", "/console/search?q=x", LABEL, f"/console/stores/{STORE}")


@pytest.fixture
def stranger(site: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site, timeout=20) as client:
        yield client


@pytest.fixture
def ana(site: str) -> Iterator[httpx.Client]:
    with browsing(site, WRITER) as client:
        yield client


@pytest.fixture
def bo(site: str) -> Iterator[httpx.Client]:
    with browsing(site, READER) as client:
        yield client


@pytest.fixture
def stocked(world: World) -> World:
    """Three labels that hang."""
    world.map()
    world.settle(product(1), product(2), product(3))
    return world


class Parsed(HTMLParser):
    """What of a page would run, look or load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inline, self.loaded, self._in = list[str](), set[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        self._in = tag if tag in ("script", "style") else ""
        if source := given.get("src") or (given.get("href") if tag == "link" else None):
            self.loaded.add(source)

    def handle_data(self, data: str) -> None:
        if self._in and data.strip():
            self.inline.append(f"{self._in}: {data}")


# --- Coming in


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_shown_to_strangers(stranger: httpx.Client, page: str) -> None:
    answer = stranger.get(page)
    onward = answer.headers["location"]
    assert (answer.status_code, onward.partition("?")[0]) == (303, "/console/sign-in")
    assert page == "/console" or urlencode({"next": page}) in onward


def test_the_cookie_is_for_this_host_and_for_no_script(stranger: httpx.Client) -> None:
    plain = stranger.post("/console/sign-in", data={"token": f" {WRITER}\n", "next": LABEL})
    assert (plain.status_code, plain.headers["location"]) == (303, LABEL)
    cookie = plain.headers["set-cookie"]
    assert re.match(
        r"esl_console=[\w-]{43}; HttpOnly; Max-Age=43200; Path=/console; SameSite=strict$", cookie
    )
    assert WRITER not in cookie


def test_behind_https_the_cookie_goes_over_nothing_else(buffer: Buffer, tokens: None) -> None:
    from esl_pipeline_tests.receiver.support import call

    app = guarded_app(buffer)
    headers = {"Host": "127.0.0.1", "Origin": "https://127.0.0.1"}
    answer = call(app, "POST", "/console/sign-in", data={"token": WRITER}, headers=headers)
    assert re.match(
        r"__Host-esl_console=[\w-]{43}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict; Secure$",
        answer.headers["set-cookie"],
    )


@pytest.mark.parametrize(
    "onward",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/consolexyz",
        "/console/\\x",
        "/console\n/x",
    ],
)
def test_a_sign_in_leads_nowhere_else(stranger: httpx.Client, onward: str) -> None:
    answer = stranger.post("/console/sign-in", data={"token": WRITER, "next": onward})
    assert answer.headers["location"] == "/console"


def test_wrong_tokens_lock_out_here_and_at_the_api_together(stranger: httpx.Client) -> None:
    for n in range(3):
        answer = stranger.post("/console/sign-in", data={"token": f"esl_wrong-token-of-32-characters-{n:05}"})
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    for n in range(2):
        bearer = {"Authorization": f"Bearer esl_wrong-token-of-32-characters-{n:05}"}
        assert stranger.get("/api/store-mappings/", headers=bearer).status_code == 401
    answer = stranger.post("/console/sign-in", data={"token": "esl_one-more-token-of-32-characters-00"})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) <= 60
    assert "Too many wrong tokens" in answer.text
    assert stranger.post("/console/sign-in", data={"token": TOKEN}).status_code == 303


def test_a_token_that_is_revoked_opens_nothing_any_more(buffer: Buffer, ana: httpx.Client) -> None:
    assert ana.get("/console").status_code == 200
    buffer.token_revoke("ana")
    assert ana.get("/console").status_code == 303
    assert ana.post("/console/pause", data={"store": STORE}).status_code == 401


def test_who_signs_out_is_out(ana: httpx.Client) -> None:
    key = ana.cookies["esl_console"]
    assert sent(ana, "sign-out").url.path == "/console/sign-in"
    assert ana.get("/console", headers={"Cookie": f"esl_console={key}"}).status_code == 303


def test_a_session_lasts_hours_and_the_oldest_gives_way() -> None:
    now = [0.0]
    sessions = Sessions(hours=1, clock=lambda: now[0])
    first = sessions.begin("a" * 64)
    assert sessions.find(first.key) is first
    assert sessions.find(None) is sessions.find("") is sessions.find("x") is None
    now[0] = 3600
    assert sessions.find(first.key) is None
    kept = [sessions.begin("a" * 64) for _ in range(1_001)]
    assert sessions.find(kept[0].key) is None and sessions.find(kept[1].key) is kept[1]


# --- Forms that are none of ours


ACTIONS = ("push-again", "try-again", "pause", "resume", "approve", "reject", "try-server")


@pytest.mark.parametrize("action", ACTIONS)
def test_without_the_forms_key_nothing_is_done(stocked: World, ana: httpx.Client, action: str) -> None:
    fields = {"store": STORE, "code": "C-1", "reason": "x", "label_server": "default"}
    for key in ({}, {"form_key": ""}, {"form_key": "x" * 32}):
        answer = ana.post(f"/console/{action}", data=fields | key)
        assert answer.status_code == 403 and "nothing was done" in answer.text
    assert stocked.buffer.operator_actions(limit=5) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_who_may_only_read_does_nothing(stocked: World, bo: httpx.Client, action: str) -> None:
    answer = sent(bo, action, store=STORE, code="C-1", reason="x", label_server="default")
    assert answer.status_code == 403 and "may only read" in answer.text
    assert stocked.buffer.operator_actions(limit=5) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused_before_it_is_read(
    stocked: World, ana: httpx.Client, headers: dict[str, str]
) -> None:
    (key, *_) = re.findall(r'name="form_key" value="([^"]+)"', ana.get("/console").text)
    form = {"form_key": key, "store": STORE, "code": "C-1"}
    answer = ana.post("/console/push-again", data=form, headers=headers)
    assert answer.status_code == 403 and stocked.buffer.operator_actions(limit=5) == []


def test_another_name_is_not_served(stranger: httpx.Client) -> None:
    assert stranger.get("/console", headers={"Host": "rebound.example"}).status_code == 421


def test_bodies_that_are_no_form_of_ours(ana: httpx.Client) -> None:
    assert ana.post("/console/pause", json={"store": STORE}).status_code == 415
    assert ana.post("/console/pause", data={"x": "y" * 70_000}).status_code == 413
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert ana.post("/console/pause", content=b"\xff" * 9, headers=form).status_code == 400
    assert ana.post("/console/pause", content="a&" * 2_000, headers=form).status_code == 400


# --- What buttons do


@pytest.mark.long
def test_a_label_is_pushed_again_once_for_a_form_that_is_sent_twice(
    stocked: World, ana: httpx.Client
) -> None:
    same = {"store": STORE, "code": "C-1", "action_id": "00000000-0000-4000-8000-000000000001"}
    for _ in range(2):
        answer = sent(ana, "push-again", LABEL, **same)
        assert str(answer.url).endswith(LABEL) and told(answer).startswith("It is sent again now")
    stocked.settle()
    assert stocked.outcomes("C-1") == ["accepted", "accepted"]
    done = stocked.buffer.operator_actions(limit=9)
    assert [(row["by"], row["verified"], row["store_code"]) for row in done] == [("ana", True, STORE)]
    assert "ana" in ana.get(f"/console/stores/{STORE}").text


def test_a_store_is_paused_and_goes_on(stocked: World, ana: httpx.Client) -> None:
    answer = sent(
        ana, "pause", f"/console/stores/{STORE}", store=STORE, reason="stock <b>taking</b>", hours="4"
    )
    assert told(answer).startswith("Store S1 is paused until ")
    assert "Paused by ana" in answer.text and "stock &lt;b&gt;taking&lt;/b&gt;" in answer.text
    stocked.update(product(1, 2, variants=[variant(1, price="9.99")]))
    stocked.round()
    assert stocked.prices()["C-1"] == "1.00"
    assert told(sent(ana, "resume", store=STORE)).startswith("Store S1 goes on")
    stocked.settle()
    assert stocked.prices()["C-1"] == "9.99"


@pytest.mark.long
def test_what_waits_for_somebody_is_not_called_on_its_way(stocked: World, ana: httpx.Client) -> None:
    stocked.buffer.store_pause(store=STORE, reason="stock-taking", by="Ada")
    stocked.update(product(1, 2, variants=[variant(1, price="9.99")]))
    stocked.round()
    for page in ("/console", f"/console/stores/{STORE}", LABEL):
        text = ana.get(page).text
        assert "on its way" not in text and "on the way" not in text, page
    assert "Paused by Ada" in ana.get("/console").text
    assert "waits: somebody paused the store" in html.unescape(ana.get(LABEL).text)
    assert told(sent(ana, "push-again", LABEL, store=STORE, code="C-1")).startswith("The store is paused")


@pytest.mark.long
def test_a_rejected_change_is_called_so(world: World, ana: httpx.Client) -> None:
    world.map()
    approvals(world)
    world.buffer.changes_reject(store=STORE, codes=["C-20"], reason="a mistake", by="Ada")
    assert "was rejected by somebody" in ana.get(f"/console/label?store={STORE}&code=C-20").text
    page = ana.get(f"/console/stores/{STORE}").text
    assert page.count("to approve") == 19 and "1 change rejected by somebody" in page
    counts = {row["state"]: row["labels"] for row in world.buffer.waiting_labels()["counts"]}
    assert counts == {"approval": 19, "rejected": 1}


def test_a_removed_store_is_found_by_no_search(stocked: World, ana: httpx.Client) -> None:
    assert "sku-1" in ana.get("/console/search?q=SKU-1").text
    stocked.buffer.store_remove(store=STORE, labels="keep", by="Ada")
    assert stocked.buffer.console_search(codes=["SKU-1"], text="SKU-1") == []


def test_what_cannot_be_done_is_told_in_a_sentence(stocked: World, ana: httpx.Client) -> None:
    for action, fields in (
        ("push-again", {"store": STORE, "code": "no-such"}),
        ("push-again", {"store": "S9", "code": "C-1"}),
        ("pause", {"store": "S9", "reason": "x"}),
        ("resume", {"store": STORE}),
        ("try-server", {"label_server": "elsewhere"}),
        ("approve", {"store": STORE}),
        ("approve", {"store": STORE, "change": "price 2.00 C-1"}),
        ("approve", {"store": STORE, "change": "nonsense"}),
    ):
        answer = sent(ana, action, **fields)
        assert answer.status_code == 200 and 'class="told refused"' in answer.text, (action, fields)
        assert len(told(answer)) > 20
    assert stocked.buffer.operator_actions(limit=5) == []


@pytest.mark.long
def test_only_what_was_looked_at_is_approved(world: World, ana: httpx.Client) -> None:
    world.map()
    approvals(world)
    page = ana.get("/console/approvals").text
    assert page.count("20.00") == 20
    ticked = [html.unescape(value) for value in re.findall(r'name="change" value="([^"]+)"', page)]
    world.settle(product(20, 4, variants=[variant(20, price="0.20")]))
    answer = sent(ana, "approve", "/console/approvals", store=STORE, change=ticked)
    assert told(answer).startswith("of store S1 C-20 changed since you looked")
    answer = sent(ana, "approve", "/console/approvals", store=STORE, change=ticked[1:])
    assert told(answer) == "Approved: 19 prices and 0 removals. They go out now."
    world.settle()
    assert world.prices()["C-20"] == "20.00" and world.prices()["C-21"] == "2.00"


@pytest.mark.long
def test_a_refused_label_says_why_and_is_tried_again(world: World, ana: httpx.Client) -> None:
    a_day(world)
    page = ana.get(f"/console/label?store={STORE}&code=C-8").text
    assert "was refused by the label server" in page and "Try again" in page
    assert "1 label could not be changed" in ana.get("/console").text
    assert told(sent(ana, "try-again", store=STORE, code="C-8")) == "1 label tried again now."
    world.settle()
    assert world.prices()["C-8"] == "1.00"


# --- Pages


@pytest.mark.long
def test_every_page_loads_only_from_here_and_has_nothing_inline(world: World, ana: httpx.Client) -> None:
    a_day(world)
    labels = [f"/console/label?store={STORE}&code=C-{n}" for n in range(1, 9)]
    nowhere = ["/console/x", "/console/stores/none", "/console/label?store=S1&code=none", "/console/label"]
    for path in (*PAGES, *labels, *nowhere, "/console/search?q=c-", "/docs"):
        answer = ana.get(path)
        assert (answer.status_code >= 400) == (path in (*nowhere, labels[5])), (path, answer.status_code)
        parsed = Parsed(answer.text)
        assert parsed.inline == [] and parsed.loaded
        for address in parsed.loaded:
            assert re.match(r"/(console|docs)/static/\w+\.(css|js|svg)\?\w+$", address)
            assert ana.get(address).headers["cache-control"].endswith("immutable")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'")
        assert "unsafe" not in policy and answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.long
def test_titles_are_text_whatever_they_hold(world: World, ana: httpx.Client) -> None:
    a_day(world)
    pages = {n: ana.get(f"/console/label?store={STORE}&code=C-{n}").text for n in range(1, 6)}
    pages[0] = ana.get("/console/search?q=c-").text
    for page in pages.values():
        assert "<script>document" not in page and "<img src=x" not in page and "\u202e" not in page
    assert html.escape(SCRIPT, quote=False)[:30] in pages[2].replace("&#39;", "'")
    assert LONG[:200] in pages[3] and "49" in pages[5] and EMOJI in html.unescape(pages[5])
    assert RIGHT_TO_LEFT.partition("\u202e")[0] in pages[4]


@pytest.mark.long
@pytest.mark.parametrize("typed", [ODD_CODE, "A/B C?d=1&e#f%20 "])
def test_a_code_that_no_address_can_hold_is_found(stocked: World, ana: httpx.Client, typed: str) -> None:
    odd_code(stocked)
    found = ana.get("/console/search", params={"q": typed}, follow_redirects=True)
    assert found.status_code == 200 and found.url.path == "/console/label"
    assert dict(found.url.params) == {"store": STORE, "code": ODD_CODE}
    assert html.escape(ODD_CODE) in found.text


@pytest.mark.long
def test_search_finds_codes_skus_and_words_by_their_beginning(world: World, ana: httpx.Client) -> None:
    world.map()
    world.map(store="S2")
    names = {1: "Red wine vinegar", 2: "White wine", 3: "Müsli mit Früchten", 4: "O'Neill \\ & | ! : * (x)"}
    world.settle(*(product(n, title=title) for n, title in names.items()))
    world.settle(product(5, title="Tea", variants=[variant(5, code="0036000291452", sku="T/5 a")]))

    def titles(typed: str, **more: str) -> set[str]:
        answer = ana.get("/console/search", params={"q": typed} | more)
        assert answer.status_code == 200, (typed, answer.text)
        return set(re.findall(r"<h2 dir=\"auto\"><a[^>]*>(.*?)</a>", answer.text))

    assert titles("win") == {"Red wine vinegar", "White wine"}
    assert titles("wine RED") == {"Red wine vinegar"}
    assert titles("früch") == {"Müsli mit Früchten"}
    assert titles("sku-") >= {"Red wine vinegar", "White wine"} and titles("SKU-2") == {"White wine"}
    assert titles("T/5 ") == titles("00360") == titles("036000291452") == {"Tea"}
    assert titles("C-2") == {"White wine"}
    assert titles("o'neill \\ &") == titles("o'ne") == {str(escape(names[4]))}
    for nothing in ("", "  ", "'", "\\", "!!", "& | :* (", "nothing", "%", "_", "🎉"):
        assert titles(nothing) == set(), nothing
    assert ana.get("/console/search", params={"q": "a\0b"}).status_code == 404
    assert (
        ana.get("/console/search", params={"q": "C-2", "store": "S2"})
        .headers["location"]
        .endswith("store=S2&code=C-2")
    )


def test_what_is_held_back_says_why_in_the_search(world: World, ana: httpx.Client) -> None:
    world.map()
    world.settle(product(1, title="Nameless", variants=[variant(1, code=None)]))
    page = ana.get("/console/search?q=nameless").text
    assert "held back" in page and "Nameless" in page


def test_the_database_away_is_a_page_without_its_address(watched: WatchedBuffer) -> None:
    from esl_pipeline.buffer.errors import BufferUnavailable

    away = BufferUnavailable("postgresql://esl:canary@db/esl is away")
    with served(guarded_app(watched)) as url, browsing(url, TOKEN) as client, watched.failing(away):
        answer = client.get("/console")
    assert answer.status_code == 503 and "canary" not in answer.text and "database" in answer.text


def test_a_link_of_another_site_arrives_and_goes_on_by_itself(stranger: httpx.Client) -> None:
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    answer = stranger.get(LABEL, headers=linked)
    assert answer.status_code == 200 and '<meta http-equiv="refresh" content="0">' in answer.text
    again = stranger.get(LABEL, headers={"Sec-Fetch-Site": "same-origin"})
    assert again.status_code == 303


@pytest.mark.long
def test_the_console_alone_has_no_api_and_no_webhooks(buffer: Buffer, tokens: None) -> None:
    with served(guarded_app(buffer, only="console")) as url:
        assert httpx.get(url).headers["location"] == "/console"
        found = {
            path: httpx.get(url + path).status_code for path in ("/health", "/api/store-mappings/", "/docs")
        }
        assert found == {"/health": 200, "/api/store-mappings/": 404, "/docs": 200}
        with browsing(url, WRITER) as client:
            assert client.get("/console").status_code == 200
    with served(guarded_app(buffer, only="webhooks")) as url:
        assert httpx.get(f"{url}/console").status_code == 404


# --- Words


def test_a_store_is_as_grave_as_the_gravest_that_is_said_of_it(world: World) -> None:
    a_day(world)
    (store,) = stores(world.buffer.status())
    assert (store.code, store.shops, store.level, store.refused) == (STORE, (SHOP,), "trouble", 1)
    assert {said.level for said in store.said} == {"trouble", "notice"}


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x00b", "a\ufffdb"), ("x\u202ey", "x\ufffdy"), ("👨‍👩‍👧 a\nb", "👨‍👩‍👧 a\nb")]
)
def test_what_steers_a_page_is_shown_as_what_cannot_be_shown(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_times_are_told_in_their_largest_unit() -> None:
    from datetime import UTC, datetime

    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    said: dict[str, Any] = {
        "2026-11-28T11:59:59Z": "1 s ago",
        "2026-11-28T14:00:00+01:00": "in 1 h",
        "2026-11-26T11:00:00Z": "2 d ago",
        "2026-11-28T12:00:00Z": "now",
    }
    assert {at: ago(at, now) for at in said} == said
