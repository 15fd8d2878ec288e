"""Text that may stand on a label."""

import html
import re
import unicodedata
from html.entities import html5
from itertools import islice

import regex

# What HTML calls its elements. Anything else in angle brackets is the shop's own text: a size <M>, <USB-C to A>.
_ELEMENTS = (
    "a|abbr|acronym|address|applet|area|article|aside|audio|b|base|bdi|bdo|big|blink|blockquote|body|br|"
    "button|canvas|caption|center|cite|code|col|colgroup|data|datalist|dd|del|details|dfn|dialog|dir|div|"
    "dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset|h1|h2|h3|h4|h5|h6|head|"
    "header|hgroup|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|marquee|math|"
    "menu|meta|meter|nav|nobr|noscript|object|o:p|ol|optgroup|option|output|p|param|picture|pre|progress|"
    "q|rp|rt|ruby|s|samp|script|section|select|slot|small|source|span|strike|strong|style|sub|summary|"
    "sup|svg|table|tbody|td|template|textarea|tfoot|th|thead|time|title|tr|track|tt|u|ul|var|video|wbr|"
    "xmp"
)
# These have no other half, or may be without it.
_ALONE = {"br", "hr", "wbr", "p", "li", "td", "th", "tr", "dt", "dd"}
# Each attribute has a value: "<Map of Europe>" and "<Base black>" have none. Possessive, so that time is linear.
_TAG = re.compile(
    rf"""<(?P<end>/?)(?P<name>{_ELEMENTS})
    (?P<attributes>(?:\s++[^\s"'<>/=]++\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'=<>`]++))*+)
    \s*+(?P<empty>/?)>""",
    re.IGNORECASE | re.VERBOSE,
)
_DOCTYPE = re.compile("<!doctype [^<>]*>", re.IGNORECASE)
# These end a line where they are shown: the words around them must not run together.
_BREAKING = re.compile("br|dd|div|dt|h[1-6]|hr|li|ol|p|td|th|tr|ul")
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

    HTML goes (comments, and tags of elements that HTML knows), nothing else in angle brackets does. Then entities are
    unescaped exactly once: what was written `&lt;b&gt;` is shown as `<b>`, and `&amp;quot;` as `&quot;`. So cleaning
    twice may change a text again; clean once, where the text comes in. Control characters become spaces, bidi overrides
    and zero-width junk vanish, half a surrogate pair becomes U+FFFD.
    """
    if text is None:
        return ""
    if _is_plain(text):
        return text
    if "<" in text:
        text = _without_html(text)
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


def _without_html(text: str) -> str:
    text = _DOCTYPE.sub("", _without_comments(text))
    # A size <S> or <Small> looks like a tag: without attributes it is one only where its other half is there too.
    ended = {tag["name"].lower() for tag in _TAG.finditer(text) if tag["end"]}

    def replaced(tag: re.Match[str]) -> str:
        name = tag["name"].lower()
        if tag["end"] or tag["empty"] or tag["attributes"] or name in ended or _may_be_alone(tag["name"]):
            return " " if _BREAKING.fullmatch(name) else ""
        return tag[0]

    return _TAG.sub(replaced, text)


def _may_be_alone(name: str) -> bool:
    """`<br>` and `<p>` may; `<P>` and `<Base>` are rather words."""
    return name in _ALONE or name.lower() in ("br", "hr")


def _without_comments(text: str) -> str:
    kept, rest = "", text
    while (start := rest.find("<!--")) >= 0 and (end := rest.find("-->", start + 2)) >= 0:
        kept, rest = kept + rest[:start], rest[end + 3 :]
    return kept + rest


def _unescaped(entity: re.Match[str]) -> str:
    """The character of one entity; a name that HTML does not know stays as written."""
    name = entity[1]
    return html5.get(f"{name};", entity[0]) if name else html.unescape(entity[0])
