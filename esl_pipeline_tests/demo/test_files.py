"""The demo's till: its day is the same for a seed, and the whole of it ends with every label right."""

import io
import json
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from esl_pipeline.demo.files import Article, FilesDemo
from esl_pipeline.demo.run import run_demo
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.files.listing import counts, read


def written(demo: FilesDemo, act: str) -> dict[str, bytes]:
    """The files of an act, without a pipeline that reads them."""
    getattr(demo, act)()
    folder = Path(demo.environment()["FILES_FOLDERS"].partition("=")[2])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_till_writes_the_same_for_a_seed_and_every_list_is_what_the_story_says() -> None:
    one, other = FilesDemo(), FilesDemo()
    with one.running(), other.running():
        assert written(one, "_open") == written(other, "_open")
        files = written(one, "_trade")
    full = read(files["artikel-full-1.csv"], "full", {})
    assert full.table.encoding == "Windows-1252" and counts(full)["held"] == 3
    assert counts(read(files["preise-changes-1.csv"], "changes", {})) == {"listed": 60, "deleted": 3}
    assert counts(read(files["preise-changes-2.csv"], "changes", {})) == {"listed": 1, "held": 1}
    assert not files["preise-changes-3.csv"].endswith(b"\n")
    assert read(files["artikel-full-0.csv"], "full", {}).rows == 49


def test_the_truth_of_an_odd_line_is_the_label_before() -> None:
    article = Article(1, "4006381333931", "Tee", "", Decimal("1.5"))
    assert article.label() == {"pc": "4006381333931", "pn": "Tee", "pp": "1.50", "pi": "1"}
    assert article.line()[-1] == "1,50"
    article.odd = {"Preis": "?"}
    assert article.label() is None and article.line()[-1] == "?"


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_whole_demo_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = io.StringIO()
    right = run_demo(load_settings(), Console(file=said, width=100), source="files", as_json=True)
    figures = json.loads(said.getvalue())
    assert right, figures
    # One was cut off; yesterday's list waited for somebody until the evening's was applied.
    assert figures["files"] == {"applied": 4, "refused": 2, "waiting": 0}
    assert figures["labels"]["on_shelf"] == figures["labels"]["expected"] > 300
    assert figures["night"]["repaired"] == {"missing": 3, "different": 5}
    assert figures["held_back"] == {"variants": 0, "expected": 0, "findings": {}}
    assert figures["webhooks"]["sent"] == 0
