"""What the names of shops and files say. Pure."""

import re

from esl_pipeline.sources.files.listing import Kind

SHOP = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

_ENDINGS = (".csv", ".txt", ".tsv")
_NOT_READ = (".xlsx", ".xls", ".ods", ".csv.gz", ".csv.zip")
_FULL = ("full", "voll")
_CHANGES = ("change", "delta", "änderung", "aenderung")


def shop_id(text: str) -> str | None:
    """The shop's short name, in small letters; None for what is none."""
    name = text.strip().lower()
    return name if SHOP.fullmatch(name) else None


def is_list(name: str) -> bool:
    """Whether a file is there to be read: what begins with a dot or ~ or ends otherwise is on its way, or a note."""
    return not name.startswith((".", "~")) and name.casefold().endswith((*_ENDINGS, *_NOT_READ))


def kind_of(name: str) -> Kind | None:
    """A full list has `full` in its name, a change list `changes`; None for a name that says neither, or both."""
    folded = name.casefold()
    is_full, is_changes = (any(word in folded for word in words) for words in (_FULL, _CHANGES))
    if is_full == is_changes:
        return None
    return "full" if is_full else "changes"


def why_not_read(name: str) -> str | None:
    """Why a file of this name is refused unread, or None."""
    if name.casefold().endswith(_NOT_READ):
        return "it is no CSV file: save it as CSV"
    if kind_of(name) is None:
        return "its name says neither 'full' nor 'changes', or both: nobody knows what kind of list it is"
    return None
