"""What the receiver needs of the buffer, and no more."""

from typing import Any, Protocol


class ReceiverBuffer(Protocol):
    """Synchronous and safe to call from several threads.

    Every method may raise `esl_pipeline.buffer.errors.BufferError`: code 23505 for a duplicate, a code of
    class 22 for data that the buffer refuses, anything else when the work could not be done now.
    """

    def inbox_add(self, deliveries: list[dict[str, Any]], /) -> dict[str, Any]:
        """Keep the deliveries (see `deliveries.delivery`); answers `{"received": n, "inserted": n}`.

        Where it is known, `waiting` is what of the shop is still to be worked off, `{"deliveries": n, "bytes": n}`;
        `refused` is why nothing more of the shop is kept for now.
        """

    def refusals_note(self, *, receiver: str, refused: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Keep what this process has counted of wrong signatures; answers the mapped shops."""

    def ping(self) -> None:
        """One cheap call that raises when the buffer cannot be reached."""

    def token_check(self, sha256: str, /) -> dict[str, Any]:
        """Whether any admin token is valid, and the one with this hash -> `{"any", "token"}`."""

    def mapping_create(self, fields: dict[str, Any], /, *, by: str) -> dict[str, Any]:
        """The new store mapping, made by whom; fields left out take their defaults."""

    def mapping_list(self) -> list[dict[str, Any]]:
        """All store mappings."""

    def mapping_get(self, id: str, /) -> dict[str, Any] | None:
        """One store mapping, None when there is none of this id."""

    def mapping_update(self, id: str, changes: dict[str, Any], /, *, by: str) -> dict[str, Any] | None:
        """The store mapping, changed by whom; None when there is none of this id."""
