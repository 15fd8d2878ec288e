"""SQL that is read like code: no long functions, no long lines, nothing said twice."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

import esl_pipeline.buffer

FOLDER = Path(esl_pipeline.buffer.__file__).parent
FILES = sorted([*FOLDER.glob("functions/*.sql"), *FOLDER.glob("migrations/*.sql")])

LONGEST_FUNCTION, LONGEST_LINE, LONGEST_COPY = 60, 120, 7

# Not done yet: take each out when it is.
NOT_YET: set[str] = set()
DONE = [file for file in FILES if file.name not in NOT_YET]


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def functions(file: Path) -> dict[str, int]:
    """Each function and its length, from its first line to its last."""
    found, name, begun = {}, "", 0
    for number, line in enumerate(lines(file), 1):
        if match := re.match(r"create or replace function ([\w.]+)", line):
            assert not name, f"{name} has no end"
            name, begun = match[1], number
        if name and line.endswith("$$;"):
            found[name], name = number - begun + 1, ""
    assert not name, f"{name} has no end"
    return found


def copies(one: Path, other: Path) -> list[str]:
    """The first lines of runs that both files have; blank lines and lines of one bracket count for nothing."""
    length = LONGEST_COPY + 1
    texts = [[line.strip() for line in lines(file) if re.search(r"\w", line)] for file in (one, other)]
    runs = [{tuple(text[n : n + length]) for n in range(len(text) - length + 1)} for text in texts]
    return sorted(run[0] for run in runs[0] & runs[1])


@pytest.mark.parametrize("file", DONE, ids=lambda file: file.name)
def test_functions_and_lines_are_short(file: Path) -> None:
    assert {name: n for name, n in functions(file).items() if n > LONGEST_FUNCTION} == {}
    assert [n for n, line in enumerate(lines(file), 1) if len(line) > LONGEST_LINE] == []


def test_the_functions_of_every_file_are_found() -> None:
    counted = sum(len(functions(file)) for file in FILES)
    written = sum(file.read_text(encoding="utf-8").count("create or replace function") for file in FILES)
    assert counted == written > 100


def test_no_two_indexes_have_one_name() -> None:
    """The second would not be made, for each is made only where there is none of its name."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("migrations/*.sql"))]
    names = re.findall(r"create (?:unique )?index if not exists (\w+)", "".join(texts))
    assert len(names) > 50 and sorted(names) == sorted(set(names))


def test_no_two_files_say_the_same() -> None:
    pairs = [(one, other) for n, one in enumerate(DONE) for other in DONE[n + 1 :]]
    found = {(a.name, b.name): runs for a, b in pairs if (runs := copies(a, b))}
    assert found == {}


def test_every_row_type_is_said_once_and_used() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in FILES}
    names = re.findall(r"^create type esl\.made_(\w+)", texts.pop("0_rows.sql"), re.MULTILINE)
    assert names and all(a != b for a, b in pairwise(sorted(names)))
    unused = [name for name in names if not any(f"esl.{name}" in text for text in texts.values())]
    assert unused == []
