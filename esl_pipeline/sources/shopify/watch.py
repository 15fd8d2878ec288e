"""Whether a shop's connection still does what it was made for: asked of the shop, and judged by what arrives of it.

Subscriptions of the app itself (`toml`) are in no list that can be read, so they are judged by deliveries alone.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from esl_pipeline.refused import refused_sentence
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import AdminError
from esl_pipeline.sources.shopify.connection import look
from esl_pipeline.sources.shopify.subscriptions import address_at, compare, read_ours, read_subscriptions
from esl_pipeline.sources.source import Verdict

# The version of the Webhooks API whose bodies this code was written against; newer ones are read as well.
WEBHOOKS_VERSION = "2026-04"

_VERSION = re.compile(r"20[0-9]{2}-[0-9]{2}")


def watch(
    row: Mapping[str, Any],
    client: AdminClient | None,
    *,
    base_url: str | None,
    patience: timedelta,
    now: datetime,
) -> Verdict:
    """Judge one shop.

    row: of `Buffer.connection_list`. client: of its Admin API, None where nothing opens it. base_url: APP_BASE_URL.
    patience: how long the first webhook after connecting may take.
    """
    problems, remarks = list(_ended(row)), list[str]()
    if client is None:
        remarks.append("neither an app nor a token opens its Admin API, so it was not asked")
        if row["subscriptions"] == "api":
            problems.append(
                "neither an app nor a token opens its Admin API: its subscriptions cannot be compared"
            )
    else:
        found = look(client, row["source_store_id"])
        (problems if found.problem else remarks).append(found.describe())
        if found.retired:
            problems.append(found.retired)
        if found.reachable and row["subscriptions"]:
            problems += _subscriptions(row, client, base_url)
    problems += arrivals(row, patience=patience, now=now)
    if _is_awaited(row) and not _is_late(row, patience, now):
        remarks.append(f"its first webhook since {_at(row['connected_at'])} is awaited")
    return Verdict(tuple(problems), tuple(remarks))


def _ended(row: Mapping[str, Any]) -> Iterator[str]:
    if row["ended_at"] and row["is_active"]:
        yield (
            f"its connection was ended by {row['ended_by']}, and a store is mapped and active: "
            f"esl-pipeline shopify connect {row['source_store_id']}"
        )


def _subscriptions(row: Mapping[str, Any], client: AdminClient, base_url: str | None) -> Iterator[str]:
    connect = f"esl-pipeline shopify connect {row['source_store_id']}"
    try:
        if row["subscriptions"] == "toml":
            if ours := read_ours(client):
                yield f"{len(ours)} subscriptions made by API double those of shopify.app.toml: {connect} removes them"
        elif base_url is None:
            yield "APP_BASE_URL is not set, so nobody can tell whether its webhooks are sent here"
        elif said := compare(read_subscriptions(client), address_at(base_url)).problems():
            yield f"{'; '.join(said)}: {connect} mends it"
    except (AdminError, ValueError) as error:
        yield str(error)


def arrivals(row: Mapping[str, Any], *, patience: timedelta, now: datetime) -> Iterator[str]:
    """What is wrong with what arrives of a shop, a sentence each; see `watch`."""
    version = row["last_api_version"] or ""
    if _VERSION.fullmatch(version) and version < WEBHOOKS_VERSION:
        yield (
            f"its webhooks are of version {version}, and esl-pipeline reads those from {WEBHOOKS_VERSION} on: set a "
            "newer Webhooks API version in the Dev Dashboard, in a new version of the app; it belongs to the app and "
            "not to a subscription"
        )
    if _is_late(row, patience, now):
        where = (
            "was the version of the app that holds the subscriptions released?"
            if row["subscriptions"] == "toml"
            else "is APP_BASE_URL reachable from the internet?"
        )
        yield f"no webhook has come since it was connected at {_at(row['connected_at'])}: {where}"
    if row["refused"] and not _accepted_since(row):
        yield refused_sentence(
            row["refused"], row["refused_since"], row["last_refused_at"], row["last_webhook_at"], now=now
        )


def _is_awaited(row: Mapping[str, Any]) -> bool:
    return row["subscriptions"] is not None and row["first_webhook_at"] is None


def _is_late(row: Mapping[str, Any], patience: timedelta, now: datetime) -> bool:
    return _is_awaited(row) and now - datetime.fromisoformat(row["connected_at"]) > patience


def _accepted_since(row: Mapping[str, Any]) -> bool:
    last = row["last_webhook_at"]
    return bool(last) and datetime.fromisoformat(last) > datetime.fromisoformat(row["last_refused_at"])


def _at(time: str) -> str:
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M}Z"
