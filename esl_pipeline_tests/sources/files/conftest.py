"""A folder that an ERP writes into, and the pipeline on a real buffer and a real label server that reads it."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.sources.files.settings import FilesSettings
from esl_pipeline.sources.files.source import FilesSource
from esl_pipeline.stages.catch_up import read_changes
from esl_pipeline.stages.snapshot import Snapshot, read_snapshot
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.world import World

SHOP = {"source_system": "files", "source_store_id": "corner"}
HEADER = "EAN;Name;Preis"
# Before now: what is to come is refused.
_EPOCH = int(time.time()) - 100_000


@dataclass
class Till:
    """A till's exports, and what the pipeline makes of them. `at` numbers the seconds at which files are written."""

    world: World
    folder: Path
    shop: dict[str, str] = field(default_factory=lambda: dict(SHOP))
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, *rows: str, at: int, header: str = HEADER, encoding: str = "utf-8") -> Path:
        return self.write_raw(name, "".join(f"{line}\n" for line in (header, *rows)).encode(encoding), at=at)

    def write_raw(self, name: str, raw: bytes, *, at: int) -> Path:
        path = self.folder / name
        path.write_bytes(raw)
        os.utime(path, (_EPOCH + at, _EPOCH + at))
        return path

    def source(self) -> FilesSource:
        folders = f"{self.shop['source_store_id']}={self.folder}"
        return FilesSource(FilesSettings(files_folders=folders, files_settle_seconds=0, **self.settings))

    def read_all(self) -> Snapshot:
        """As the night does."""
        with self.source().reader(self.shop["source_store_id"]) as reader:
            return read_snapshot(self.world.buffer, reader, shop=self.shop, run_id="night")

    def read_changes(self) -> dict[str, Any]:
        """As catch_up does."""
        with self.source().reader(self.shop["source_store_id"]) as reader:
            return read_changes(self.world.buffer, reader, shop=self.shop, run_id="catch-up")

    def night(self) -> dict[str, str]:
        self.read_all()
        return self.prices()

    def changes(self) -> dict[str, str]:
        self.read_changes()
        return self.prices()

    def prices(self) -> dict[str, str]:
        """On the labels, once everything is pushed."""
        self.world.settle()
        return self.world.prices()

    def states(self) -> dict[str, str]:
        """Of all files, by name."""
        return {row["name"]: row["state"] for row in self.world.buffer.files_list(shop=self.shop)}

    def reason(self, name: str) -> str:
        """Why the newest file of that name was not read."""
        return next(
            row["reason"] for row in self.world.buffer.files_list(shop=self.shop) if row["name"] == name
        )


@pytest.fixture(scope="package")
def label_server() -> Iterator[Sandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def till(buffer: Buffer, buffer_dsn: str, label_server: Sandbox, tmp_path: Path) -> Iterator[Till]:
    folder = tmp_path / "out"
    folder.mkdir()
    label_server.clear()
    with client_of(label_server.url, retries=1, timeout_seconds=0.5) as client:
        world = World(buffer, buffer_dsn, label_server, client)
        # Labels that leave are the subject here, and stores are small.
        guard = {"guard_labels": 1_000, "guard_share_pct": 100}
        world.map(shop=SHOP["source_store_id"], source_system="files", settings=guard)
        yield Till(world, folder)
