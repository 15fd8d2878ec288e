"""Heads that say one thing only, and bodies in pieces of some size; h11 takes more than that.

Where one reader of a request goes by its length and the next by its chunks, the end of one request is the beginning
of another that nobody sent: so whatever could be read in two ways is refused with 400 and the connection closed. h11
itself refuses a second Host, differing lengths, other codings, a space before the colon, and NUL.

A head of 16 KiB with lines of one letter, and a body in chunks of one byte, are little to send and long to read, on
the one thread that reads for all.
"""

import h11

HEAD_BYTES = 16_384
HEAD_LINES = 100
PIECES = 1_000
PIECE_BYTES = 64
_ONCE = {b"content-length", b"transfer-encoding", b"host"}


class StrictConnection(h11.Connection):
    """The server's end of an HTTP/1.1 connection; raises h11.RemoteProtocolError for more than h11 does."""

    _pieces = _bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is not h11.IDLE:
            return self._counted(super().next_event())
        received = self.trailing_data[0]
        if wrong := too_long(received):
            raise h11.RemoteProtocolError(wrong, error_status_hint=431)
        event = super().next_event()
        if type(event) is h11.Request:
            self._pieces = self._bytes = 0
            if wrong := ambiguity(received[: len(received) - len(self.trailing_data[0])]):
                raise h11.RemoteProtocolError(wrong)
        return event

    def _counted(
        self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if type(event) is h11.Data:
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > PIECES + self._bytes // PIECE_BYTES:
                raise h11.RemoteProtocolError("the body comes in too small pieces")
        return event


def too_long(received: bytes) -> str | None:
    """What is too long about the head that these bytes begin with; None when nothing is, so far."""
    end = received.find(b"\r\n\r\n", 0, HEAD_BYTES + 4)
    head = received[: end if end >= 0 else HEAD_BYTES + 1]
    if len(head) > HEAD_BYTES:
        return f"the head is longer than {HEAD_BYTES} bytes"
    return f"the head has more than {HEAD_LINES} lines" if head.count(b"\n") > HEAD_LINES else None


def ambiguity(head: bytes) -> str | None:
    """What another reader might read differently in a head that h11 takes; None when there is nothing."""
    if head.count(b"\n") != head.count(b"\r\n"):
        return "a line ends without a carriage return"
    request, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return "a line is folded"
    names = [line.partition(b":")[0].lower() for line in lines]
    if any(names.count(name) > 1 for name in _ONCE):
        return "a header that says where the request ends or goes comes twice"
    if b"transfer-encoding" in names and (b"content-length" in names or not request.endswith(b"HTTP/1.1")):
        return "the body has a coding beside a length, or in a version that knows none"
    if b"content-length" in names and b"," in lines[names.index(b"content-length")]:
        return "there is more than one length"
    return None
