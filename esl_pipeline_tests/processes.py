"""Real processes of ours, as tests start, look for and kill them. Linux only: they are found in /proc."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from esl_pipeline_tests.waiting import eventually

# What the command lines of the parts of `esl-pipeline up` hold.
PARTS = {
    "receiver": "esl_pipeline.commands.cli receiver",
    "Dagster daemon": "orchestration.dagster_daemon",
    "code server": "dagster api grpc",
    "Dagster webserver": "orchestration.dagster_ui",
    "Postgres": "/postgres -D",
}


def processes_of(home: Path) -> dict[int, str]:
    """Every process that has to do with a home: by its variables or by its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(home) in command + variables:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def descendants_of(pid: int) -> set[int]:
    """A process's children, theirs, and so on: also those that hide their variables, as Postgres' do."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found, look = set[int](), [pid]
    while look:
        new = children.get(look.pop(), [])
        found.update(new)
        look += new
    return found


def is_alive(pid: int) -> bool:
    stat = _stat(pid)
    return bool(stat) and stat[0] != "Z"


def send(number: signal.Signals, pid: int) -> bool:
    """Signal a process; False when it is gone: it may have ended since it was looked for."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_at_once(pids: Collection[int]) -> None:
    """Kill processes that watch each other (a leash, a supervisor): none has the time to act on another's end."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            send(number, pid)
    eventually(lambda: not any(map(is_alive, pids)), 10, f"the end of {pids}")


def _stat(pid: int) -> list[str]:
    """State, parent and so on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def part_of(home: Path, name: str) -> int:
    """The process id of a part of the stack of a home, 0 when it does not run."""
    for pid, command in processes_of(home).items():
        # A leash names what it holds, too.
        if PARTS[name] in command and "leash.py" not in command:
            return pid
    return 0


def runs_of(home: Path) -> list[int]:
    """The processes of Dagster's runs: what its code server has made, each for one run."""
    children = descendants_of(part_of(home, "code server"))
    return [pid for pid in children if is_alive(pid) and "spawn_main" in command_of(pid)]


def command_of(pid: int) -> str:
    """A process's command line, "" when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class Up:
    """One `esl-pipeline up`."""

    def __init__(self, home: Path, *arguments: str, **variables: str) -> None:
        self.home = home
        self.ready = home / "ready.json"
        self.ready.unlink(missing_ok=True)
        self.log = home / "up.log"
        ports = ("--receiver-port", "0", "--ui-port", "0", "--labels-port", "0", "--shop-port", "0")
        own = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "ESL_HOME": str(home)}
        if "PYTHONPATH" in os.environ:  # else the installed copy would be started, which may be another one
            own["PYTHONPATH"] = os.environ["PYTHONPATH"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "esl_pipeline.commands.cli", "up", *ports, *arguments),
                    *("--json-ready", str(self.ready)),
                    *(() if "--fill" in arguments else ("--no-fill",)),
                ],
                env=own | variables,
                cwd=home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait_until_ready(self) -> dict[str, Any]:
        """The URLs, once everything answers."""
        eventually(lambda: self.ready.exists() or self.process.poll() is not None, 90, self.said())
        assert self.ready.exists(), self.said()
        urls: dict[str, Any] = json.loads(self.ready.read_text())
        return urls

    def said(self) -> str:
        return self.log.read_text()

    def family(self) -> set[int]:
        return descendants_of(self.process.pid) | set(processes_of(self.home))

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def leaves_nothing(self, family: set[int]) -> None:
        """Wait until every process of the stack is gone."""

        def gone() -> bool:
            return not any(map(is_alive, family)) and not processes_of(self.home)

        eventually(gone, 20, f"the end of {processes_of(self.home)} and {[p for p in family if is_alive(p)]}")
