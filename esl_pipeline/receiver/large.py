"""Bodies of megabytes: one at a time, and without the collector, which looks at each list of a million again and again.

The parser holds the interpreter's lock for as long as it takes: 0.1 s for 5 MB of products. 5 MB of empty lists take
0.95 s with the collector and 0.15 s without.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

LARGE_BYTES = 256_000
"""From here on a body is no matter for the event loop: signature, parsing and base64 take threads."""

_one = Lock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """While a large body is parsed, in a thread."""
    with _one:
        was_on = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_on:
                gc.enable()
