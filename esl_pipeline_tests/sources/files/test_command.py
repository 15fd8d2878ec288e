"""`esl-pipeline files`: what a person is told, and what a dry run says."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esl_pipeline.commands import cli, shared
from esl_pipeline_tests.sources.files.conftest import Till

TEA, MILK = "4006381333931;Tea;1,99", "4006381333948;Milk;0,99"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(shared.out, "width", 250)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["esl-pipeline", "files", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


@pytest.fixture
def here(till: Till, monkeypatch: pytest.MonkeyPatch) -> Till:
    monkeypatch.setenv("ESL_DATABASE_URL", till.world.dsn)
    return till


def test_a_dry_run_says_what_a_file_would_be_read_as_and_needs_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "full.csv"
    file.write_bytes(f"EAN;Name;Preis\n{TEA}\n4.00638E+12;Müsli;abc\n".encode("cp1252"))
    code, said = run("check", str(file))
    assert code == 0
    assert (
        "full.csv would be read" in said
        and "a full list, Windows-1252, delimiter ;, 2 rows: 1 listed, 1 held" in said
    )
    assert "line 3: the price 'abc' is no number" in said and "line 3: a spreadsheet has made" in said


def test_a_dry_run_of_what_would_be_refused_fails(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "full.csv"
    file.write_text(f"EAN;Name;Preis\n{TEA}")
    code, said = run("check", str(file))
    assert code == 1 and "would be refused: it is cut off: line 2 has no end" in said


def test_a_dry_run_for_a_shop_knows_its_columns_and_its_last_list(
    run: Run, here: Till, tmp_path: Path
) -> None:
    here.write("full.csv", TEA, MILK, at=1)
    here.read_all()
    mapping = here.world.buffer.mapping_list()[0]
    here.world.buffer.mapping_update(mapping["id"], {"settings": {"columns": {"price": "Betrag"}}})
    file = tmp_path / "full-2.csv"
    file.write_text(f"EAN;Name;Preis;Betrag\n{TEA};5,00\n")
    code, said = run("check", str(file), "--shop", "corner")
    assert code == 1 and "would wait for `files approve`: it lists 1 products, and full.csv" in said
    assert "price            Betrag" in said
    assert len(here.states()) == 1  # and nothing has changed


def test_what_waits_is_listed_and_approved_by_name(run: Run, here: Till) -> None:
    here.write("full.csv", TEA, MILK, at=1)
    here.read_all()
    here.write("full-2.csv", TEA, at=2)
    here.read_all()
    code, said = run("list", "corner")
    assert code == 0
    assert [line.split()[1] for line in said.splitlines()[1:]] == ["full-2.csv", "full.csv"]
    assert "waiting" in said and "labels would go" in said
    assert run("approve", "corner", "full.csv")[0] == 1
    code, said = run("approve", "corner", "full-2.csv")
    assert code == 0 and "may be read" in said
    (row, _) = here.world.buffer.files_list()
    assert row["state"] == "approved" and row["approved_by"].endswith("esl-pipeline files approve")
    assert here.night() == {"4006381333931": "1.99"}


def test_a_trace_names_the_file(run: Run, here: Till, capsys: pytest.CaptureFixture[str]) -> None:
    here.write("full.csv", TEA, at=1)
    here.night()
    sys.argv = ["esl-pipeline", "trace", "4006381333931"]
    with pytest.raises(SystemExit):
        cli.main()
    assert "from full.csv of" in capsys.readouterr().out


def test_a_shop_of_files_is_mapped_with_its_columns(
    here: Till, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added = [
        "stores",
        "add",
        "north",
        "S9",
        "--source",
        "files",
        "--policy",
        "columns.price=VK neu",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["esl-pipeline", *added])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    mapping = here.world.buffer.mapping_list()[-1]
    assert (mapping["source_system"], mapping["source_store_id"]) == ("files", "north")
    assert mapping["settings"]["columns"] == {"price": "VK neu"}
