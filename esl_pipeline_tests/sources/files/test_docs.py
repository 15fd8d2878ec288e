"""docs/sources/files.md says what is so."""

import re
import sys
from pathlib import Path

import pytest

from esl_pipeline.commands import cli, shared
from esl_pipeline.sources.files.columns import NAMES
from esl_pipeline.sources.files.listing import read
from esl_pipeline.sources.files.table import normal

PAGE = (Path(__file__).parents[3] / "docs" / "sources" / "files.md").read_text(encoding="utf-8")
FULL, CHANGES = re.findall(r"^```csv\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_example_is_read_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (said,) = re.findall(r"files check articles-full.csv\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "articles-full.csv").write_bytes(FULL.encode("cp1252"))
    monkeypatch.setattr(shared.out, "width", 200)
    monkeypatch.setattr(sys, "argv", ["esl-pipeline", "files", "check", str(tmp_path / "articles-full.csv")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert capsys.readouterr().out == said


def test_the_change_list_fits_it() -> None:
    changed, gone = read(CHANGES.encode(), "changes", {}).entries()
    assert (changed.id, changed.said["price"], gone.id, gone.is_deleted) == ("1001", "2.99", "1005", True)


def test_every_field_is_named_and_is_found_as_it_says() -> None:
    table = dict(re.findall(r"^\| (`[a-z_`, ]+) \| (.+) \|$", PAGE, re.MULTILINE))
    fields = {field: names for key, names in table.items() for field in re.findall("[a-z_]+", key)}
    assert fields.keys() == NAMES.keys()
    for field in ("id", "code", "title", "price", "compare_at_price"):
        for name in fields[field].replace("…", "").split(","):
            assert normal(name) in NAMES[field], name
