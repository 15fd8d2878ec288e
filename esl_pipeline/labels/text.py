"""Text that may stand on a label."""

import html
import re
import unicodedata
from html.entities import html5
from itertools import islice

import regex

_TAG = re.compile("</?[A-Za-z][^<>]*>")
# These end a line where they are shown: the words around them must not run together.
_BREAKING_TAG = re.compile(r"</?(?:br|div|h[1-6]|li|ol|p|td|th|tr|ul)\b[^<>]*>", re.IGNORECASE)
# Only with its semicolon: HTML reads "Tables&parasols" as a pilcrow. At most 10 digits: Python's int() refuses 4,301.
_ENTITY = re.compile("&(?:#[0-9]{1,10}|#[xX][0-9A-Fa-f]{1,8}|([A-Za-z][A-Za-z0-9]*));")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Bidirectional overrides and isolates can turn a price or a name around on the display (data-quality.md); the
# zero-width space and the byte order mark only hide differences. ZWJ and ZWNJ have a meaning and stay.
_INVISIBLE = re.compile("[\u202a-\u202e\u2066-\u2069\u200b\ufeff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SPACES = re.compile(r"\s+")

_CLUSTER = regex.compile(r"\X")
# An emoji is matched where it begins and goes with its whole grapheme cluster (skin tone, joined emoji, flag tags).
# A letter or digit before a lone skin tone is of the same cluster, but stays.
_EMOJI = regex.compile(
    r"""(?=
          \p{Emoji_Presentation}
        | [\p{So}\p{Extended_Pictographic}&&[\U0001F000-\U0001FAFF]]
        | [\p{Extended_Pictographic}--[©®™]] (?: \uFE0F | \p{Emoji_Modifier} | \u200D\p{Extended_Pictographic} )
        | [0-9\#*]\uFE0F?\u20E3
    )\X
    | (?<=[0-9\#*©®™])\uFE0F  # the sign itself stays, as text
    """,
    regex.VERSION1 | regex.VERBOSE,
)


def clean(text: str | None) -> str:
    """One line of plain NFC text, spaces folded; "" for None. Never raises.

    HTML tags go, then entities are unescaped exactly once: what was written `&lt;b&gt;` is shown as `<b>`, and
    `&amp;quot;` as `&quot;`. So cleaning twice may change a text again; clean once, where the text comes in. Control
    characters become spaces, bidi overrides and zero-width junk vanish, half a surrogate pair becomes U+FFFD.
    """
    if text is None:
        return ""
    if _is_plain(text):
        return text
    if "<" in text:
        text = _TAG.sub("", _BREAKING_TAG.sub(" ", text))
    if "&" in text:
        text = _ENTITY.sub(_unescaped, text)
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _CONTROL.sub(" ", _INVISIBLE.sub("", text))
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def without_emoji(text: str) -> str:
    """`text` without emoji, which label fonts lack, and without the spaces they leave; may be "".

    Letters and digits of every script, `#`, `*`, `©`, `®`, `™`, and signs that are text unless U+FE0F follows (arrows,
    `♥`, `✓`) stay.
    """
    if text.isascii():
        return text
    kept, count = _EMOJI.subn("", text)
    return _SPACES.sub(" ", kept).strip() if count else text


def cut(text: str, length: int) -> str:
    """At most `length` characters as a reader counts them (grapheme clusters, none split), no space at the end."""
    if len(text) > length:
        ends = [cluster.end() for cluster in islice(_CLUSTER.finditer(text), length)]
        text = text[: ends[-1]] if ends else ""
    return text.rstrip()


def _is_plain(text: str) -> bool:
    """Most texts: printable ASCII that needs nothing, told without regular expressions."""
    return (
        text.isascii()
        and text.isprintable()
        and "&" not in text
        and "<" not in text
        and "  " not in text
        and text == text.strip()
    )


def _unescaped(entity: re.Match[str]) -> str:
    """The character of one entity; a name that HTML does not know stays as written."""
    name = entity[1]
    return html5.get(f"{name};", entity[0]) if name else html.unescape(entity[0])
