"""A shop's folder: what is in it, and a file's bytes. A local folder, or any address that fsspec knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from upath import UPath

from esl_pipeline.sources.files.names import is_list
from esl_pipeline.sources.source import SourceError

# A million products with long titles have a tenth of it.
MOST_BYTES = 500_000_000
_NAME_LENGTH = 255
# What file systems call the time when a file was written.
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


@dataclass(frozen=True, order=True)
class Found:
    """A file as it is listed. In order: the oldest first. kept_as: its name where its folder writes that otherwise."""

    modified_at: datetime
    name: str
    size: int
    kept_as: str | None = field(default=None, compare=False)


class Folder:
    """What is in a shop's folder. Every method raises SourceError, never with the address: it may hold a secret."""

    def __init__(self, shop: str, address: str) -> None:
        self._shop = shop
        self._files: Any = None
        with self._told():
            path = UPath(address)
            self._files, self._path = path.fs, path.path

    def __repr__(self) -> str:
        return f"Folder({self._shop!r})"

    def files(self) -> list[Found]:
        """The lists in it, the oldest first; what is in folders below it is not looked at."""
        with self._told():
            self._files.invalidate_cache()
            listed = self._files.ls(self._path, detail=True)
        found = [self._found(info) for info in listed if info.get("type") == "file"]
        return sorted(file for file in found if is_list(file.name) and len(file.name) <= _NAME_LENGTH)

    def read(self, file: Found) -> bytes:
        """All of a file. Raises SourceError also where it is not the file any more that was listed."""
        if file.size > MOST_BYTES:
            raise SourceError(f"{file.name} of {self._shop} has more than {MOST_BYTES // 10**6} MB: split it")
        with self._told():
            raw: bytes = self._files.cat_file(f"{self._path.rstrip('/')}/{file.kept_as or file.name}")
        if len(raw) != file.size:
            raise SourceError(f"{file.name} of {self._shop} is still being written; the next look reads it")
        return raw

    def _found(self, info: dict[str, Any]) -> Found:
        name = str(info["name"]).rstrip("/").rpartition("/")[2]
        readable = _readable(name)
        kept_as = None if readable == name else name
        return Found(_time(info, readable, self._shop), readable, int(info.get("size") or 0), kept_as)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever goes wrong in a file system, said without its words: they often hold the address."""
        try:
            yield
        except SourceError:
            raise
        except FileNotFoundError:
            raise self._error("is not there") from None
        except PermissionError:
            raise self._error("refuses us") from None
        except ImportError as error:
            raise self._error(f"needs the Python package {error.name or 'of its kind'}: install it") from None
        except Exception as error:
            # fsspec gives whoever asks the same connection, also one that has broken: the next look opens another.
            if self._files is not None:
                self._files.clear_instance_cache()
            raise self._error(f"cannot be read ({type(error).__name__})") from None

    def _error(self, says: str) -> SourceError:
        return SourceError(
            f"the folder of {self._shop}, or a file in it, {says}: see its address in FILES_FOLDERS"
        )


def _readable(name: str) -> str:
    """A name whose bytes are no UTF-8, as older systems wrote it: as it is it could not even be told of."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode(errors="surrogateescape").decode("cp1252", "replace")
    return name


def _time(info: dict[str, Any], name: str, shop: str) -> datetime:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    raise SourceError(
        f"the folder of {shop} does not tell when {name} was written: use another kind of storage"
    )
