"""Text that may stand on a label."""

import re
import unicodedata

# Bidirectional overrides and isolates can turn a price or a name around on the display (data-quality.md).
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SPACES = re.compile(r"\s+")


def clean(text: str | None) -> str:
    """One line of NFC text without control characters and bidi overrides, spaces folded; "" for None."""
    if text is None:
        return ""
    text = _CONTROL.sub(" ", _BIDI.sub("", text))
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()
