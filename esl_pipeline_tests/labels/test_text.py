"""Text for labels: one clean line, whatever came in; without emoji and cut where asked."""

import json
import unicodedata

import hypothesis.strategies as st
import pytest
import regex
from hypothesis import example, given

from esl_pipeline.labels.text import clean, cut, without_emoji
from esl_pipeline_tests.shared_data import DATA

NAUGHTY = DATA / "security" / "blns.json"
needs_naughty = pytest.mark.shared_data("data/security/blns.json")

BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
MARKUP = st.lists(
    st.sampled_from(
        ["<b>", "</b>", "<br/>", "<", ">", "&amp;", "&lt;", "&quot;", "&#0;", "&#x202e;", "&#10;", "&", ";"]
    )
    | st.text(max_size=3)
).map("".join)
EMOJI = st.lists(
    st.sampled_from(
        ["👍", "🏽", "\u200d", "\ufe0f", "\u20e3", "🇩", "❤", "⛓", "💥", "©", "1", "#", "a", "é", "→", " "]
    )
).map("".join)


def naughty_strings() -> list[str]:
    strings: list[str] = json.loads(NAUGHTY.read_text(encoding="utf-8"))
    assert len(strings) > 400
    return strings


def assert_is_clean(text: str) -> None:
    assert text == text.strip()
    assert "  " not in text
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not BIDI & set(text)
    assert not {"\u200b", "\ufeff"} & set(text)
    assert unicodedata.is_normalized("NFC", text)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        (None, ""),
        ("", ""),
        ("Green tea, 200 g (loose) > 50%", "Green tea, 200 g (loose) > 50%"),
        ("two  spaces", "two spaces"),
        (" around ", "around"),
        ("  Crème\tfraîche \n 200 g ", "Crème fraîche 200 g"),
        ("Creme\u0301", "Crem\u00e9"),
        ("\u202e99.1\u202c", "99.1"),
        ("a\u2066b\u2069", "ab"),
        ("a\x00b\x1b[31m", "a b [31m"),
        ("line\u2028break\u00a0space", "line break space"),
        ("\ufeffzero\u200bwidth", "zerowidth"),
        ("👩\u200d👩\u200d👧 family", "👩\u200d👩\u200d👧 family"),
        ("زعتر بلدي", "زعتر بلدي"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("<b>Bio</b>, 200 g", "Bio, 200 g"),
        ('<a href="x" onclick="y">Tea</a>', "Tea"),
        ("one<br>two<BR />three<p>four</p>five", "one two three four five"),
        ("<script>alert(1)</script>", "alert(1)"),
        ("Size < 5", "Size < 5"),
        ("3 <4> 5 <- 6 <3", "3 <4> 5 <- 6 <3"),
        ("<p>Tea<p>green<LI>", "Tea green<LI>"),
        ("<B>Bio</b> <FONT COLOR=red size='2'>tea</FONT>", "Bio tea"),
        ("Tea<!-- <b> in a > comment --> green<!-- open", "Tea green<!-- open"),
        ("<!DOCTYPE html><o:p></o:p>Tea<hr/>", "Tea"),
        ('<img src="a>b.png" alt=x>Tea', "Tea"),
        ("open <b", "open <b"),
        ("Salt &amp; pepper", "Salt & pepper"),
        ("&amp;quot;", "&quot;"),
        ("&lt;b&gt;bold&lt;/b&gt;", "<b>bold</b>"),
        ("&eacute;&#233;&#xE9;", "ééé"),
        ("a&nbsp;&nbsp;b", "a b"),
        ("a&#0;b", "a\ufffdb"),
        ("a&#xD800;b", "a\ufffdb"),
        ("a&#x202e;b&#x2028;c&#10;d", "ab c d"),
        ("e&#x301;", "é"),
        ("M&M, R&D &copy 2 &nosuch; &;", "M&M, R&D &copy 2 &nosuch; &;"),
        ("Tables&parasols; chairs", "Tables&parasols; chairs"),
        ("&#99999999;", "\ufffd"),
        (f"&#{'9' * 5000};", f"&#{'9' * 5000};"),
        ("half \ud83d", "half \ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "😀"),
    ],
)
def test_what_is_cleaned(given_text: str | None, expected: str) -> None:
    assert clean(given_text) == expected


@pytest.mark.parametrize(
    "title",
    [
        "T-Shirt <M>",
        "Cable <USB-C to A> 1 m",
        "a<b",
        "1 < 2 > 0",
        "T-Shirt <S>",
        "T-Shirt <small>",
        "Sizes <S>, <M> and <L>",
        "<Map of Europe>",
        "Stand <Base>, <Base black>",
        "Battery <AA> (<A>)",
        "a<b and c>d",
        "<a = b>",
        "<b-b>",
        "Mail <tea@example.com>",
        "<https://example.com>",
        "<!>",
    ],
)
def test_field_32_what_is_not_html_stays(title: str) -> None:
    assert clean(title) == title


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="&<>\u200b\ufeff"), max_size=20)
)
def test_field_32_text_in_brackets_that_is_no_element_stays(text: str) -> None:
    kept = f"<-{clean(text)}->"
    assert clean(kept) == kept


@given(
    st.sampled_from(["b", "span", "h1", "strong", "table"]),
    st.dictionaries(
        st.sampled_from(["class", "style", "data-x"]), st.text("abc >:;'", max_size=9), max_size=3
    ),
    st.text("ac <M> 12", max_size=9),
)
def test_field_32_html_goes_with_its_attributes(name: str, attributes: dict[str, str], text: str) -> None:
    tag = " ".join([name, *(f'{key}="{value}"' for key, value in attributes.items())])
    assert clean(f"<{tag}>{text}</{name}>") == clean(text)


@given(st.one_of(st.text(), MARKUP))
@example("\u037e\u0340 \u2000")
@example("\x1c\x85")
def test_clean_text_is_one_line_of_visible_text(text: str) -> None:
    assert_is_clean(clean(text))


@given(st.text(st.characters(exclude_characters="&<")))
def test_without_markup_clean_text_stays_as_it_is(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_the_short_way_for_plain_text_gives_the_same(text: str) -> None:
    assert clean(text) == clean(f"{text}\u200b")


@needs_naughty
def test_naughty_strings_become_clean_and_keep_their_visible_characters() -> None:
    for text in naughty_strings():
        assert_is_clean(clean(text))
        if "<" not in text and "&" not in text:
            letters = [c for c in text if c.isascii() and c.isalnum()]
            assert [c for c in clean(text) if c.isascii() and c.isalnum()] == letters


@pytest.mark.long
def test_cleaning_hostile_text_takes_no_long_time() -> None:
    """Seconds if any pattern needed quadratic time; the test's own time limit fails it."""
    pieces = (
        "<a",
        "&a",
        "&#",
        " ",
        "<br ",
        "</",
        "a\u0301",
        "\u200b",
        "<!--",
        "-->",
        "<!doctype ",
        "<a b=",
        '<a b="',
    )
    for piece in (*pieces, "<a b='\"", "<b>", "<a b=c ", "<a  ", " b=''"):
        clean(piece * 200_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tea", "Tea"),
        ("Tea 🍵 green", "Tea green"),
        ("🎉Sale🎉", "Sale"),
        ("👩\u200d👩\u200d👧\u200d👦 family", "family"),
        ("👍🏽 good ✌🏻", "good"),
        ("🇩🇪 from Germany", "from Germany"),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f England", "England"),
        ("1\ufe0f\u20e3 one #\u20e3", "one"),
        ("❤\ufe0f love ⚡", "love"),
        ("⛓\u200d💥 broken ❤\u200d🔥", "broken"),
        ("🏴\u200d☠\ufe0f pirate", "pirate"),
        ("🀄 🂡 🅰 🌶 🫠", ""),
        ("→\ufe0f", "→\ufe0f"),
        ("➡\ufe0f ↔\ufe0f way", "way"),
        (
            "12 #1 * © ® ™ → ↔ ♥ ✓ ½ € 日本語 한국어 𠮷 ไทย 🄯x",
            "12 #1 * © ® ™ → ↔ ♥ ✓ ½ € 日本語 한국어 𠮷 ไทย x",
        ),
        ("Brand™\ufe0f ©\ufe0f 5\ufe0f", "Brand™ © 5"),
        ("Size 5🏽, a🏽", "Size 5, a"),
        ("é  double", "é  double"),
        ("", ""),
    ],
)
def test_emoji_go_and_letters_stay(text: str, expected: str) -> None:
    assert without_emoji(text) == expected


@given(st.one_of(st.text(), EMOJI))
def test_without_emoji_nothing_is_added_and_no_letter_or_digit_is_lost(text: str) -> None:
    kept = without_emoji(text)
    assert without_emoji(text.replace("\u20e3", "")).count("1") == text.count("1"), (
        "only keycaps take a digit"
    )
    assert not regex.search(r"\p{Emoji_Presentation}", kept)
    letters = regex.compile(r"[\p{L}\p{Sc}]")
    assert letters.findall(kept) == letters.findall(text)


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("Green tea", 20, "Green tea"),
        ("Green tea", 9, "Green tea"),
        ("Green tea", 8, "Green te"),
        ("Green tea", 6, "Green"),
        ("Green tea", 0, ""),
        ("short ", 20, "short"),
        ("cafe\u0301 au lait", 4, "cafe\u0301"),
        ("👩\u200d👩\u200d👧 family", 1, "👩\u200d👩\u200d👧"),
        ("🇩🇪🇫🇷", 1, "🇩🇪"),
        ("한국어", 2, "한국"),
        ("नमस्ते", 2, "नम"),
    ],
)
def test_cut(text: str, length: int, expected: str) -> None:
    assert cut(text, length) == expected


@given(st.one_of(st.text(), EMOJI), st.integers(0, 12))
def test_a_cut_is_a_beginning_of_whole_characters(text: str, length: int) -> None:
    short, clusters = cut(text, length), regex.findall(r"\X", text)
    assert len(regex.findall(r"\X", short)) <= length
    assert short == "".join(clusters[:length]).rstrip()
    assert cut(short, length) == short


@needs_naughty
def test_naughty_strings_can_be_cut_and_freed_of_emoji() -> None:
    for text in naughty_strings():
        assert without_emoji(without_emoji(text)) == without_emoji(text)
        assert text.startswith(cut(text, 10))
