"""Programs that judge files, and commands that are read without being run."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[2]


def checker(name: str) -> str:
    """A program beside this Python or on PATH; the test is skipped where it is missing."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def checked(*command: str) -> str:
    """What a checker says, which must not be a complaint."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def resolve(command: Sequence[str]) -> None:
    """Read a command as the program would: raises when program, module, subcommand or option does not exist."""
    program, *arguments = command
    if program == "esl-pipeline":
        from esl_pipeline.commands.cli import app

        _read(typer.main.get_command(app), arguments)
    elif program == "python" and arguments[0] == "-m":
        app = typer.Typer(add_completion=False)
        app.command()(import_module(arguments[1]).main)
        _read(typer.main.get_command(app), arguments[2:])
    elif program == "dagster":
        from dagster._cli import create_dagster_cli

        _read(create_dagster_cli(), arguments)
    elif program == "celery":
        pytest.importorskip("celery", reason="the extra `celery` is not installed")
        from celery.bin.worker import worker

        assert arguments[0] == "-A"
        assert importlib.util.find_spec(arguments[1])
        assert arguments[2] == "worker"
        known = {option for parameter in worker.params for option in parameter.opts}
        assert {word for word in arguments[3:] if word.startswith("-")} <= known
    else:
        raise AssertionError(f"no program of ours: {program}")


def _read(command: Any, arguments: Sequence[str], parent: Any = None) -> None:
    """Click's own way to a subcommand, without calling anything."""
    if not hasattr(command, "resolve_command"):
        command.make_context(command.name or "command", list(arguments), parent=parent)
        return
    context = command.make_context(command.name or "group", list(arguments), parent=parent)
    # Where click keeps the subcommand's name; its public name warns.
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    _, below, left = command.resolve_command(context, rest)
    _read(below, left, context)
