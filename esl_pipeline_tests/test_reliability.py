"""docs/reliability.md has a row for every case of the catalogues, and the tests that it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| ([FS]?\d+) \|(.*)\|(.*)\|(.*)\|$", (ROOT / "docs" / "reliability.md").read_text(), re.M
)


def test_every_case_has_one_row() -> None:
    found_in_the_field = [str(n) for n in range(1, 43)]
    cases = [f"F{n}" for n in range(1, 41)] + [f"S{n}" for n in range(1, 43)] + found_in_the_field
    assert [row[0] for row in ROWS] == cases


def test_every_row_is_filled_and_names_tests_that_exist() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "esl_pipeline_tests").rglob("test_*.py"))
    known = set(re.findall(r"^(?:(?:async )?def|class) (\w+)\b|^(\w+) = ", tests, re.M))
    known = {name for pair in known for name in pair}
    for case, done, named, showed in ROWS:
        assert done.strip() and showed.strip(), case
        names = re.findall(r"`(test_\w+)`", named)
        assert names, case
        for name in names:
            assert name in known, (case, name)
