"""Sentences about physical labels, for status, doctor and probe: what a label server can tell of them, and has told."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from esl_pipeline.commands.times import ago, moment
from esl_pipeline.stages.probe import Probe

Row = Mapping[str, Any]
OLD_AFTER_HOURS = 3


def probe_result(done: Probe, server: str) -> Iterator[str]:
    """What a probe has found out, a sentence each."""
    if done.rows_move is None:
        yield f"store {done.store_code}: nothing was found out: {done.reason or done.outcome}"
        return
    known = {"rows_move": done.rows_move, "auto_triggers": done.auto_triggers, "probe_seconds": done.seconds}
    for sentence in _probed(known):
        yield f"label server {server}: {sentence}"
    if done.reason:
        yield f"{done.esl_code}: {done.reason}"


def server_says(server: Row) -> str:
    """What is known of how a label server treats its labels; of one that has the actions for them."""
    zone = (
        f"its times are in {server['zone']}"
        if server["zone"]
        else "it does not say in which zone its times are"
    )
    if not server["probed_at"]:
        return f"{zone}; not probed yet (esl-pipeline probe)"
    return "; ".join([zone, *_probed(server), f"probed {ago(server['probed_at'])}"])


def _probed(server: Row) -> Iterator[str]:
    if server["rows_move"]:
        seconds = server["probe_seconds"]
        yield "a label's row moves when it is refreshed" + (
            f", {seconds} s after the push" if seconds else ""
        )
    else:
        yield "no row tells when its label is refreshed"
    yield {
        True: "it refreshes labels by itself",
        False: "it waits for the trigger (esl/bind_task)",
        None: "whether it refreshes by itself is not known",
    }[server["auto_triggers"]]


def does_not_know(server: Row) -> str:
    """Of a label server without the actions for physical labels."""
    again = f"; asked again at {moment(server['devices_again_at'])}" if server["devices_again_at"] else ""
    return (
        f"does not know the actions for physical labels (esl/query), so what hangs there is not known{again}"
    )


def store_says(store: Row) -> str:
    """How the physical labels of a store were read last."""
    if not store["read_at"]:
        return "its physical labels were not read yet" + (f": {store['failed']}" if store["failed"] else "")
    return (
        f"{store['labels']} physical labels, {store['bound']} bound, {store['online']} online; read "
        f"{ago(store['read_at'])}"
    )


def is_old(store: Row) -> bool:
    """Whether the labels of a store were not read for long."""
    at = store["read_at"]
    return (
        at is None
        or (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() > OLD_AFTER_HOURS * 3600
    )


def obstacles(servers: Sequence[Row], shelf: Sequence[Row]) -> Iterator[str]:
    """What stands in the way of knowing what the shelf shows."""
    strangers = {server["server"] for server in servers if server.get("knows_devices") is False}
    for server in servers:
        if server["server"] in strangers and server["stores"]:
            yield f"label server {server['server']}: {does_not_know(server)}"
    for store in shelf:
        code, probe = store["store_code"], store["probe"]
        if store["label_server"] in strangers:
            continue
        if store["failed"]:
            yield f"store {code}: its physical labels could not be read: {store['failed']}"
        if probe and probe["outcome"] in ("failed", "silent"):
            yield f"store {code}: probe label {probe['esl_code']}, {moment(probe['at'])}: {probe['reason']}"
