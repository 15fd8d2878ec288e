"""Label servers by name: a store is at one of them. Where it is on the network, the settings alone say."""

from collections.abc import Collection

# The one that the single variables (HIPOINK_API_BASE_URL, ...) describe, and where a store is that nobody has placed.
DEFAULT_SERVER = "default"


def called(server: str, servers: Collection[str]) -> str:
    """How people are told of a label server, where there are these: by its name, if that says anything."""
    return "the label server" if {server, *servers} == {DEFAULT_SERVER} else f"label server {server}"
