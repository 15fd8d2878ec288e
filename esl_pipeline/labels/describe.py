"""The policy as a table for people: what `stores policy` prints and docs/configuration.md shows."""

import json
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from esl_pipeline.labels.policy import Policy


class Described(NamedTuple):
    """One setting of the policy."""

    name: str
    values: str
    default: str
    meaning: str


def describe_policy() -> list[Described]:
    """Every setting of Policy, in its order."""
    return [
        Described(name, _values(field.annotation), _default(field.default), field.description or "")
        for name, field in Policy.model_fields.items()
    ]


def _values(annotation: Any) -> str:
    """What may be written, e.g. `block`, `allow`; the rest by kind."""
    kinds = {bool: "true, false", int: "number", str: "text"}
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list of " + _values(get_args(annotation)[0])
    if get_args(annotation) and type(None) in get_args(annotation):
        return " or ".join([*(_values(a) for a in get_args(annotation) if a is not type(None)), "null"])
    if hasattr(annotation, "__metadata__"):
        return _values(annotation.__origin__)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ", ".join(annotation.model_fields) if len(annotation.model_fields) < 5 else "object"
    return kinds.get(annotation, "text")


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True, mode="json")
    return json.dumps(value, ensure_ascii=False)
