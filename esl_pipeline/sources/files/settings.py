"""Settings of files: which shop's files are in which folder, and when a list is too small to be believed."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from fsspec.registry import known_implementations  # type: ignore[import-untyped]
from pydantic import AfterValidator, Field, SecretStr

from esl_pipeline.environment import entries
from esl_pipeline.sources.files.names import shop_id
from esl_pipeline.sources.source import SourceSettings

_WRITE = "write shop=address, e.g. corner=/srv/erp or corner=sftp://user@host/out"
_ADDRESS = re.compile(r"([a-z0-9+.-]+)://.+|/.*")
# Kinds of storage that can list a folder; of a chain (a::b) or a web page nobody knows what is in it.
_NO_FOLDERS = {"http", "https", "data", "generic", "reference"}


def _folders(value: SecretStr) -> SecretStr:
    listed = entries(value)
    if not listed:
        raise ValueError(f"holds only commas; {_WRITE}")
    shops = set[str]()
    for number, (shop, address) in enumerate(map(_shop_and_address, listed), 1):
        if shop is None:
            raise ValueError(f"entry {number} does not begin with a shop's short name and '='; {_WRITE}")
        if shop in shops:
            raise ValueError(f"entry {number} is a second folder of {shop}; remove one of them")
        shops.add(shop)
        found = _ADDRESS.fullmatch(address)
        if not found or "::" in address:
            raise ValueError(f"entry {number} holds no address of a folder; {_WRITE}")
        if found[1] is not None and (found[1] not in known_implementations or found[1] in _NO_FOLDERS):
            raise ValueError(f"entry {number} is of a kind of storage that fsspec cannot list; {_WRITE}")
    return value


def _shop_and_address(entry: str) -> tuple[str | None, str]:
    before, _, address = entry.partition("=")
    return shop_id(before), address.strip()


class FilesSettings(SourceSettings):
    """What the environment says of files."""

    files_folders: Annotated[SecretStr, AfterValidator(_folders)] | None = Field(
        None,
        description="Folders with CSV files as shop=address, several by commas: a path from / on, or any address that "
        "fsspec knows, e.g. corner=sftp://user:password@host/out. More options by fsspec's own FSSPEC_… variables.",
    )
    files_smallest_share_pct: int = Field(
        80,
        ge=0,
        le=100,
        description="A full list with fewer products than this percentage of the last one's waits for `files approve`.",
    )
    files_settle_seconds: float = Field(
        2,
        ge=0,
        le=60,
        description="Seconds for which a new file's size and time must stand still before it is read.",
    )

    @property
    def folders(self) -> Mapping[str, str]:
        """Shop -> address of its folder, which may hold a password."""
        listed = entries(self.files_folders) if self.files_folders else ()
        return {shop: address for shop, address in map(_shop_and_address, listed) if shop}

    def warnings(self) -> Iterator[str]:
        """See SourceSettings.warnings."""
        if any(address.startswith("ftp://") for address in self.folders.values()):
            yield "FILES_FOLDERS has an ftp:// address: whoever is on the way can change prices. Use sftp://."
