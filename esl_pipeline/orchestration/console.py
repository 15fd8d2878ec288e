"""Dagster's own lines in the log: through the same formatter as ours (esl_pipeline.logs).

Its command gives the logger `dagster` a handler of its own, and each run one that writes colours. Both are replaced
where our code is loaded by one of Dagster's programs; a run's events are in its event log, so of those only what is
not routine is written here.
"""

import logging
import sys
import warnings
from pathlib import Path

import dagster._loggers as theirs

from esl_pipeline import logs
from esl_pipeline.settings import Settings

_PROGRAMS = ("dagster", "celery")


def configure(settings: Settings) -> None:
    """In a process of Dagster's, log as we do; in any other, its owner has decided that."""
    if not is_dagsters(sys.argv[0]):
        return
    logs.configure(settings.app_environment, settings.log_level)
    take_over()


def take_over() -> None:
    """Dagster's loggers, those of its runs included, write our way."""
    # It warns of arguments that it gives itself.
    warnings.filterwarnings("ignore", r"Parameter `owners`", module=r"dagster\.")
    logs.take_over("dagster", "dagit", "dagster-webserver")
    theirs.create_console_logger = _run_logger  # type: ignore[attr-defined]


def is_dagsters(program: str) -> bool:
    """Whether a program (sys.argv[0]) is one of Dagster's: dagster, dagster-daemon, python -m dagster, a worker. The
    processes of runs have it of the code server that starts them."""
    path = Path(program)
    return any(name.startswith(_PROGRAMS) for name in (path.name, path.parent.name))


def _run_logger(name: str, level: str | int) -> logging.Logger:
    """A logger of one run, which nothing else uses."""
    logger = logging.Logger(name, max(logging.INFO, logging.getLogger().level))
    logger.parent = logging.getLogger()
    return logger
