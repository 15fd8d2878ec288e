"""The `query:` argument of a list: the part of Shopify's search syntax that a pipeline needs, and no more.

Comparisons (`updated_at:>='2026-03-01T00:00:00Z'`, `id:5`, `status:running`) joined by AND, by OR, or by standing
side by side, with parentheses. Shopify ignores what it does not know; this refuses it, so that a mistake is seen.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

Match = Callable[[Any], bool]
Fields = Mapping[str, tuple[Callable[[str], Any], Callable[[Any], Any]]]
"""What can be searched by: how to read a value in the search, and the same of a thing."""

_TOKEN = re.compile(
    r"""\s*(?: (?P<mark>[()]) | (?P<join>AND|OR)(?![\w:])
    | (?P<field>\w+):(?P<sign><=|>=|<|>|) (?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>[^\s()'"]+)) )""",
    re.VERBOSE,
)
_SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class SearchError(Exception):
    """A search that this sandbox does not understand; the message says at which place."""


def parse(text: str, fields: Fields) -> Match:
    """What `text` asks for, as a test of one thing. Raises SearchError."""
    tokens = list(_tokens(text))
    match = _either(tokens, fields)
    if tokens:
        raise SearchError(f"{tokens[0].group().strip()!r} is not expected there in {text!r}")
    return match


def _tokens(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while text[at:].strip():
        token = _TOKEN.match(text, at)
        if token is None:
            raise SearchError(f"{text[at:].strip()!r} is not understood")
        at = token.end()
        yield token


def _either(tokens: list[re.Match[str]], fields: Fields) -> Match:
    matches = [_all(tokens, fields)]
    while tokens and tokens[0]["join"] == "OR":
        tokens.pop(0)
        matches.append(_all(tokens, fields))
    return lambda thing: any(match(thing) for match in matches)


def _all(tokens: list[re.Match[str]], fields: Fields) -> Match:
    matches = [_term(tokens, fields)]
    while tokens and tokens[0]["join"] != "OR" and tokens[0]["mark"] != ")":
        if tokens[0]["join"]:
            tokens.pop(0)
        matches.append(_term(tokens, fields))
    return lambda thing: all(match(thing) for match in matches)


def _term(tokens: list[re.Match[str]], fields: Fields) -> Match:
    if not tokens:
        raise SearchError("the search ends where a comparison is missing")
    token = tokens.pop(0)
    if token["mark"] == "(":
        inner = _either(tokens, fields)
        if not tokens or tokens.pop(0)["mark"] != ")":
            raise SearchError("a parenthesis is not closed")
        return inner
    if token["field"] is None:
        raise SearchError(f"{token.group().strip()!r} stands where a comparison is missing")
    if token["field"] not in fields:
        raise SearchError(f"this sandbox cannot search by {token['field']}, only by {', '.join(fields)}")
    (convert, read), compare = fields[token["field"]], _SIGNS[token["sign"]]
    value = convert(token["single"] or token["double"] or token["bare"] or "")
    return lambda thing: compare(read(thing), value)


def a_time(text: str) -> datetime:
    """The value of a comparison with a time; it must say its zone."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise SearchError(f"{text!r} is no time") from None
    if at.tzinfo is None:
        raise SearchError(f"{text!r} has no time zone")
    return at


def an_id(text: str) -> int:
    """The value of a comparison with an id."""
    if not text.isdecimal():
        raise SearchError(f"{text!r} is no id")
    return int(text)
