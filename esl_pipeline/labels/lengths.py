"""How much may come from outside: the one table of lengths, whatever the source.

A text that is longer is cut where it comes in, and marked by its last character: it needs no note beside it, is the
same whichever way it came, and nobody takes it for the whole. The check text_cut tells people which field it was. What
has more parts than a product can have is not read at all.
"""

from collections.abc import Mapping
from typing import Any

from esl_pipeline.model.rows import VARIANTS

# In characters, by column.
LENGTHS: Mapping[str, int] = {
    **{column.name: column.longest for column in VARIANTS.columns if column.longest},
    **dict.fromkeys(("currency", "time_zone"), 64),
}
# Of a product.
MOST_VARIANTS = 2_048
# Objects and lists in one body: of a product with all its variants and images it is a tenth.
MOST_PARTS = 100_000

# A label's field after its template, which may multiply a text; no label shows as much.
FIELD_LENGTH = 500

CUT = "…"


def fitted(text: str, most: int) -> str:
    """The text, or as much of it as fits, which then ends in CUT."""
    return text if len(text) <= most else text[: most - 1] + CUT


def is_cut(text: str, most: int) -> bool:
    """Whether `fitted` has cut this text."""
    return len(text) == most and text.endswith(CUT)


def cut_texts(row: Mapping[str, Any]) -> list[str]:
    """The columns of a variant's row whose text was cut."""
    return [
        name
        for name, most in LENGTHS.items()
        if (text := row.get(name)) and len(text) >= most and is_cut(text, most)
    ]


def cut_fields(label: Mapping[str, Any]) -> list[str]:
    """The fields of a label, and of its extend, whose text was cut."""
    found = []
    for name, value in label.items():
        if isinstance(value, dict):
            found += [f"{name}.{key}" for key in cut_fields(value)]
        elif isinstance(value, str) and len(value) == FIELD_LENGTH and is_cut(value, FIELD_LENGTH):
            found.append(name)
    return found


def too_many_parts(raw: bytes) -> bool:
    """Whether a JSON text has more objects and lists than any product: each costs a hundred bytes once it is read."""
    return raw.count(b"{") + raw.count(b"[") > MOST_PARTS
