"""Free ports of loopback, for parts that are started a moment later."""

import random
import socket

# Systems give outgoing connections ports from 32768 on (Linux) or 49152, and such a one may take what was free just
# now before the part that is to listen there has begun.
_PORTS = range(20_000, 32_768)
_TRIES = 200


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens on just now. Raises OSError when none is found."""
    for port in random.sample(_PORTS, _TRIES):
        try:
            with socket.create_server((address, port)):
                return port
        except OSError:
            continue
    raise OSError(f"no free port of {address} was found among {_TRIES}")
