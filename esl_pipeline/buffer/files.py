"""The buffer's calls about sources that are read from files: which files there were, and what is wrong with rows."""

from collections.abc import Mapping, Sequence

from esl_pipeline.buffer.door import Door, Row


class FileCalls(Door):
    """A part of Buffer; each method is one SQL function of functions/files.sql."""

    def files_known(self, *, shop: Mapping[str, str], files: Sequence[Row], columns: str) -> Row:
        """What is known of a shop's files ({name, size, modified_at, sha256?}) when their columns are called so ->
        {files, held: variants whose rows are wrong, last, last_full: newest applied, same: with such a hash}."""
        return self._call("esl_files_known", shop=shop, files=list(files), columns=columns)

    def files_note(self, *, shop: Mapping[str, str], file: Row, run_id: str) -> Row:
        """How a new file was judged -> its row; one that is known already stays as it is."""
        return self._call("esl_files_note", shop=shop, file=file, run_id=run_id)

    def files_finish(self, *, file_id: int, told: Sequence[str] | None, run_id: str) -> Row:
        """All that the file says is stored -> {applied}.

        told: variants of older files' wrong rows that it says rightly; None, for a full list: all of them.
        """
        named = None if told is None else list(told)
        return self._call("esl_files_finish", file_id=file_id, told=named, run_id=run_id)

    def files_list(self, *, shop: Mapping[str, str] | None = None, limit: int = 100) -> list[Row]:
        """Files that were found, the newest first; is_open: refused or waiting, and no full list was applied since."""
        return list(self._call("esl_files_list", shop=shop, limit=limit)["files"])

    def files_approve(self, *, shop: Mapping[str, str], name: str, by: str) -> Row | None:
        """Let the newest file of that name that waits be read -> its row; None when none waits."""
        file: Row | None = self._call("esl_files_approve", shop=shop, name=name, by=by)["file"]
        return file

    def problems_note(self, problems: Sequence[Row]) -> Row:
        """What is wrong with what was said of variants (Facts.problems), told before it is stored -> {noted}."""
        return self._call("esl_problems_note", problems=list(problems))
