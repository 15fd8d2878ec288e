"""The Admin API's GraphQL endpoint without the HTTP: who may call, in which version, at what cost, with what answer."""

import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from esl_pipeline.sandbox.shopify.answers import Answer, Json
from esl_pipeline.sandbox.shopify.bulk import Operations, Root
from esl_pipeline.sandbox.shopify.cost import MAX_QUERY_COST, Bucket, Costs
from esl_pipeline.sandbox.shopify.faults import FallForward, Faults, Latency, Status, Throttled, Unauthorized
from esl_pipeline.sandbox.shopify.graph import value_of
from esl_pipeline.sandbox.shopify.oauth import App
from esl_pipeline.sandbox.shopify.shop import Shop

VERSIONS = ("2026-01", "2026-04", "2026-07", "2026-10")
"""What is served; an older one falls forward to the first."""

_LIMITS_PAGE = "https://shopify.dev/api/usage/rate-limits"
_BAD_TOKEN = "[API] Invalid API key or access token (unrecognized login or wrong password)"  # noqa: S105


def load_schema() -> GraphQLSchema:
    """The part of Shopify's schema that the client uses, and that this sandbox executes."""
    sdl = files("esl_pipeline.sources.shopify.admin").joinpath("schema.graphql").read_text(encoding="utf-8")
    return build_schema(sdl)


class Admin:
    """Answers the calls of one app."""

    def __init__(
        self, shop: Shop, operations: Operations, schema: GraphQLSchema, faults: Faults, app: App
    ) -> None:
        self.bucket = Bucket()
        self._shop, self._operations, self._schema, self._faults = shop, operations, schema, faults
        self._app = app

    def answer(self, version: str, token: str | None, body: object, base_url: str) -> Answer:
        """The answer to one call; `base_url` is where the caller finds this server. May sleep."""
        if latency := self._faults.fire(Latency, "graphql"):
            time.sleep(latency.ms / 1000)
        if failure := self._faults.fire(Status, "graphql"):
            headers = {} if failure.retry_after is None else {"Retry-After": failure.retry_after}
            return Answer(failure.body, failure.status, headers)
        if closed := self._app.closed(f"/admin/api/{version}/graphql.json"):
            return closed
        served = self._served(version)
        if served is None:
            return Answer({"errors": "Not Found"}, 404)
        if not self._app.takes(token) or self._faults.fire(Unauthorized):
            return Answer({"errors": _BAD_TOKEN}, 401)
        headers = {"X-Shopify-API-Version": served}
        query = body.get("query") if isinstance(body, dict) else None
        variables = body.get("variables") or {} if isinstance(body, dict) else {}
        if not isinstance(query, str) or not isinstance(variables, dict):
            return Answer({"errors": {"query": "Required parameter missing or invalid"}}, 400, headers)
        return Answer(self._executed(query, variables, base_url), headers=headers)

    def _served(self, version: str) -> str | None:
        """The version of the answer; None for a version that never was or is not yet."""
        if fall := self._faults.fire(FallForward):
            return fall.version
        if version in VERSIONS or version == "unstable":
            return version
        known = len(version) == len(VERSIONS[0]) and version[-3:] in ("-01", "-04", "-07", "-10")
        return VERSIONS[0] if known and version < VERSIONS[0] else None

    def _executed(self, query: str, variables: Mapping[str, Any], base_url: str) -> Json:
        try:
            document = parse(query)
        except GraphQLError as error:
            return {"errors": [error.formatted]}
        if errors := validate(self._schema, document):
            return {"errors": [error.formatted for error in errors]}
        costs = Costs(self._schema, document, variables)
        requested = costs.requested()
        if requested > MAX_QUERY_COST:
            return {"errors": [_too_dear(requested)]}
        if self._faults.fire(Throttled) or not self.bucket.covers(requested):
            said = {"code": "THROTTLED", "documentation": _LIMITS_PAGE}
            return {"errors": [{"message": "Throttled", "extensions": said}]} | self._cost(requested, None)
        if denied := self._app.denied(_root_fields(document)):
            return {"data": None, "errors": denied} | self._cost(requested, 0)
        with self._shop.lock:
            result = self._result(document, variables, base_url)
        actual = costs.actual(result.data) if result.data is not None else 0
        self.bucket.spend(actual)
        answer: Json = {"data": result.data}
        if result.errors:
            answer["errors"] = [error.formatted for error in result.errors]
        return answer | self._cost(requested, actual)

    def _result(self, document: DocumentNode, variables: Mapping[str, Any], base_url: str) -> ExecutionResult:
        root = Root(self._shop, self._operations, self._app, base_url)
        return execute_sync(
            self._schema, document, root, variable_values=dict(variables), field_resolver=_resolve
        )

    def _cost(self, requested: int, actual: int | None) -> Json:
        status = self.bucket.status()
        cost = {"requestedQueryCost": requested, "actualQueryCost": actual, "throttleStatus": status}
        return {"extensions": {"cost": cost}}


def _resolve(source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
    return value_of(source, info.field_name, arguments)


def _root_fields(document: DocumentNode) -> set[str]:
    """The names of what a document asks the query root for; nobody writes fragments here."""
    return {
        field.name.value
        for definition in document.definitions
        if isinstance(definition, OperationDefinitionNode)
        for field in definition.selection_set.selections
        if isinstance(field, FieldNode)
    }


def _too_dear(cost: int) -> Json:
    message = (
        f"Query cost is {cost}, which exceeds the single query max cost limit ({MAX_QUERY_COST}).\n\n"
        f"See {_LIMITS_PAGE} for more information on how the cost of a query is calculated.\n\n"
        "To query larger amounts of data with fewer limits, bulk operations should be used instead.\n"
    )
    error = {"code": "MAX_COST_EXCEEDED", "cost": cost, "maxCost": MAX_QUERY_COST}
    return {"message": message, "extensions": error | {"documentation": _LIMITS_PAGE}}
