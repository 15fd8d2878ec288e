"""A folder on any storage that fsspec knows; here the machine's own, and one in memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from esl_pipeline.sources.files.folder import Folder
from esl_pipeline.sources.files.names import is_list, kind_of
from esl_pipeline.sources.source import SourceError


@pytest.fixture
def memory() -> Iterator[UPath]:
    folder = UPath("memory://files-test/out")
    folder.mkdir(parents=True)
    yield folder
    folder.fs.rm("/files-test", recursive=True)


def test_lists_come_the_oldest_first_and_nothing_else_does(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("b-full.csv", "a-full.CSV", "x.part", ".hidden.csv", "~tmp.csv", "full.xlsx")
    ):
        (tmp_path / name).write_text("x" * number)
        os.utime(tmp_path / name, (1000 + number, 1000 + number))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "full.csv").write_text("x")
    found = Folder("corner", str(tmp_path)).files()
    assert [(file.name, file.size) for file in found] == [
        ("b-full.csv", 0),
        ("a-full.CSV", 1),
        ("full.xlsx", 5),
    ]
    assert found[0].modified_at.timestamp() == 1000


def test_another_storage_is_read_the_same_way(memory: UPath) -> None:
    (memory / "full.csv").write_bytes(b"EAN\n")
    folder = Folder("corner", str(memory))
    (file,) = folder.files()
    assert (file.name, file.size, folder.read(file)) == ("full.csv", 4, b"EAN\n")
    (memory / "full.csv").write_bytes(b"EAN\n1\n")
    with pytest.raises(SourceError, match="still being written"):
        folder.read(file)
    (memory / "full.csv").unlink()
    with pytest.raises(SourceError, match="is not there"):
        folder.read(file)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("articles-FULL-20261128.csv", "full"),
        ("Vollbestand.csv", "full"),
        ("changes.csv", "changes"),
        ("Preisänderungen.csv", "changes"),
        ("delta_1.txt", "changes"),
        ("articles.csv", None),
        ("full-changes.csv", None),
    ],
)
def test_a_name_says_what_kind_of_list_it_is(name: str, kind: str | None) -> None:
    assert is_list(name) and kind_of(name) == kind


class Lossy(MemoryFileSystem):
    """A storage whose connections break, and stay broken."""

    protocol = ("lossy",)
    is_broken = False

    def ls(self, path: str, detail: bool = True, **options: object) -> list[object]:
        if self.is_broken:
            raise OSError("Socket is closed")
        return []


@pytest.mark.filterwarnings("ignore:UPath")
def test_after_a_connection_has_broken_the_next_look_opens_another() -> None:
    register_implementation("lossy", Lossy, clobber=True)
    folder = Folder("corner", "lossy://files-test")
    assert folder.files() == []
    folder._files.is_broken = True
    with pytest.raises(SourceError, match=r"cannot be read \(OSError\)"):
        Folder("corner", "lossy://files-test").files()  # the same connection
    assert Folder("corner", "lossy://files-test").files() == []
