"""Addresses: which is this machine, one form for each, and whose word about the address of another counts."""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# As proxies write it: bare, with a port (IPv4), or in brackets with or without one.
_WRITTEN = re.compile(r"\[([^\]]{2,50})\](?::[0-9]{1,5})?|([0-9.]{7,15}):[0-9]{1,5}|([0-9A-Fa-f:.%\w]{2,60})")


def networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks by commas; raises ValueError for anything else."""
    return tuple(_unmapped(ipaddress.ip_network(item.strip())) for item in text.split(",") if item.strip())


def is_loopback(host: str) -> bool:
    """Whether a host, as a URL names it, is this machine: a name that is kept for it, or an address of loopback."""
    parsed = _parsed(host)
    if parsed is None:
        return f".{host.lower()}".endswith(".localhost")
    return parsed.is_loopback


def one_form(address: str) -> str:
    """The address as it is compared and counted: an IPv4 address that came mapped into IPv6 is the IPv4 address."""
    parsed = _parsed(address)
    return address if parsed is None else str(parsed)


def whose(address: str) -> str:
    """Whom an address stands for in a count by address: for IPv6 its /64, of which one sender has all."""
    parsed = _parsed(address)
    if parsed is None:
        return address[:64]
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((int(parsed), 64), strict=False))


def sender(peer: str, forwarded: Iterable[str], trusted: tuple[Network, ...]) -> str:
    """The address of the sender, given the connection's other end and the values of X-Forwarded-For.

    Each proxy adds whom it heard from at the right, so the list is read from there for as long as the one who says it
    is trusted; what is left of a stranger's address is that stranger's invention.
    """
    found = one_form(peer)
    for claimed in reversed([item for value in forwarded for item in value.split(",")]):
        parsed = _parsed(found)
        if parsed is None or not any(parsed in network for network in trusted):
            break
        if _parsed(claimed) is None:
            break
        found = one_form(claimed)
    return found


@lru_cache(1_000)
def _parsed(text: str) -> _Address | None:
    written = _WRITTEN.fullmatch(text.strip())
    if written is None:
        return None
    try:
        parsed = ipaddress.ip_address(next(filter(None, written.groups())))
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _unmapped(network: Network) -> Network:
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    return (
        ipaddress.ip_network((mapped, network.prefixlen - 96))
        if mapped and network.prefixlen >= 96
        else network
    )
