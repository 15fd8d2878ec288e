"""What a call of the Admin API costs, and the bucket that it is paid from.

An object costs 1, a scalar nothing, a mutation 10; a connection costs 2, and its nodes once for each of 2 ln(size)
rounded down, `size` being `first` or, for the actual cost, how many came. That is what Shopify says in its community
forum and what its answers show (250 variants with an inventory item each: 25 points), not an old article's linear sum.
"""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    get_named_type,
    value_from_ast_untyped,
)

MAX_QUERY_COST = 1_000
_MUTATION_COST = 10
# Wrappers that Shopify counts as values.
_FREE = {"pageInfo"}

Data = Mapping[str, Any]


def is_connection(kind: object) -> TypeGuard[GraphQLObjectType]:
    """Whether a type is a list with pages."""
    return isinstance(kind, GraphQLObjectType) and kind.name.endswith("Connection")


class Costs:
    """Reckons the cost of a valid document; of what it asks for, or of what came back."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        self._schema, self._variables = schema, variables
        self._fragments = {
            node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)
        }
        self._operation = next(n for n in document.definitions if isinstance(n, OperationDefinitionNode))

    def requested(self) -> int:
        """In points, before anything is read."""
        return self._total(None)

    def actual(self, data: Data) -> int:
        """In points, of the answer's data."""
        return self._total(data)

    def _total(self, data: Data | None) -> int:
        if self._operation.operation is OperationType.MUTATION:
            return _MUTATION_COST * len(self._operation.selection_set.selections)
        root = self._schema.query_type
        return self._selection(self._operation.selection_set, root, data) if root else 0

    def _selection(self, selections: SelectionSetNode, kind: GraphQLObjectType, data: Data | None) -> int:
        return sum(self._field(field, kind, data) for field in self._fields(selections))

    def _field(self, field: FieldNode, parent: GraphQLObjectType, data: Data | None) -> int:
        definition = parent.fields.get(field.name.value)
        if definition is None or field.selection_set is None or field.name.value in _FREE:
            return 0  # a scalar, or about the schema itself
        kind = get_named_type(definition.type)
        if not isinstance(kind, GraphQLObjectType):
            return 0
        key = field.alias.value if field.alias else field.name.value
        found = None if data is None else data.get(key)
        if data is not None and found is None:
            return 1  # looked for, and not there
        if is_connection(kind):
            return 2 + self._nodes(field, kind, found)
        if isinstance(found, list):
            found = found[0] if found else None
        return 1 + self._selection(field.selection_set, kind, found)

    def _nodes(self, connection: FieldNode, kind: GraphQLObjectType, found: Data | None) -> int:
        """The cost of a connection's nodes; of the dearest of those that came."""
        size = self._first(connection) if found is None else 0
        dearest = 0
        for field in self._fields(connection.selection_set):
            if field.name.value not in ("nodes", "edges") or field.selection_set is None:
                continue
            inside = get_named_type(kind.fields[field.name.value].type)
            if not isinstance(inside, GraphQLObjectType):
                continue
            items: list[Data | None] = [None]
            if found is not None:
                items = list(found[field.alias.value if field.alias else field.name.value])
                size = max(size, len(items))
            own = 1 if field.name.value == "nodes" else 0  # an edge's node counts itself
            costs = [own + self._selection(field.selection_set, inside, item) for item in items]
            dearest = max([dearest, *costs])
        return dearest * math.floor(2 * math.log(max(2, size))) if size else 0

    def _first(self, connection: FieldNode) -> int:
        for argument in connection.arguments:
            if argument.name.value == "first":
                return int(value_from_ast_untyped(argument.value, dict(self._variables)) or 0)
        return 1

    def _fields(self, selections: SelectionSetNode | None) -> Iterator[FieldNode]:
        for node in selections.selections if selections else ():
            if isinstance(node, FieldNode):
                yield node
            elif isinstance(node, InlineFragmentNode):
                yield from self._fields(node.selection_set)
            elif isinstance(node, FragmentSpreadNode):
                yield from self._fields(self._fragments[node.name.value].selection_set)


class Bucket:
    """The points that a client may spend; they come back at so many a second. Safe to share between threads."""

    def __init__(self, size: float = 2_000, restore_rate: float = 100) -> None:
        self.size, self.restore_rate = size, restore_rate
        self._available, self._at = size, time.monotonic()
        self._lock = threading.Lock()

    def covers(self, cost: float) -> bool:
        """Whether a call of this cost may be made now."""
        with self._lock:
            return self._refilled() >= cost

    def spend(self, cost: float) -> None:
        """Pay for a call."""
        with self._lock:
            self._available = self._refilled() - cost

    def status(self) -> dict[str, float]:
        """What an answer says of it."""
        with self._lock:
            available = math.floor(self._refilled())
        return {
            "maximumAvailable": self.size,
            "currentlyAvailable": available,
            "restoreRate": self.restore_rate,
        }

    def _refilled(self) -> float:
        now = time.monotonic()
        self._available = min(self.size, self._available + (now - self._at) * self.restore_rate)
        self._at = now
        return self._available
