"""The log of every process: events on standard error, one format for our lines and for the libraries'.

JSON in production, a line each with event, level, logger, timestamp and, where they are known, run_id, shop, store,
code, webhook_id; elsewhere the same to be read by people. What an event is about goes into `extra` (ABOUT) or, for all
that is done inside, into `about`. Whoever starts a process calls `configure` first: the command, the receiver, the code
server, Dagster's daemon and webserver, the runs, the sandboxes.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from esl_pipeline.printable import printable

ABOUT = (
    *("run_id", "job", "step", "shop", "store", "label_server"),
    *("code", "variant_id", "webhook_id", "topic", "push_id"),
)
"""What an event may be about."""

Event = MutableMapping[str, Any]

# What libraries have to say that we know already, or must not repeat: each call of httpx is in our audit, and what is
# below it tells headers; alembic and SQLAlchemy tell of Dagster's own tables, the pool of waits that our errors name.
_QUIET = (
    *(
        "httpx",
        "httpcore",
        "h11",
        "h2",
        "hpack",
        "urllib3",
        "asyncio",
        "grpc",
        "fsspec",
        "s3fs",
        "aiobotocore",
    ),
    *(
        "botocore",
        "alembic",
        "sqlalchemy",
        "psycopg",
        "psycopg.pool",
        "rich",
        "matplotlib",
        "PIL",
        "watchdog",
    ),
)
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# Of the whole process, its threads included: a run has one of its own.
_of_process: dict[str, Any] = {}


def configure(environment: str, level: str, *, for_people: bool = False) -> None:
    """Send all that is logged to standard error, JSON where the environment is production. May be called again.

    level: the least severe that is written; of libraries that talk much, warnings and worse. for_people: a command,
    whose reader has asked for an answer and not for what happens meanwhile: warnings and worse unless the level is
    DEBUG, to be read, and how it ends it says itself.
    """
    chosen = max(level, "WARNING", key=_LEVELS.index) if for_people and level != "DEBUG" else level
    _tell_structlog()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _OnStandardError)]:
        root.removeHandler(handler)
    root.addHandler(_OnStandardError(formatter("a terminal" if for_people else environment)))
    root.setLevel(chosen)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.INFO if chosen == "DEBUG" else logging.WARNING)
    # A command's sentence says in the end what tries again and again came to.
    logging.getLogger("stamina").setLevel(
        logging.ERROR if for_people and chosen != "DEBUG" else logging.NOTSET
    )
    logging.captureWarnings(True)
    if not for_people:
        sys.excepthook, threading.excepthook = _unhandled, _unhandled_in_thread
    # In no format, and looked up for each line all the same.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def configure_by_variables(variables: Mapping[str, str] = os.environ, *, for_people: bool = False) -> None:
    """The same for a process without settings of its own, by APP_ENVIRONMENT and LOG_LEVEL; what is wrong there is not
    its matter."""
    environment, level = (variables.get(name, "").strip() for name in ("APP_ENVIRONMENT", "LOG_LEVEL"))
    known = level.upper() if level.upper() in _LEVELS else "INFO"
    configure(environment.lower(), known, for_people=for_people)


@contextmanager
def about(**what: Any) -> Iterator[None]:
    """All that this thread or task logs inside is about this as well."""
    with structlog.contextvars.bound_contextvars(**what):
        yield


@contextmanager
def process_about(**what: Any) -> Iterator[None]:
    """The same for all threads of the process, also those that begin inside."""
    before = dict(_of_process)
    _of_process.update(what)
    try:
        yield
    finally:
        _of_process.clear()
        _of_process.update(before)


def formatter(environment: str, out: TextIO | None = None) -> logging.Formatter:
    """Of a handler that writes there (standard error)."""
    if environment == "production":
        last: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ]
    else:
        # Not with the values of local variables, which may be secrets.
        colors = (out or sys.stderr).isatty()
        last = [
            _on_one_line,
            ConsoleRenderer(colors=colors, exception_formatter=plain_traceback, pad_event_to=0),
        ]
    return ProcessorFormatter(
        foreign_pre_chain=_first(), processors=[ProcessorFormatter.remove_processors_meta, *last]
    )


def take_over(*names: str) -> None:
    """What these loggers log goes our way alone, at our level; for after a library has given them handlers."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


class _OnStandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that moment: a run's goes to a file of its own."""

    def __init__(self, by: logging.Formatter) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(by)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        pass


def _first() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        _merge_process,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        ExtraAdder(allow=ABOUT),
        _of_dagster,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _tell_structlog() -> None:
    structlog.configure(
        processors=[*_first(), ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _merge_process(_: Any, __: str, event: Event) -> Event:
    return _of_process | dict(event)


def _of_dagster(_: Any, __: str, event: Event) -> Event:
    """A record of Dagster's log manager names run, job, step and what failed in its text; here they are fields."""
    record = event.get("_record")
    told = getattr(record, "dagster_meta", None)
    if told:
        for name, key in (("run_id", "run_id"), ("job", "job_name"), ("step", "step_key")):
            if told.get(key):
                event[name] = told[key]
        event["event"] = told["orig_message"]
        if reason := _reason_in(told.get("dagster_event")):
            event["reason"] = reason
    return event


def _reason_in(dagster_event: Any) -> str | None:
    """What an event of a failure ends in; the rest of its chain is in the run's event log."""
    error: Any = getattr(getattr(dagster_event, "event_specific_data", None), "error", None)
    while getattr(error, "cause", None) is not None:
        error = error.cause
    return str(error.message).strip() if error is not None else None


def _on_one_line(_: Any, __: str, event: Event) -> Event:
    """For people: one line an event, whatever a stranger has written into it."""
    return {
        key: printable(value) if isinstance(value, str) and key != "exception" else value
        for key, value in event.items()
    }


def _unhandled(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("esl_pipeline").critical(
            "the process ends: %s", kind.__name__, exc_info=(kind, error, trace)
        )


def _unhandled_in_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None and not issubclass(given.exc_type, SystemExit):
        told = (given.exc_type, given.exc_value, given.exc_traceback)
        logging.getLogger("esl_pipeline").error(
            "a thread has ended: %s", given.exc_type.__name__, exc_info=told
        )
