"""A query to be run in bulk: what it takes from the shop, and the JSON lines that come of it.

Lines come as with groupObjects false: children after their parents, not beside them, and with `__parentId`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from graphql import (
    FieldNode,
    GraphQLError,
    GraphQLObjectType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    get_named_type,
    get_nullable_type,
    is_list_type,
    parse,
    validate,
    value_from_ast_untyped,
)

from esl_pipeline.sandbox.shopify.cost import is_connection
from esl_pipeline.sandbox.shopify.graph import Connection, reader_of

MAX_CONNECTIONS = 5
MAX_DEPTH = 2

# So many roots are written before their children.
_BLOCK = 50

Line = dict[str, Any]


class BulkQueryError(Exception):
    """A query that cannot be run in bulk; the message says why."""


@dataclass
class Shape:
    """What a selection takes from a thing: plain fields into its line, connections into lines of their own."""

    plain: list[tuple[str, Callable[[Any], Any]]] = field(default_factory=list)
    objects: list[tuple[str, Callable[[Any], Any], "Shape"]] = field(default_factory=list)
    connections: list[tuple[Callable[[Any], Connection], "Shape"]] = field(default_factory=list)
    _last: tuple[Any, Line] | None = field(default=None, init=False, repr=False)

    def told(self, thing: Any, children: list[tuple[Connection, "Shape"]]) -> Line:
        """As line; what many tell one after the other (their product) is put together once."""
        if self._last is not None and self._last[0] is thing:
            return self._last[1]
        before = len(children)
        line = self.line(thing, children)
        self._last = (thing, line) if len(children) == before else None
        return line

    def line(self, thing: Any, children: list[tuple[Connection, "Shape"]]) -> Line:
        """The thing's line; the connections found in it go to `children`."""
        line = {key: read(thing) for key, read in self.plain}
        for key, read, shape in self.objects:
            found = read(thing)
            if isinstance(found, list):
                line[key] = [shape.line(item, children) for item in found]
            else:
                line[key] = None if found is None else shape.told(found, children)
        for read, shape in self.connections:
            children.append((read(thing), shape))
        return line


def shape_of(schema: GraphQLSchema, query: str) -> Shape:
    """What a bulk query takes from the query's root. Raises BulkQueryError."""
    try:
        document = parse(query)
    except GraphQLError as error:
        raise BulkQueryError(f"Invalid bulk query: {error.message}") from None
    errors = validate(schema, document)
    if errors:
        raise BulkQueryError(f"Invalid bulk query: {'; '.join(error.message for error in errors)}")
    operation, *others = document.definitions
    if others or not isinstance(operation, OperationDefinitionNode):
        raise BulkQueryError("a bulk query is one operation, without fragments")
    if operation.operation is not OperationType.QUERY or schema.query_type is None:
        raise BulkQueryError("only queries can be run here")
    count = itertools.count()
    shape = _shape(operation.selection_set, schema.query_type, 0, count)
    if len(shape.connections) != 1 or shape.plain or shape.objects:
        raise BulkQueryError("Bulk queries must contain one connection at the root, and nothing else")
    if next(count) > MAX_CONNECTIONS:
        raise BulkQueryError(f"Bulk queries cannot contain more than {MAX_CONNECTIONS} connections.")
    return shape


def _shape(
    selections: SelectionSetNode, kind: GraphQLObjectType, depth: int, count: "itertools.count[int]"
) -> Shape:
    shape = Shape()
    for node in selections.selections:
        if not isinstance(node, FieldNode):
            raise BulkQueryError("a bulk query is one operation, without fragments")
        name, key = node.name.value, (node.alias or node.name).value
        definition = kind.fields.get(name)
        if definition is None:
            raise BulkQueryError(f"{name} cannot be read in bulk here")
        inner = get_named_type(definition.type)
        read = _reader(node)
        if is_connection(inner):
            if depth == MAX_DEPTH:
                raise BulkQueryError(f"Bulk queries cannot nest connections deeper than {MAX_DEPTH} levels.")
            next(count)
            shape.connections.append((read, _node_shape(node, inner, depth + 1, count)))
        elif isinstance(inner, GraphQLObjectType) and node.selection_set:
            inside = _shape(node.selection_set, inner, depth, count)
            if inside.connections and is_list_type(get_nullable_type(definition.type)):
                raise BulkQueryError("Bulk queries cannot contain a connection field within a list field.")
            shape.objects.append((key, read, inside))
        else:
            shape.plain.append((key, read))
    return shape


def _node_shape(
    connection: FieldNode, kind: GraphQLObjectType, depth: int, count: "itertools.count[int]"
) -> Shape:
    """The shape of `edges { node { … } }`."""
    selections, inner = connection.selection_set, kind
    for name in ("edges", "node"):
        fields = [
            node for node in (selections.selections if selections else ()) if isinstance(node, FieldNode)
        ]
        found = next((node for node in fields if node.name.value == name), None)
        step = get_named_type(inner.fields[name].type) if found else None
        if found is None or not isinstance(step, GraphQLObjectType):
            raise BulkQueryError(f"{connection.name.value} must be read as edges {{ node {{ … }} }} in bulk")
        selections, inner = found.selection_set, step
    if selections is None:
        raise BulkQueryError(f"{connection.name.value} selects nothing")
    shape = _shape(selections, inner, depth, count)
    if _has_connections(shape) and "id" not in dict(shape.plain):
        raise BulkQueryError(
            "The parent 'node' field for a nested connection must select the 'id' field without an alias"
        )
    return shape


def _has_connections(shape: Shape) -> bool:
    return bool(shape.connections) or any(_has_connections(inside) for _, _, inside in shape.objects)


def _reader(node: FieldNode) -> Callable[[Any], Any]:
    """Reads a field's value. `first` and `after` mean nothing in bulk."""
    name = node.name.value
    arguments = {
        argument.name.value: value_from_ast_untyped(argument.value)
        for argument in node.arguments
        if argument.name.value not in ("first", "after")
    }
    return reader_of(name, arguments)


def blocks(shape: Shape, root: Any) -> Iterator[tuple[list[bytes], int]]:
    """The lines of a bulk query's result, some at a time, each time with how many are of the root's own list.

    The shop is read only while the next block is asked for.
    """
    ((read, node_shape),) = shape.connections
    nodes = iter(read(root).everything())
    while things := list(itertools.islice(nodes, _BLOCK)):
        lines: list[bytes] = []
        level: list[tuple[str | None, Iterable[Any], Shape]] = [(None, things, node_shape)]
        while level:
            level = list(_write_level(level, lines))
        yield lines, len(things)


def _write_level(
    level: Iterable[tuple[str | None, Iterable[Any], Shape]], lines: list[bytes]
) -> Iterator[tuple[str, Iterable[Any], Shape]]:
    """Add the lines of one depth, each list with its parent's id; gives the lists below them."""
    for parent, things, shape in level:
        for thing in things:
            children: list[tuple[Connection, Shape]] = []
            line = shape.line(thing, children)
            for found, inner in children:
                yield line["id"], found.everything(), inner
            if parent is not None:
                line["__parentId"] = parent
            lines.append(orjson.dumps(line) + b"\n")
