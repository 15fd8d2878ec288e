"""What a database and a terminal can hold: text without NUL and without halves of characters. Pure."""

import re
from collections.abc import Iterator
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def unstorable(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Where in a JSON value a text (a name of a field too) cannot be stored -> (field with dots, what is wrong)."""
    if isinstance(value, str):
        if found := _UNSTORABLE.search(value):
            yield name, f"must not hold the character U+{ord(found[0]):04X}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from unstorable(key, name)
            yield from unstorable(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from unstorable(inner, f"{name}.{number}" if name else str(number))
