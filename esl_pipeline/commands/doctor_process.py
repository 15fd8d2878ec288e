"""What `doctor` looks at for one process: its login and its secrets, and no more of either than it needs."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from queue import Empty, Queue
from threading import Thread
from typing import Any
from uuid import uuid4

from upath import UPath

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError, NewerBuffer
from esl_pipeline.buffer.logins import Work, check_login
from esl_pipeline.buffer.migrate import code_version
from esl_pipeline.commands.times import moment
from esl_pipeline.connections import open_buffer
from esl_pipeline.environment import SettingsError
from esl_pipeline.model.check import Check
from esl_pipeline.needed import Process, needs
from esl_pipeline.settings import Settings, secret_names

# Work is taken up within seconds; of a shop without a mapping it waits for that.
_BACKLOG = timedelta(minutes=15)
_FRAMES_SECONDS = 20.0


def secrets_check(settings: Settings, process: Process) -> Check:
    """Whether a process has secrets that it does not need: whoever gets hold of it has them, too."""
    parts: list[Any] = [settings, *(source.settings for source in settings.sources.values())]
    given = {
        name.upper() for part in parts for name in part.model_fields_set if getattr(part, name) is not None
    }
    needless = [name for name in secret_names() if name in given and process not in needs(name)]
    own = ", ".join(name for name in secret_names() if process in needs(name))
    if needless:
        names = ", ".join(needless)
        return Check(
            "secrets", "warning", f"the {process} needs none but {own}: take {names} out of its environment"
        )
    return Check("secrets", "ok", f"the {process} needs neither the buffer's login nor any secret but {own}")


def server_checks(settings: Settings, process: Process) -> Iterator[Check]:
    """Of the receiver, or its admin part: whether its login may do its work, and there is what it verifies with."""
    work: Work = "receiver" if process == "receiver" else "admin"
    try:
        buffer = open_buffer(settings, attempts=1, pool_size=1)
    except SettingsError as error:
        yield Check("buffer", "wrong", error.problems[0])
        return
    try:
        yield _login(buffer, work)
        if (
            work == "admin"
            and settings.esl_admin_token is None
            and not buffer.token_check("of nobody")["any"]
        ):
            yield Check(
                "tokens", "warning", "there is none, so that its API is closed: esl-pipeline tokens add NAME"
            )
    except BufferError as error:
        yield Check("buffer", "wrong", str(error))
    finally:
        buffer.close()
    if work == "receiver":
        hooks = [found for source in settings.sources.values() if (found := source.webhooks())]
        is_verifying = any(found.are_verifiable for found in hooks)
        says = (
            "webhooks can be verified" if is_verifying else "none is set: every webhook is refused with 401"
        )
        yield Check("webhook secrets", "ok" if is_verifying else "wrong", says)


def run_login_check(settings: Settings) -> Check:
    """Whether the login of the runs may do their work."""
    try:
        buffer = open_buffer(settings, attempts=1, pool_size=1)
    except SettingsError as error:
        return Check("login of the runs", "wrong", error.problems[0])
    try:
        return _login(buffer, "run", "login of the runs")
    except BufferError as error:
        return Check("login of the runs", "wrong", str(error))
    finally:
        buffer.close()


def _login(buffer: Buffer, work: Work, what: str = "buffer") -> Check:
    newer = ""
    try:
        buffer.check_version()
    except NewerBuffer as error:
        if work != "receiver":
            raise
        newer = f"deliveries are kept, but {error}"
    check_login(buffer, work)
    if newer:
        return Check(what, "warning", newer)
    return Check(
        what, "ok", f"{buffer.transport.describe()}, version {code_version()}; its login may do this work"
    )


def backlog_check(buffer: Buffer) -> Check:
    """How long the oldest delivery waits, of shops that are mapped."""
    waiting = [shop for shop in buffer.status()["shops"] if shop["mapped"] and shop["oldest_waiting"]]
    if not waiting:
        return Check("backlog", "ok", "no delivery waits")
    oldest = min(waiting, key=lambda shop: datetime.fromisoformat(shop["oldest_waiting"]))
    since, number = oldest["oldest_waiting"], sum(shop["waiting"] for shop in waiting)
    says = f"{number} deliveries wait, the oldest since {moment(since)} ({oldest['source_store_id']})"
    is_old = datetime.now(UTC) - datetime.fromisoformat(since) > _BACKLOG
    return Check(
        "backlog",
        "warning" if is_old else "ok",
        says + (": is a drain alive? esl-pipeline health drain" if is_old else ""),
    )


def why_no_frames(url: str) -> str | None:
    """What keeps this process from writing where frames are kept; None when nothing does."""

    def write() -> None:
        probe = UPath(url) / f".doctor-{uuid4().hex}"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"doctor")
        probe.unlink()

    found: Queue[str] = Queue()

    def ask() -> None:
        try:
            write()
        except Exception as error:  # each storage has its own
            found.put(type(error).__name__)
        else:
            found.put("")

    Thread(target=ask, daemon=True).start()  # some wait for minutes for a server that is not there
    try:
        error = found.get(timeout=_FRAMES_SECONDS)
    except Empty:
        error = f"no answer within {_FRAMES_SECONDS:.0f} s"
    return f"nothing can be written where frames are kept ({error}): see ESL_FRAMES_URL" if error else None
