"""Templates: what a shopkeeper writes, what the label shows, and what is refused with which words."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from esl_pipeline.labels.templates import parse

KNOWN = ("title", "variant_title", "vendor")
VALUES = {"title": "Tea", "variant_title": "200 g", "vendor": ""}
# A value is shown as it is, whatever it holds.
TEXTS = st.text(alphabet=st.sampled_from("{}[]% sa\\é"), max_size=6)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("fixed", "fixed"),
        ("{title}", "Tea"),
        ("{title}{title}", "TeaTea"),
        ("{title}[ - {variant_title}]", "Tea - 200 g"),
        ("{title}[ by {vendor}]", "Tea"),
        ("{title}[ {variant_title} by {vendor}]", "Tea"),
        ("[{vendor} ]{title}[ {variant_title}]", "Tea 200 g"),
        ("{vendor} {title} ", "Tea"),
        ("{title}  {title}", "Tea  Tea"),
        ("{{title}}", "{title}"),
        ("{{{title}}}", "{Tea}"),
        ("[[{title}]]", "[Tea]"),
        ("{title}[ [[{variant_title}]]]", "Tea [200 g]"),
        ("{title}[ [[{vendor}]]]", "Tea"),
        ("100 % {title} %s %(title)s", "100 % Tea %s %(title)s"),
        ("{title}[\n{variant_title}]", "Tea\n200 g"),
    ],
)
def test_what_is_shown(template: str, expected: str) -> None:
    assert parse(template, KNOWN).render(VALUES) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{colour}", r"names \{colour\} at position 1, .* known are title, variant_title, vendor"),
        ("a {Title}", r"names \{Title\} at position 3"),
        ("{ title }", r"names \{ title \} at position 1"),
        ("{}", r"names \{\} at position 1"),
        ("{title!r}", r"title!r"),
        ("{title.__class__}", r"title.__class__"),
        ("[{colour}]", r"names \{colour\} at position 2"),
        ("{title", r"a \{ at position 1"),
        ("abc {", r"a \{ at position 5"),
        ("{title}}", r"a \} at position 8"),
        ("{ti{tle}", r"a \{ at position 1 .*write \{\{"),
        ("[{title}", r"a \[ at position 1"),
        ("{title}]", r"a \] at position 8 .*write \]\]"),
        ("[{title}[{vendor}] ]", r"a \[ at position 9 .*inside an optional part"),
        ("{title} [sale]", r"optional part at position 9 .* no attribute; write \[\[ and \]\]"),
        ("{title}[]", r"optional part at position 8"),
    ],
)
def test_what_is_refused(template: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(template, KNOWN)


def test_a_template_names_its_attributes() -> None:
    assert parse("{title}[ {vendor}] {{variant_title}}", KNOWN).attributes == {"title", "vendor"}
    assert parse("fixed", KNOWN).attributes == frozenset()


@pytest.mark.parametrize("template", ["{title}", "[{vendor} {title}]"])
def test_a_missing_value_is_a_programming_error(template: str) -> None:
    with pytest.raises(KeyError, match="title"):
        parse(template, KNOWN).render({"vendor": ""})


def test_the_same_text_is_parsed_once() -> None:
    assert parse("{title} once", KNOWN) is parse("{title} once", frozenset(KNOWN))
    with pytest.raises(ValueError, match="not known"):
        parse("{title} once", ("vendor",))


@given(TEXTS)
def test_any_text_can_be_written_literally(text: str) -> None:
    escaped = "".join(2 * c if c in "{}[]" else c for c in text)
    assert parse(escaped, ()).render({}) == text.strip()


@given(TEXTS, TEXTS)
def test_values_are_never_read_as_templates(title: str, variant_title: str) -> None:
    shown = parse("<{title}[ - {variant_title}]>", KNOWN).render(
        {"title": title, "variant_title": variant_title}
    )
    assert shown == (f"<{title} - {variant_title}>" if variant_title else f"<{title}>")


@given(TEXTS | st.text())
def test_any_template_is_parsed_or_refused(text: str) -> None:
    try:
        template = parse(text, KNOWN)
    except ValueError:
        assert set(text) & set("{}[]")
    else:
        assert template.render(VALUES) == template.render(VALUES).strip()
