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
    loggers = [
        found for found in logging.root.manager.loggerDict.values() if isinstance(found, logging.Logger)
    ]
    levels = {logger: logger.level for logger in (root, *loggers)}
    handlers, hooks = list(root.handlers), (sys.excepthook, threading.excepthook)
    shown = (logging.logThreads, logging.logProcesses, logging.logMultiprocessing)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for found in [root, *logging.root.manager.loggerDict.values()]:
            if isinstance(found, logging.Logger):
                found.setLevel(levels.get(found, logging.NOTSET))
        sys.excepthook, threading.excepthook = hooks
        logging.logThreads, logging.logProcesses, logging.logMultiprocessing = shown
        logging.captureWarnings(False)
        structlog.reset_defaults()
