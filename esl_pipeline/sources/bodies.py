"""A signed body as a JSON object of a bearable size, or why it is of no use: the same for receiver and reader."""

from collections.abc import Mapping
from typing import Any

import orjson

from esl_pipeline.labels.lengths import MOST_PARTS, MOST_VARIANTS, too_many_parts


class UnusableError(Exception):
    """A signed body that says nothing we can use; the text is the reason that is kept with it."""


def parsed(raw: bytes) -> dict[str, Any]:
    """The body. Raises UnusableError."""
    if too_many_parts(raw):
        raise UnusableError(f"the body has more than {MOST_PARTS:,} objects and lists, as no product has")
    try:
        # orjson, because the standard parser takes NaN and can exhaust the stack on deep nesting.
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise UnusableError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(body, dict):
        raise UnusableError("the body is not a JSON object")
    return body


def check_counts(product: Mapping[str, Any]) -> None:
    """Raises UnusableError when a product's body lists more variants than a product can have."""
    for name in ("variants", "variant_gids"):
        listed = product.get(name)
        if isinstance(listed, list) and len(listed) > MOST_VARIANTS:
            raise UnusableError(
                f"the body lists {len(listed):,} {name}, and a product has at most {MOST_VARIANTS:,} variants"
            )
