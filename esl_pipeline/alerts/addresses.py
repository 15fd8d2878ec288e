"""Where alerts go: ESL_ALERT_WEBHOOK_URL, and when they go out: ESL_ALERT_QUIET_HOURS. Addresses are secrets."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, time
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from esl_pipeline.alerts.model import SEVERITIES, Severity

_ENTRY = re.compile(r"(?:([A-Za-z]+)=)?(https?://.+)")
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True)
class Recipient:
    """An address and the least severity that it is told of. name: its scheme and host, and which of several there."""

    name: str
    severity: Severity
    url: SecretStr = field(repr=False)


def host_of(url: str) -> str:
    """Of an address what may be said: its scheme and host."""
    return url.split("/", 3)[0] + "//" + url.split("/", 3)[2].partition("?")[0].partition("#")[0].lower()


def checked_address(value: SecretStr) -> SecretStr:
    """One address that can be called. Raises ValueError, without it."""
    # Here: whoever reads settings without such an address does without httpx.
    from esl_pipeline.http import is_safe

    url = value.get_secret_value()
    if not re.match(r"https?://", url):
        raise ValueError("is not a web address; write https:// and a host")
    if not is_safe(url):
        raise ValueError(
            "is an address at which what is sent could be overheard, or has a user name in it; write https:// and a "
            "host, or http:// to this machine"
        )
    return value


def recipients(value: SecretStr | None) -> tuple[Recipient, ...]:
    """Who ESL_ALERT_WEBHOOK_URL names. Raises ValueError, without what is secret."""
    found = list(_parsed(value)) if value else []
    urls = Counter(url for _, url in found)
    if any(count > 1 for count in urls.values()):
        raise ValueError("names an address twice; leave one of them out")
    seen = Counter[str]()
    named = []
    for severity, url in found:
        host = host_of(url)
        seen[host] += 1
        name = host if seen[host] == 1 else f"{host} ({seen[host]})"
        named.append(Recipient(name, severity, SecretStr(url)))
    return tuple(named)


def _parsed(value: SecretStr) -> Iterator[tuple[Severity, str]]:
    for number, entry in enumerate(re.split(r"[\s,]+", value.get_secret_value().strip(" ,\t")), 1):
        match = _ENTRY.fullmatch(entry)
        severity = (match[1] or "warning").lower() if match else None
        if match is None or severity not in SEVERITIES:
            raise ValueError(
                f"address {number} is none; write https://…, or with a least severity {', '.join(SEVERITIES)} before "
                "it: critical=https://…; several with a space or a comma between"
            )
        try:
            checked_address(SecretStr(match[2]))
        except ValueError as error:
            raise ValueError(f"address {number} {error}") from None
        yield severity, match[2]


def checked_recipients(value: SecretStr) -> SecretStr:
    """The value, if it can be used. Raises ValueError."""
    recipients(value)
    return value


def checked_hours(value: str) -> str:
    """Hours such as 22:00-06:30. Raises ValueError."""
    if not (found := _HOURS.fullmatch(value)) or found.group(1, 2) == found.group(3, 4):
        raise ValueError("are no hours; write for example 22:00-06:30")
    return value


def is_quiet(hours: str | None, zone: str, now: datetime) -> bool:
    """Whether only what is critical goes out now: within these hours of that time zone, past midnight where they end
    before they begin."""
    if hours is None:
        return False
    begins, ends = (time.fromisoformat(end) for end in hours.split("-"))
    here = now.astimezone(ZoneInfo(zone)).time()
    return begins <= here < ends if begins < ends else here >= begins or here < ends
