"""Where each request ends, and heads that say one thing only; the parser of httptools takes more than that.

Where one reader of a request goes by its length and the next by its chunks, the end of one request is the beginning
of another that nobody sent: so whatever could be read in two ways is refused with 400 and the connection closed. The
parser is given one head, and then of the body no more than the head has said, so it has no say in where the next
request begins; a body in chunks is the last thing that may be there until it is answered.

A head of 16 KiB with lines of one letter, and a body in chunks of one byte, are little to send and long to read, on
the one thread that reads for all.
"""

import re

HEAD_BYTES = 16_384
HEAD_LINES = 100
PIECES = 1_000
PIECE_BYTES = 64
_ONCE = re.compile(rb"\n(content-length|transfer-encoding|host):([^\r]*)", re.IGNORECASE)
_NOT_PLAIN = re.compile(rb"(?<=\n)upgrade:[^\n]*\n|[ \t]+(?=\r\n)", re.IGNORECASE)
_LONGEST_LENGTH = 15  # digits


class FramingError(Exception):
    """What was sent is refused; the text says why."""


class Pieces:
    """Counts what a body in chunks comes in."""

    def __init__(self) -> None:
        self._pieces = self._bytes = 0

    def chunk(self) -> None:
        """A chunk begins. Raises FramingError when there are too many for what is in them."""
        self._pieces += 1
        if self._pieces > PIECES + self._bytes // PIECE_BYTES:
            raise FramingError("the body comes in too small pieces")

    def grown(self, by: int) -> None:
        """So many bytes more are here."""
        self._bytes += by


def head_end(received: bytes | bytearray) -> int:
    """Where the head that these bytes begin with ends, 0 while it has not; raises FramingError when it is too long."""
    end = received.find(b"\r\n\r\n", 0, HEAD_BYTES + 4)
    if end < 0 and len(received) > HEAD_BYTES:
        raise FramingError(f"the head is longer than {HEAD_BYTES} bytes")
    if received.count(b"\n", 0, end if end >= 0 else len(received)) > HEAD_LINES:
        raise FramingError(f"the head has more than {HEAD_LINES} lines")
    return end + 4 if end >= 0 else 0


def body_length(head: bytes) -> int | None:
    """How long the body after this head is, None when it comes in chunks.

    Raises FramingError for whatever another reader might read differently.
    """
    lines = head.count(b"\n")
    if head.count(b"\r\n") != lines or head.count(b"\r") != lines:
        raise FramingError("a line ends without a carriage return and a line feed")
    if b"\0" in head:
        raise FramingError("there is a NUL")
    if b"\n " in head or b"\n\t" in head:
        raise FramingError("a line is folded")
    request = head[: head.index(b"\r\n")]
    if not request.endswith((b" HTTP/1.1", b" HTTP/1.0")):
        raise FramingError("the first line is no request of HTTP/1.1 or 1.0")
    named = _ONCE.findall(head)
    found = {name.lower(): value.strip(b" \t") for name, value in named}
    if len(found) < len(named):
        raise FramingError("a header that says where the request ends or goes comes twice")
    is_new = request.endswith(b"1")
    if is_new and b"host" not in found:
        raise FramingError("there is no host")
    length, coding = found.get(b"content-length"), found.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not is_new or coding.lower() != b"chunked":
            raise FramingError(
                "the body has another coding than chunks, a length beside it, or a version that knows none"
            )
        return None
    if length is not None and not (length.isdigit() and len(length) <= _LONGEST_LENGTH):
        raise FramingError("the length is no number")
    return int(length or 0)


def plain(head: bytes) -> bytes:
    """The head without what the parser would take for more than it is: blanks that end a line, and the wish to speak
    something else, which nobody here does.
    """
    if b" \r\n" in head or b"\t\r\n" in head or b"\nupgrade:" in head.lower():
        return _NOT_PLAIN.sub(b"", head)
    return head
