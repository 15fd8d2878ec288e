"""The console in a real browser, on a phone and on a desk. The system's Chromium: apt-get install chromium."""

import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from esl_pipeline_tests.console.conftest import ODD_CODE, READER, WRITER, a_day, approvals
from esl_pipeline_tests.world import STORE, World

pytestmark = [pytest.mark.long, pytest.mark.timeout(480)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with driver.sync_playwright() as started:
        found = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *_CAMERA]
        )
        yield found
        found.close()


class Person:
    """Somebody with a browser of a size; nothing but the console may be asked by it, and nothing may go wrong in it."""

    def __init__(self, browser: Any, url: str, size: str, **options: Any) -> None:
        self.url, self.wrong = url, list[str]()
        self.context = browser.new_context(viewport=SIZES[size], **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)  # of a busy machine
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "request",
            lambda asked: None if asked.url.startswith(f"{url}/") else self.wrong.append(asked.url),
        )

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def sign_in(self, token: str) -> None:
        self.go("/console")
        self.page.get_by_label("Your token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/console")

    def press(self, button: str) -> str:
        """Press a button of a form -> what the next page tells."""
        self.page.get_by_role("button", name=button, exact=True).click()
        return str(self.page.locator(".told").first.inner_text())

    def serious(self) -> list[str]:
        """What axe finds on the page that is more than minor."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{v['id']}: {v['help']}: {[node['html'][:200] for node in v['nodes']][:3]}"
            for v in found
            if v["impact"] in ("serious", "critical", "moderate")
        ]

    def too_wide(self) -> int:
        """By how many pixels the page is wider than the screen."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@pytest.fixture
def person(chromium: Any, site: str) -> Iterator[Any]:
    made = list[Person]()

    def make(size: str = "desk", **options: Any) -> Person:
        made.append(Person(chromium, site, size, **options))
        return made[-1]

    yield make
    for found in made:
        found.context.close()


PAGES = {
    "sign-in": "/console/sign-in",
    "stores": "/console",
    "store": f"/console/stores/{STORE}",
    "search": "/console/search?q=product",
    "search-all": "/console/search?q=c-",
    "nothing": "/console/search?q=nonsense",
    "label": f"/console/label?store={STORE}&code=C-1",
    "script": f"/console/label?store={STORE}&code=C-2",
    "long": f"/console/label?store={STORE}&code=C-3",
    "right-to-left": f"/console/label?store={STORE}&code=C-4",
    "refused": f"/console/label?store={STORE}&code=C-8",
    "guarded": f"/console/label?store={STORE}&code=C-20",
    "approvals": "/console/approvals",
    "odd": f"/console/label?{urlencode({'store': STORE, 'code': ODD_CODE})}",
    "missing": "/console/label?store=S1&code=none",
    "docs": "/docs",
}


def test_every_page_on_a_phone_and_on_a_desk(world: World, person: Any) -> None:
    a_day(world)
    approvals(world)
    found = dict[str, Any]()
    for size in SIZES:
        somebody = person(size)
        for name, path in PAGES.items():
            if name == "stores":
                somebody.sign_in(WRITER)
            somebody.go(path)
            if issues := somebody.serious():
                found[f"{name} {size}"] = issues
            if too_wide := somebody.too_wide():
                found[f"{name} {size} is too wide"] = too_wide
            assert somebody.page.title() != "owned"
        assert [text for text in somebody.wrong if "404" not in text] == []
    assert found == {}


def test_from_sign_in_over_search_to_a_label_that_is_pushed_again(world: World, person: Any) -> None:
    a_day(world)
    ana = person("phone")
    ana.go("/console")
    assert ana.page.url.endswith("/console/sign-in")
    ana.page.get_by_label("Your token").fill("esl_wrong-token-of-32-characters-or-more")
    ana.page.get_by_role("button", name="Sign in").click()
    assert ana.page.get_by_role("alert").inner_text() == "The bearer token is wrong."
    ana.sign_in(WRITER)
    ana.page.get_by_label("Code, SKU or words").fill("espresso dark")
    ana.page.get_by_role("button", name="Search").click()
    ana.page.get_by_role("link", name="Espresso beans").click()
    assert ana.page.locator(".shelf-label .price").inner_text() == "11.90"
    assert "12.49 → 11.90" in ana.page.locator(".line").inner_text()
    assert ana.press("Push again") == "It is sent again now, though nothing of it has changed."
    world.settle()
    assert world.outcomes("C-1")[-3:] == ["accepted"] * 3
    (done,) = world.buffer.operator_actions(limit=5)
    assert (done["by"], done["verified"]) == ("ana", True)
    ana.page.get_by_role("button", name="Sign out").click()
    ana.go("/console")
    assert ana.page.url.endswith("/console/sign-in")
    assert [text for text in ana.wrong if "401" not in text] == []


def test_an_approval_is_looked_at_and_given(world: World, person: Any) -> None:
    a_day(world)
    approvals(world)
    ana = person("desk")
    ana.sign_in(WRITER)
    ana.page.get_by_role("link", name="Approvals").click()
    assert ana.page.locator(".changes li").count() == 20
    assert "20.00" in ana.page.locator(".changes li").first.inner_text()
    for box in ana.page.get_by_role("checkbox").all()[1:]:
        box.uncheck()
    assert ana.press("Approve what is ticked") == "Approved: 1 price and 0 removals. They go out now."
    world.settle()
    assert (world.prices()["C-20"], world.prices()["C-21"]) == ("2.00", "20.00")
    ana.page.get_by_label("Reason for rejecting").fill("a slip of the pen")
    assert ana.press("Reject what is ticked").startswith("Rejected: 19 prices and 0 removals.")
    world.settle()
    assert world.prices()["C-21"] == "20.00"
    assert "rejected by ana" in ana.page.locator(".changes li").first.inner_text()
    assert ana.wrong == []


def test_without_javascript_all_of_it_works(world: World, person: Any) -> None:
    a_day(world)
    ana = person("phone", java_script_enabled=False)
    ana.sign_in(WRITER)
    assert not ana.page.get_by_role("button", name="Scan").is_visible()
    ana.go(f"/console/stores/{STORE}")
    ana.page.get_by_label("Why").fill("stocktaking")
    assert ana.press("Pause the store").startswith("Store S1 is paused until")
    assert ana.press("Resume").startswith("Store S1 goes on")
    ana.go(f"/console/label?store={STORE}&code=C-8")
    assert ana.press("Try again") == "1 label tried again now."
    world.settle()
    assert world.prices()["C-8"] == "1.00"


def test_a_scanned_barcode_is_searched_for(world: World, person: Any) -> None:
    a_day(world)
    ana = person("phone")
    ana.context.add_init_script(
        "window.BarcodeDetector = class { static async getSupportedFormats() { return ['ean_13']; }"
        " async detect() { return [{ rawValue: 'C-1' }]; } }"
    )
    ana.sign_in(WRITER)
    ana.page.get_by_role("button", name="Scan").click()
    ana.page.wait_for_url("**/console/label?store=S1&code=C-1")
    assert ana.wrong == []


def test_who_may_only_look_has_no_buttons_and_their_forms_are_refused(world: World, person: Any) -> None:
    a_day(world)
    approvals(world)
    bo = person("desk")
    bo.sign_in(READER)
    assert "may only look" in bo.page.locator(".who").inner_text()
    for path in (PAGES["label"], PAGES["refused"], PAGES["store"], PAGES["approvals"]):
        bo.go(path)
        buttons = [
            button.inner_text() for button in bo.page.get_by_role("button").all() if button.is_visible()
        ]
        assert set(buttons) <= {"Sign out", "Search", "Scan"}
    key = bo.page.locator("input[name=form_key]").first.input_value()
    refused = bo.context.request.post(
        f"{bo.url}/console/push-again", form={"form_key": key, "store": STORE, "code": "C-1"}
    )
    assert refused.status == 403 and "may only read" in refused.text()
    assert world.buffer.operator_actions(limit=5) == []


def test_a_page_of_another_site_can_send_no_form(world: World, person: Any) -> None:
    """The stranger's page is on the same machine; it knows all but the form's key."""
    a_day(world)
    ana = person("desk")
    ana.sign_in(WRITER)
    strange = ana.url.replace("127.0.0.1", "localhost")
    form = f"""<form method=post action="{ana.url}/console/push-again"><input name=store value={STORE}>
        <input name=code value=C-1><button>free coupons</button></form>"""
    ana.page.route(f"{strange}/coupons", lambda route: route.fulfill(body=form, content_type="text/html"))
    ana.page.goto(f"{strange}/coupons")
    with ana.page.expect_navigation() as gone:
        ana.page.get_by_role("button", name="free coupons").click()
    assert gone.value.status == 403
    assert world.buffer.operator_actions(limit=5) == []


def test_a_link_on_another_site_leads_to_the_page(world: World, person: Any) -> None:
    """A cookie of ours goes along with no link of another site; whoever is signed in gets there all the same."""
    a_day(world)
    ana = person("phone")
    ana.sign_in(WRITER)
    link = f'<a href="{ana.url}{PAGES["label"]}">refused: crackers</a>'
    ana.page.route("http://chat.example/", lambda route: route.fulfill(body=link, content_type="text/html"))
    ana.page.goto("http://chat.example/")
    ana.page.get_by_role("link").click()
    ana.page.locator(".shelf-label").first.wait_for()
    assert ana.page.url.endswith(PAGES["label"])
