"""What a process' entry configures of logging is for its whole process; a test puts it back."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def logging_as_before() -> Iterator[None]:
    """Handlers, levels and hooks of the end are as before, whatever was configured inside."""
    root = logging.getLogger()
    levels = {logger: logger.level for logger in _loggers()}
    handlers, hooks = list(root.handlers), (sys.excepthook, threading.excepthook)
    shown = (logging.logThreads, logging.logProcesses, logging.logMultiprocessing)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger in _loggers():
            if logger.level != (before := levels.get(logger, logging.NOTSET)):
                logger.setLevel(before)
        sys.excepthook, threading.excepthook = hooks
        logging.logThreads, logging.logProcesses, logging.logMultiprocessing = shown
        logging.captureWarnings(False)
        structlog.reset_defaults()


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(found for found in known if isinstance(found, logging.Logger))]
