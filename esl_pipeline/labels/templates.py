"""Templates: how a shopkeeper says what a label's text is made of.

`{attribute}` stands for a value. A part in square brackets vanishes when any attribute inside it is empty:
`{title}[ - {variant_title}]`. `{{`, `}}`, `[[` and `]]` are literal brackets, read from left to right.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(r"(?P<literal>\{\{|\}\}|\[\[|\]\])|\{(?P<name>[^][{}]*)\}|(?P<text>[^][{}]+)|[][{}]")


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of the template: text with %s for each name; an optional one needs all its values."""

    pattern: str
    names: tuple[str, ...]
    optional: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template; made by `parse`."""

    parts: tuple[_Part, ...]
    attributes: frozenset[str]

    def render(self, values: Mapping[str, str]) -> str:
        """The text for these values, spaces at both ends stripped. KeyError when a named attribute is missing."""
        shown = []
        for part in self.parts:
            found = tuple([values[name] for name in part.names])
            if not part.optional or all(found):
                shown.append(part.pattern % found)
        return "".join(shown).strip()


def parse(text: str, attributes: Collection[str]) -> Template:
    """The template written in `text`, which may name the given attributes; the same text is parsed once.

    Raises ValueError, in a shopkeeper's words, for an attribute that is not known, a bracket without its partner, an
    optional part inside another, and one without an attribute, which could never vanish. Positions count from 1.
    """
    return _parse(text, frozenset(attributes))


@lru_cache(maxsize=256)
def _parse(text: str, known: frozenset[str]) -> Template:
    parts: list[_Part] = []
    pattern, names = "", list[str]()
    opened = 0  # position of the open square bracket, 0 outside
    for token in _TOKEN.finditer(text):
        position = token.start() + 1
        if token["literal"]:
            pattern += token["literal"][0]
        elif token["text"]:
            pattern += token["text"].replace("%", "%%")
        elif (name := token["name"]) is not None:
            if name not in known:
                raise ValueError(
                    f"the template names {{{name}}} at position {position}, which is not known; "
                    f"known are {', '.join(sorted(known))}"
                )
            pattern += "%s"
            names.append(name)
        elif token[0] == "[" and not opened:
            parts.append(_Part(pattern, tuple(names), optional=False))
            pattern, names, opened = "", [], position
        elif token[0] == "]" and opened:
            if not names:
                raise ValueError(
                    f"the optional part at position {opened} of the template names no attribute; "
                    "write [[ and ]] for brackets that are shown"
                )
            parts.append(_Part(pattern, tuple(names), optional=True))
            pattern, names, opened = "", [], 0
        else:
            raise _unbalanced(token[0], position)
    if opened:
        raise _unbalanced("[", opened)
    parts.append(_Part(pattern, tuple(names), optional=False))
    return Template(
        parts=tuple(part for part in parts if part.pattern),
        attributes=frozenset(name for part in parts for name in part.names),
    )


def _unbalanced(bracket: str, position: int) -> ValueError:
    return ValueError(
        f"the template has a {bracket} at position {position} without its partner, or inside an optional part; "
        f"write {bracket * 2} for one that is shown"
    )
