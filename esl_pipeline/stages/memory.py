"""What the buffer keeps for a reader that has to remember: see source.Memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import Shop
from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.source import Memory


class BufferMemory(Memory):
    """Of one shop; what a run notes bears its id."""

    def __init__(self, buffer: Buffer, shop: Shop, run_id: str) -> None:
        self._buffer, self._shop, self._run_id = buffer, dict(shop), run_id

    def policies(self) -> Mapping[str, Mapping[str, Any]]:
        """By store."""
        return {mapping.store: mapping.settings for mapping in self._buffer.active_mappings(shop=self._shop)}

    def known_files(self, files: Sequence[Row], columns: str) -> Row:
        """As the buffer says it."""
        return self._buffer.files_known(shop=self._shop, files=files, columns=columns)

    def note_file(self, file: Row) -> Row:
        """Kept in esl.source_files."""
        return self._buffer.files_note(shop=self._shop, file=file, run_id=self._run_id)

    def finish_file(self, file_id: int, told: Sequence[str] | None) -> None:
        """Kept there too."""
        self._buffer.files_finish(file_id=file_id, told=told, run_id=self._run_id)
