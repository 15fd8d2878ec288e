"""Every query is one that Shopify understands: by our copy of its schema, and by the real one where it is at hand."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLObjectType,
    GraphQLSchema,
    Node,
    TypeInfo,
    TypeInfoVisitor,
    Visitor,
    build_client_schema,
    build_schema,
    is_introspection_type,
    is_specified_scalar_type,
    parse,
    validate,
    visit,
)

from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline_tests.shared_data import DATA

SDL = Path(queries.__file__).with_name("schema.graphql")
REAL = DATA / "shopify-admin-schema" / "admin_2026-10.json.gz"
needs_real = pytest.mark.shared_data("data/shopify-admin-schema")

ALL = {
    name: text
    for name, text in vars(queries).items()
    if name.isupper() and isinstance(text, str) and name[0] != "_"
}
BULK = {name: text for name, text in ALL.items() if name.startswith("BULK_") and text.startswith("{")}


@cache
def ours() -> GraphQLSchema:
    return build_schema(SDL.read_text(encoding="utf-8"))


@cache
def real() -> GraphQLSchema:
    with gzip.open(REAL) as file:
        said = json.load(file)
    return build_client_schema(said.get("data", said))


def test_the_lists_name_all_queries() -> None:
    assert sorted([*queries.QUERIES, *queries.BULK_QUERIES]) == sorted(ALL.values())
    assert sorted(queries.BULK_QUERIES) == sorted(BULK.values())


@pytest.mark.parametrize("name", ALL)
def test_our_schema_has_what_the_query_asks_for(name: str) -> None:
    assert validate(ours(), parse(ALL[name])) == []


@needs_real
@pytest.mark.parametrize("name", ALL)
def test_shopifys_schema_has_what_the_query_asks_for(name: str) -> None:
    assert validate(real(), parse(ALL[name])) == []


def own_types(schema: GraphQLSchema) -> dict[str, Any]:
    return {
        name: of_type
        for name, of_type in schema.type_map.items()
        if not is_introspection_type(of_type) and not is_specified_scalar_type(of_type)
    }


@needs_real
@pytest.mark.parametrize("name", sorted(own_types(ours())))
def test_our_schema_says_the_same_as_shopifys(name: str) -> None:
    mine, theirs = ours().type_map[name], real().type_map[name]
    assert type(mine) is type(theirs)
    if isinstance(mine, GraphQLObjectType):
        assert isinstance(theirs, GraphQLObjectType)
        for field_name, field in mine.fields.items():
            other = theirs.fields[field_name]
            assert str(field.type) == str(other.type), field_name
            assert field.deprecation_reason == other.deprecation_reason, field_name
            for argument_name, argument in field.args.items():
                there = other.args[argument_name]
                assert str(argument.type) == str(there.type), (field_name, argument_name)
                assert argument.default_value == there.default_value, (field_name, argument_name)
            left_out = [arg for key, arg in other.args.items() if key not in field.args]
            assert not any(is_required(argument.type) for argument in left_out), field_name
    if isinstance(mine, GraphQLInputObjectType):
        assert isinstance(theirs, GraphQLInputObjectType)
        for field_name, given in mine.fields.items():
            assert str(given.type) == str(theirs.fields[field_name].type), field_name
        left_out = [given for key, given in theirs.fields.items() if key not in mine.fields]
        assert not any(is_required(given.type) for given in left_out)
    if isinstance(mine, GraphQLEnumType):
        assert isinstance(theirs, GraphQLEnumType)
        # What we only send may be less; what Shopify may answer has to be all of it.
        if name == "ProductSortKeys":
            assert set(mine.values) < set(theirs.values)
        else:
            assert list(mine.values) == list(theirs.values)


def is_required(of_type: GraphQLInputType) -> bool:
    return str(of_type).endswith("!")


class Seen(Visitor):
    """Which fields a query asks for, and how its connections nest."""

    def __init__(self, types: TypeInfo) -> None:
        super().__init__()
        self.types = types
        self.fields: set[tuple[str, str]] = set()
        self.connections = 0
        self.depth = self.deepest = 0

    def is_connection(self) -> bool:
        return str(self.types.get_type()).rstrip("!").endswith("Connection")

    def enter_field(self, node: Any, *_: object) -> None:
        parent = self.types.get_parent_type()
        assert parent is not None
        self.fields.add((parent.name, node.name.value))
        if self.is_connection():
            self.connections += 1
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)

    def leave_field(self, *_: object) -> None:
        self.depth -= self.is_connection()


def seen(document: Node) -> Seen:
    types = TypeInfo(ours())
    visitor = Seen(types)
    visit(document, TypeInfoVisitor(types, visitor))
    return visitor


def test_our_schema_has_nothing_that_no_query_asks_for() -> None:
    asked = set().union(*(seen(parse(text)).fields for text in ALL.values()))
    for name, of_type in own_types(ours()).items():
        # Connections come whole: a bulk query says edges where another says nodes.
        if isinstance(of_type, GraphQLObjectType) and not name.endswith(("Connection", "Edge")):
            assert {(name, field) for field in of_type.fields} <= asked


@pytest.mark.parametrize("name", BULK)
def test_bulk_queries_keep_shopifys_rules(name: str) -> None:
    document = parse(BULK[name])
    (definition,) = document.definitions
    (root,) = definition.selection_set.selections  # type: ignore[attr-defined]
    found = seen(document)
    assert str(ours().query_type.fields[root.name.value].type).endswith("Connection!")  # type: ignore[union-attr]
    assert 1 <= found.connections <= 5
    assert found.deepest <= 2
    # Where connections nest, the parent needs its id, for the children's __parentId.
    assert ("InventoryItem", "id") in found.fields or found.connections == 1
