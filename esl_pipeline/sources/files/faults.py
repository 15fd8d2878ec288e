"""What may be wrong with a file."""

from dataclasses import dataclass


class FileError(Exception):
    """The whole file cannot be used, so nothing of it is. The sentence names the line, where it is about one."""


@dataclass(frozen=True)
class Complaint:
    """What is wrong with one row. `holds`: the row's label stays as it is until the row is right."""

    line: int
    says: str
    holds: bool = True

    def __str__(self) -> str:
        return f"line {self.line}: {self.says}"
