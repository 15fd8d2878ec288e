"""Foreign text for logs, terminals and spreadsheets: titles, codes and answers are written by strangers."""

import re

_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)*")
# OWASP's list of what makes a spreadsheet take a cell for a formula, with the full-width forms of the same signs.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def printable(text: str) -> str:
    """The text on one line, without what steers a terminal or turns the reading direction."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def cell(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula; numbers stay numbers."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
