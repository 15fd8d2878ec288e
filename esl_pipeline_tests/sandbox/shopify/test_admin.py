"""The pretend Admin API over real HTTP: what it answers, page by page, at what cost, and how it fails."""

import time
from typing import Any

import pytest
from graphql import GraphQLObjectType, build_schema, get_named_type, is_required_argument

from esl_pipeline.sandbox.shopify.admin import load_schema
from esl_pipeline.sandbox.shopify.cost import Costs
from esl_pipeline.sandbox.shopify.search import Fields, SearchError, a_time, an_id, parse
from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline_tests.sandbox.shopify.support import Running, running, small_shop

EVERYTHING = "updated_at:>='2000-01-01T00:00:00Z'"


def paged(shopify: Running, query: str, name: str, /, **variables: Any) -> list[list[dict[str, Any]]]:
    pages, after = [], None
    while True:
        page = shopify.data(query, after=after, **variables)[name]
        pages.append(page["nodes"])
        if not page["pageInfo"]["hasNextPage"]:
            return pages
        after = page["pageInfo"]["endCursor"]


# --- what it answers ----------------------------------------------------------------------------


def selection(kind: GraphQLObjectType, above: frozenset[str]) -> str:
    """Every field of a type, and of the types below it that are not above it too."""
    parts = []
    for name, field in kind.fields.items():
        inner = get_named_type(field.type)
        arguments = {"names": '["available"]', "id": '"gid://shopify/Product/1"'}
        given = [f"{key}: {arguments[key]}" for key, arg in field.args.items() if is_required_argument(arg)]
        given += ["first: 2"] if "first" in field.args else []
        call = f"{name}({', '.join(given)})" if given else name
        if not isinstance(inner, GraphQLObjectType):
            parts.append(call)
        elif inner.name not in above:
            parts.append(f"{call} {{ {selection(inner, above | {inner.name})} }}")
    return " ".join(parts)


@pytest.mark.parametrize("name", ["shop", "locations", "products"])
def test_every_field_of_the_schema_is_answered(shopify: Running, name: str) -> None:
    root = load_schema().query_type
    assert root is not None
    kind = get_named_type(root.fields[name].type)
    assert isinstance(kind, GraphQLObjectType)
    # Lists without pages in our part of the schema are for bulk operations.
    seen = frozenset({kind.name, "InventoryLevelConnection"})
    pages = "" if name == "shop" else "(first: 2)"
    assert shopify.data(f"{{ {name}{pages} {{ {selection(kind, seen)} }} }}")[name]


def test_a_product_is_told_as_its_webhook_tells_it(shopify: Running) -> None:
    tea = next(product for product in shopify.shop.products.values() if product.title == "Tee, lose")
    told = shopify.data(queries.PRODUCT, id=f"gid://shopify/Product/{tea.id}", first=3)["product"]
    assert (told["title"], told["status"], told["handle"]) == ("Tee, lose", "ACTIVE", f"product-{tea.id}")
    assert told["tags"] == sorted(tea.tags)
    first = told["variants"]["nodes"][0]
    assert first["id"] == f"gid://shopify/ProductVariant/{tea.variants[0].id}"
    assert [option["value"] for option in first["selectedOptions"]] == ["Assam", "25 g"]
    assert first["unitPriceMeasurement"] == {
        "measuredType": "WEIGHT",
        "quantityValue": 25.0,
        "quantityUnit": "G",
        "referenceValue": 1,
        "referenceUnit": "KG",
    }
    assert float(first["unitPrice"]["amount"]) == pytest.approx(float(first["price"]) * 40)
    assert told["variants"]["pageInfo"]["hasNextPage"] is True


def test_what_is_not_there_is_null_and_a_foreign_id_an_error(shopify: Running) -> None:
    assert shopify.data(queries.PRODUCT, id="gid://shopify/Product/1", first=1) == {"product": None}
    assert shopify.errors(queries.PRODUCT, id="7", first=1) == ["Invalid global id '7'"]


def test_the_shop_and_its_locations(shopify: Running) -> None:
    shop = shopify.data(queries.SHOP)["shop"]
    assert (shop["myshopifyDomain"], shop["currencyCode"]) == ("corner-market.myshopify.com", "EUR")
    assert shop["taxesIncluded"] is True
    places = shopify.data(queries.LOCATIONS, first=10)["locations"]["nodes"]
    assert [place["isActive"] for place in places] == [False, True, True]
    count = shopify.data(queries.VARIANTS_COUNT)["productVariantsCount"]
    assert count["count"] == sum(len(product.variants) for product in shopify.shop.products.values())


# --- pages and searches -------------------------------------------------------------------------


def test_pages_hold_everything_once_in_order(shopify: Running) -> None:
    pages = paged(shopify, queries.CHANGED_PRODUCTS, "products", first=50, variants=1, query=EVERYTHING)
    assert [len(page) for page in pages] == [50, 50, 22]
    times = [product["updatedAt"] for page in pages for product in page]
    assert times == sorted(times)
    assert len({product["id"] for page in pages for product in page}) == 122


def test_a_product_that_changes_between_two_pages_comes_again() -> None:
    with running() as shopify:
        first = shopify.data(queries.CHANGED_PRODUCTS, first=100, variants=1, query=EVERYTHING)["products"]
        moved = shopify.shop.products[int(first["nodes"][0]["id"].rpartition("/")[2])]
        shopify.shop.touch(moved)
        rest = shopify.data(
            queries.CHANGED_PRODUCTS,
            first=100,
            variants=1,
            query=EVERYTHING,
            after=first["pageInfo"]["endCursor"],
        )["products"]
        assert rest["nodes"][-1]["id"] == first["nodes"][0]["id"]
        assert len(rest["nodes"]) == 23


@pytest.mark.parametrize(("first", "wrong"), [(251, True), (0, True), (-1, True), (250, False)])
def test_a_page_has_1_to_250_things(shopify: Running, first: int, wrong: bool) -> None:
    answer = shopify.call("query L($first: Int) { locations(first: $first) { nodes { id } } }", first=first)
    assert ("errors" in answer.json()) is wrong


def test_a_page_needs_a_size_and_a_cursor_of_ours(shopify: Running) -> None:
    assert shopify.errors("{ locations { nodes { id } } }") == ["you must provide one of first or last"]
    (said,) = shopify.errors(queries.LOCATIONS, first=1, after="bm9uc2Vuc2U=")
    assert said.startswith("Invalid cursor")


def test_searches_by_time_and_id() -> None:
    fields: Fields = {"updated_at": (a_time, lambda p: p.updated_at), "id": (an_id, lambda p: p.id)}
    products = sorted(small_shop().products.values(), key=lambda product: product.updated_at)
    middle = products[60].updated_at.isoformat()

    def found(query: str) -> int:
        match = parse(query, fields)
        return sum(match(product) for product in products)

    assert (found(f"updated_at:<'{middle}'"), found(f'updated_at:>="{middle}"')) == (60, 62)
    assert found(f"updated_at:>{middle} AND updated_at:<={products[70].updated_at.isoformat()}") == 10
    assert found(f"id:{products[3].id} OR id:{products[4].id}") == 2
    assert found(f"(id:{products[3].id} OR id:{products[4].id}) updated_at:<'{middle}'") == 2
    assert found("updated_at:>'2099-01-01T00:00:00Z'") == 0


@pytest.mark.parametrize(
    "query",
    [
        "title:tea",
        "tea",
        "updated_at:>yesterday",
        "updated_at:>2026-01-01T00:00:00",
        "id:x",
        "(id:1",
        "id:1 OR",
        "id:1)",
    ],
)
def test_other_searches_are_refused(shopify: Running, query: str) -> None:
    fields: Fields = {"updated_at": (a_time, lambda p: p), "id": (an_id, lambda p: p)}
    with pytest.raises(SearchError):
        parse(query, fields)
    (said,) = shopify.errors(queries.CHANGED_PRODUCTS, first=1, variants=1, query=query)
    assert said.startswith("query: ")


# --- cost ---------------------------------------------------------------------------------------


def test_costs_are_as_shopify_reckons_them() -> None:
    from graphql import parse as document

    schema = build_schema(
        "type Query { product(id: ID!): P } type P { variants(first: Int): VConnection }"
        " type VConnection { nodes: [V!]! } type V { inventoryItem: I! } type I { id: ID! }"
    )
    query = document('{ product(id: "1") { variants(first: 250) { nodes { inventoryItem { id } } } } }')
    costs = Costs(schema, query, {})
    assert (costs.requested(), costs.actual({"product": None})) == (25, 1)  # as told in Shopify's forum


def test_the_bucket_empties_and_fills_again(shopify: Running) -> None:
    shopify.sandbox.admin.bucket = type(shopify.sandbox.admin.bucket)(size=60, restore_rate=200)
    query = {"first": 1, "variants": 1, "query": EVERYTHING}
    costs = []
    while "errors" not in (answer := shopify.call(queries.CHANGED_PRODUCTS, **query).json()):
        costs.append(answer["extensions"]["cost"])
        assert len(costs) < 50
    assert answer.keys() == {"errors", "extensions"}
    assert answer["errors"][0]["message"] == "Throttled"
    assert answer["errors"][0]["extensions"]["code"] == "THROTTLED"
    cost = answer["extensions"]["cost"]
    assert cost["actualQueryCost"] is None
    assert cost["requestedQueryCost"] > cost["throttleStatus"]["currentlyAvailable"]
    assert costs[0]["actualQueryCost"] <= costs[0]["requestedQueryCost"]
    time.sleep(cost["requestedQueryCost"] / 200)
    assert "data" in shopify.call(queries.CHANGED_PRODUCTS, **query).json()
    shopify.sandbox.admin.bucket = type(shopify.sandbox.admin.bucket)()


def test_a_query_may_not_cost_more_than_1000(shopify: Running) -> None:
    deep = "id product { variants(first: 250) { nodes { id } } }"
    query = f"{{ products(first: 250) {{ nodes {{ variants(first: 250) {{ nodes {{ {deep} }} }} }} }} }}"
    answer = shopify.call(query).json()
    assert answer["errors"][0]["extensions"]["code"] == "MAX_COST_EXCEEDED"
    assert "data" not in answer


# --- who may call, and what goes wrong ----------------------------------------------------------


def test_a_wrong_token_is_refused_before_anything_else(shopify: Running) -> None:
    answer = shopify.call("not even GraphQL", token="guess")
    assert (answer.status_code, list(answer.json())) == (401, ["errors"])
    assert shopify.http.post("/admin/api/2026-10/graphql.json", json={}).status_code == 401


@pytest.mark.parametrize(
    ("asked", "served"), [("2026-10", "2026-10"), ("2026-01", "2026-01"), ("2024-07", "2026-01")]
)
def test_an_old_version_falls_forward(shopify: Running, asked: str, served: str) -> None:
    answer = shopify.call(queries.SHOP, version=asked)
    assert (answer.status_code, answer.headers["X-Shopify-API-Version"]) == (200, served)


@pytest.mark.parametrize("version", ["2099-01", "2026-02", "latest"])
def test_a_version_that_never_was_is_not_found(shopify: Running, version: str) -> None:
    assert shopify.call(queries.SHOP, version=version).status_code == 404


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"query": 7}', b'{"query": "{ shop { id } }", "variables": [1]}']
)
def test_a_body_that_is_no_query_is_refused(shopify: Running, body: bytes) -> None:
    answer = shopify.http.post(
        "/admin/api/2026-10/graphql.json", content=body, headers={"X-Shopify-Access-Token": "shpat_sandbox"}
    )
    assert answer.status_code == 400


def test_a_query_that_does_not_fit_the_schema_is_an_error(shopify: Running) -> None:
    (said,) = shopify.errors("{ shop { pony } }")
    assert "pony" in said


def test_each_failure_of_a_call_can_be_switched_on_for_some_calls(shopify: Running) -> None:
    shopify.faults(
        {"kind": "status", "status": 502, "times": 2, "retry_after": "1", "body": "bad gateway"},
        {"kind": "unauthorized", "times": 1},
        {"kind": "throttled", "times": 1},
        {"kind": "fall_forward", "version": "2027-01"},
    )
    answers = [shopify.call(queries.SHOP) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [502, 502, 401, 200, 200]
    assert (answers[0].headers["Retry-After"], answers[0].text) == ("1", "bad gateway")
    assert answers[3].json()["errors"][0]["message"] == "Throttled"
    assert answers[4].json()["data"]["shop"]["name"] == "Corner Market"
    assert answers[4].headers["X-Shopify-API-Version"] == "2027-01"
    fired = {rule["kind"]: rule["fired"] for rule in shopify.http.get("/sandbox/faults").json()}
    assert (fired["status"], fired["unauthorized"], fired["throttled"]) == (2, 1, 1)


def test_answers_can_be_slow(shopify: Running) -> None:
    shopify.faults({"kind": "latency", "ms": 120, "times": 1})
    began = time.monotonic()
    shopify.call(queries.SHOP)
    assert time.monotonic() - began >= 0.12


@pytest.mark.parametrize("rule", [{"kind": "strike"}, {"kind": "status"}, {"kind": "throttled", "often": 2}])
def test_unknown_rules_are_refused(shopify: Running, rule: dict[str, Any]) -> None:
    assert shopify.http.post("/sandbox/faults", json=[rule]).status_code == 422
