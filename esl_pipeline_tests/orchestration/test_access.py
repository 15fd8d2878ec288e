"""A shop that does not let us in says why in one sentence, in doctor, check and failed run, and stops no other shop."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import pytest
from pydantic import SecretStr

from esl_pipeline.commands.doctor import examine
from esl_pipeline.sandbox.shopify.faults import FallForward
from esl_pipeline.sandbox.shopify.oauth import App, AppEdit
from esl_pipeline.sandbox.shopify.sandbox import ShopifySandbox
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.shopify.admin import AdminClient
from esl_pipeline.sources.shopify.admin.tokens import forget_tokens
from esl_pipeline.sources.shopify.connection import Connection, look
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import KEY, OTHER_KEY, OTHER_SHOP, OTHER_STORE, SHOP, map_shop
from esl_pipeline_tests.sandbox.shopify.support import START, small_shop
from esl_pipeline_tests.sources.shopify.admin.servers import Reply, Request, serving


@dataclass
class TwoShops:
    """One address before two sandboxes: who calls with the other app, or its token, reaches the other shop."""

    shop: ShopifySandbox
    other: ShopifySandbox


@pytest.fixture
def shops(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoShops]:
    with (
        running_shopify(Shop(1, START), app=App("mine", ["secret"])) as mine,
        running_shopify(small_shop(), app=App("theirs", ["secret"])) as theirs,
        httpx.Client(trust_env=False) as http,
    ):

        def answer(request: Request) -> Reply:
            app = request.form.get("client_id") if "oauth" in request.path else None
            token = request.headers.get("x-shopify-access-token")
            url = theirs.url if app == "theirs" or theirs.sandbox.app.takes(token) else mine.url
            headers = {
                name: request.headers[name] for name in ("content-type", "host") if name in request.headers
            }
            got = http.post(
                url + request.path,
                content=request.body,
                headers=headers | ({"X-Shopify-Access-Token": token} if token else {}),
            )
            kept = ("Location", "Content-Type", "X-Shopify-API-Version")
            return Reply(got.content, got.status_code, {k: got.headers[k] for k in kept if k in got.headers})

        with serving(answer) as front:
            monkeypatch.setenv("SHOPIFY_ADMIN_URL", front.url)
            monkeypatch.setenv("SHOPIFY_APPS", f"{SHOP}=mine:secret,{OTHER_SHOP}=theirs:secret")
            map_shop(pipeline.buffer)
            map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
            for changed in theirs.sandbox.shop.products.values():
                changed.updated_at = datetime.now(UTC)
            yield TwoShops(mine.sandbox, theirs.sandbox)
    forget_tokens()


def seen(shop: str) -> Connection:
    client = load_settings().sources["shopify"].open_admin(shop, patient=False)
    assert client is not None
    with client:
        return look(client, shop)


@pytest.mark.long
def test_a_good_connection_says_what_it_is(shops: TwoShops) -> None:
    found = seen(SHOP)
    assert (found.problem, found.retired) == (None, None)
    assert (found.currency, found.taxes_included, found.time_zone) == ("EUR", True, "America/Panama")
    assert found.describe() == (
        f"{SHOP} is reachable: prices in EUR with taxes, time zone America/Panama, Admin API 2026-10, scopes "
        "read_inventory, read_locations, read_products"
    )


def test_an_answer_of_another_shape_is_the_shops_problem() -> None:
    with (
        serving(lambda _: Reply(b'{"data": {"shop": null, "currentAppInstallation": null}}')) as server,
        AdminClient(server.url, SecretStr("token"), "2026-10", shop=SHOP) as client,
    ):
        assert look(client, SHOP).describe() == (
            f"{SHOP} answers with something else than was asked for: something in between speaks"
        )


@pytest.mark.long
def test_doctor_says_that_a_version_is_retired_and_that_an_address_is_none(
    shops: TwoShops, monkeypatch: pytest.MonkeyPatch
) -> None:
    shops.shop.faults.replace([FallForward(version="2027-01")])
    found = [check for check in examine(load_settings()) if check.what == f"shop {SHOP}"]
    assert [check.state for check in found] == ["warning", "ok"]
    assert "has retired Admin API 2026-10 and answers with 2027-01" in found[0].says
    monkeypatch.setenv("SHOPIFY_ADMIN_URL", "http://192.0.2.1")
    found = [check for check in examine(load_settings()) if check.what == f"shop {SHOP}"]
    assert [check.state for check in found] == ["wrong"] and "SHOPIFY_ADMIN_URL" in found[0].says


@pytest.mark.long
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (AppEdit(secrets=["another"]), f"client id or secret for {SHOP} is wrong"),
        (AppEdit(installed=False), f"not installed in {SHOP}"),
        (AppEdit(same_organisation=False), f"another organisation than {SHOP}"),
        (
            AppEdit(scopes=["read_locations"]),
            f"scopes read_products, read_inventory in {SHOP}",
        ),
        (AppEdit(frozen=True), f"{SHOP} is frozen (HTTP 402)"),
        (
            AppEdit(renamed_to="new.myshopify.com"),
            f"{SHOP} is called new.myshopify.com now (HTTP 301)",
        ),
        (None, f"{SHOP} refuses the access token (HTTP 401)"),
    ],
)
def test_each_refusal_is_one_sentence_everywhere_and_stops_no_other_shop(
    pipeline: Pipeline,
    shops: TwoShops,
    monkeypatch: pytest.MonkeyPatch,
    edit: AppEdit | None,
    says: str,
) -> None:
    if edit is None:
        monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"{SHOP}=shpat_revoked")
    else:
        shops.shop.edit_app(edit)
    found = seen(SHOP)
    sentence = found.problem
    assert sentence and says in sentence
    assert found.describe() == sentence and sentence.endswith(".") and sentence.count(". ") == 0

    checks = {check.what: check for check in examine(load_settings())}
    assert (checks[f"shop {SHOP}"].state, checks[f"shop {SHOP}"].says) == ("wrong", sentence)
    assert checks[f"shop {OTHER_SHOP}"].state == "ok"

    full = pipeline.definitions.resolve_job_def("full_reconciliation")
    night = full.execute_in_process(instance=pipeline.instance, partition_key=KEY, raise_on_error=False)
    assert sentence in str(night.failure_data_for_node("shopify_products"))

    daily = pipeline.definitions.resolve_job_def("shopify_connections")
    looked = daily.execute_in_process(instance=pipeline.instance)
    judged = {one.partition: (one.passed, one.description) for one in looked.get_asset_check_evaluations()}
    assert judged[OTHER_KEY][0] and not judged[KEY][0] and sentence in str(judged[KEY][1])

    job = pipeline.definitions.resolve_job_def("catch_up")
    failed = job.execute_in_process(instance=pipeline.instance, raise_on_error=False)
    said = failed.failure_data_for_node("read_recent_changes")
    assert said is not None and said.user_failure_data is not None
    assert said.user_failure_data.description == f"1 of 2 shops could not be read: {KEY}: {sentence}"
    judged = {one.partition: (one.passed, one.description) for one in failed.get_asset_check_evaluations()}
    assert judged[OTHER_KEY][0] and not judged[KEY][0] and sentence in str(judged[KEY][1])
    pipeline.drain()
    assert pipeline.labels(OTHER_STORE)
