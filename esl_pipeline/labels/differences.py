"""What differs between the label that hangs and the one that should."""

from collections.abc import Mapping
from typing import Any


def differences(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, tuple[str, str]]:
    """Field to (old, new) text, fields of `extend` as extend.key; only fields that differ and are filled on a side."""
    old, new = _flat(before), _flat(after)
    pairs = {name: (old.get(name, ""), new.get(name, "")) for name in [*old, *(set(new) - set(old))]}
    return {name: pair for name, pair in sorted(pairs.items()) if pair[0] != pair[1]}


def _flat(label: Mapping[str, Any] | None) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in (label or {}).items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": str(inner) for key, inner in value.items()}
        else:
            flat[name] = str(value)
    return flat
