"""A leash: runs one command so that it never outlives the process that wanted it.

Between the owner and the command stands a small process, the leash. Its standard input is a pipe whose other
end only the owner holds, so the kernel itself tells the leash when the owner is gone, however it died. The
leash then ends the command and everything in the command's process group (on Linux also what has left the
group). Linux and macOS.

    python -m esl_pipeline.local.leash [--signal TERM|INT] [--grace SECONDS] [--user NAME_OR_UID] [--log FILE]
                                       [--rmdir DIRECTORY] -- command...

The first line on its standard output is the command's process id or, if it could not be started, the reason.
The command's own output is appended to the log file; without one it goes to the leash's standard error. The
command is stopped at the end of the leash's standard input and on SIGTERM, SIGINT and SIGHUP: first with the
signal (TERM to the whole group; INT to the command alone, as PostgreSQL wants it), after the grace time with
SIGKILL to all that is left. At the end the directory of --rmdir is removed, if it is empty. The exit code is
the command's own, or 128 + n if signal n ended it.

`Leashed` is the owner's side. All the rest runs in the leash, which is started once per command and therefore
imports next to nothing.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

if __name__ != "__main__":
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Literal, Self

_POLL_S = 0.01
_KILL_WAIT_S = 5.0
_LOG_TAIL_BYTES = 64 * 1024
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_DEFAULTS = {"--signal": "TERM", "--grace": "10", "--user": "", "--log": "", "--rmdir": ""}
_USAGE = (
    "usage: leash [--signal TERM|INT] [--grace SECONDS] [--user NAME_OR_UID] [--log FILE] [--rmdir DIRECTORY]"
    " -- command..."
)


class Leashed:
    """A command on a leash, seen from its owner.

    The command lives until it exits, until `stop`, or until the owner dies, whichever comes first. (A process
    that the owner makes by a bare fork, without exec, holds the leash as well: after the owner is killed the
    command then lives until that process is gone too.)
    """

    def __init__(self, name: str, pid: int, leash: subprocess.Popen[bytes], log: Path | None) -> None:
        self.name = name
        self.pid = pid
        self._leash = leash
        self._log = log

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        stop_signal: Literal["TERM", "INT"] = "TERM",
        grace: float = 10,
        user: int | None = None,
        rmdir: Path | None = None,
    ) -> Self:
        """Start `argv` and return once it runs.

        `name` is for messages. `env` and `cwd` are the command's (default: the owner's). `log` receives its
        output (default: the owner's standard error). `grace` is in seconds. `user` is the uid to run as, for
        an owner that is root. `rmdir` is a directory to remove after the command's end, if it is empty then.
        Raises OSError with the reason if the command cannot be started.
        """
        options = ["--signal", stop_signal, "--grace", str(grace)]
        if log is not None:
            options += ["--log", str(log.absolute())]
        if user is not None:
            options += ["--user", str(user)]
        if rmdir is not None:
            options += ["--rmdir", str(rmdir.absolute())]
        leash = subprocess.Popen(
            # Isolated and without site-packages it starts in half the time; -I rules out -m, hence the path.
            [sys.executable, "-I", "-S", __file__, *options, "--", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,  # Ctrl-C is for the owner, who decides the order of stopping
        )
        assert leash.stdout is not None
        with leash.stdout as answer:
            first_line = answer.readline().decode().strip()
        if not first_line.isdigit():
            cls(name, 0, leash, log).stop()
            raise OSError(f"{name} could not be started: {first_line or 'its leash failed'}")
        return cls(name, int(first_line), leash, log)

    def poll(self) -> int | None:
        """The exit code (128 + n after signal n), or None while the command runs."""
        return self._leash.poll()

    def stop(self) -> None:
        """Stop the command and its process group and wait until they are gone.

        Call it also for a command that has exited (it closes the pipe); calling it again does nothing.
        """
        assert self._leash.stdin is not None
        self._leash.stdin.close()
        self._leash.terminate()  # in case a forked process holds the pipe as well
        self._leash.wait()

    def log_tail(self, n: int) -> str:
        """The last `n` lines of the log file; empty if there is none."""
        if self._log is None or not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-n:])


def _reap() -> tuple[int, int]:
    """The process id and status of a child that has exited, (0, 0) if there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


def _signal(target: int, number: int) -> bool:
    """Signal a process or (if negative) a group; False if nothing is there, or nothing that we may signal."""
    try:
        os.kill(target, number)
    except (ProcessLookupError, PermissionError):  # the latter also for a group of zombies on macOS
        return False
    return True


class _Child:
    """The command, leader of its own session and process group."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None

    def has_exited(self) -> bool:
        pid, status = _reap()
        while pid:
            if pid == self.pid:
                code = os.waitstatus_to_exitcode(status)
                self.exit_code = code if code >= 0 else 128 - code
            pid, status = _reap()
        return self.exit_code is not None

    def wait(self, seconds: float, *, whole_group: bool) -> None:
        """Wait until the command (or its whole group) is gone, for at most that many seconds."""
        deadline = time.monotonic() + seconds
        while not self.has_exited() or (whole_group and _signal(-self.pid, 0)):
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_S)


def _become(user: str) -> None:
    import pwd
    import warnings  # noqa: F401 (for execvp: the new user may be unable to read Python's library)

    entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere it does nothing."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def _start(argv: list[str], stop: signal.Signals, user: str, log: str) -> _Child:
    """Start the command in a session of its own. Raises OSError with the reason if that fails."""
    leash = os.getpid()
    report, reporter = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if log:
                # The leash may be root and the directory somebody else's: follow no link planted there.
                os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), 2)
            os.dup2(2, 1)
            for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(ignored_by_python, signal.SIG_DFL)
            if user:
                _become(user)
            _prctl(_PR_SET_PDEATHSIG, stop)  # if the leash is killed; a change of user would reset it
            if os.getppid() != leash:
                raise ProcessLookupError("the leash is gone")
            os.execvp(argv[0], argv)  # noqa: S606 (no shell is the point)
        except BaseException as error:
            os.write(reporter, f"{argv[0]}: {error}".encode())
        finally:
            os._exit(127)
    os.close(reporter)
    reason = os.read(report, select.PIPE_BUF)  # empty when exec has closed the other end
    if reason:
        os.waitpid(pid, 0)
        raise OSError(reason.decode())
    return _Child(pid)


def _wait_for_end(child: _Child, wake: int) -> None:
    """Return when the command has exited or is to be stopped."""
    while not child.has_exited():
        readable, _, _ = select.select([0, wake], [], [])
        if 0 in readable and not os.read(0, 4096):
            return
        if wake in readable and any(number != signal.SIGCHLD for number in os.read(wake, 4096)):
            return


def _kill_all(child: _Child) -> bool:
    """Kill what is left of the command and of what it started; False if nothing is left."""
    child.has_exited()
    signalled = [_signal(target, signal.SIGKILL) for target in (-child.pid, *_children())]
    return any(signalled)


def _children() -> list[int]:
    """Our own children: the command and, on Linux, its descendants whose parents are gone."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as listing:  # noqa: PTH123 (no pathlib here)
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return []


def _end(child: _Child, stop: signal.Signals, grace: float) -> None:
    whole_group = stop == signal.SIGTERM
    if whole_group or not child.has_exited():
        _signal(-child.pid if whole_group else child.pid, stop)
    child.wait(grace, whole_group=whole_group)
    deadline = time.monotonic() + _KILL_WAIT_S
    while _kill_all(child) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _rmdir(directory: str) -> None:
    try:
        os.rmdir(directory)  # noqa: PTH106 (pathlib is not imported here)
    except OSError:
        return


def main(args: list[str]) -> int:
    """Run the leash with the arguments of the module's docstring; returns the exit code."""
    split = args.index("--") if "--" in args else 0
    options = _DEFAULTS | dict(zip(args[:split:2], args[1:split:2], strict=False))
    argv = args[split + 1 :]
    understood = (
        split % 2 == 0 and options.keys() == _DEFAULTS.keys() and options["--signal"] in ("TERM", "INT")
    )
    if not (understood and argv):
        print(_USAGE, file=sys.stderr)
        return 2
    stop, grace = signal.Signals[f"SIG{options['--signal']}"], float(options["--grace"])

    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # its orphans are ours: to kill, and to reap, as not every init does
    try:
        child = _start(argv, stop, options["--user"], options["--log"])
    except OSError as error:
        print(error)
        return 127
    try:
        try:  # noqa: SIM105 (contextlib is one import more)
            os.write(1, b"%d\n" % child.pid)
        except BrokenPipeError:
            pass  # the owner has gone already
        _wait_for_end(child, wake)
    finally:
        _end(child, stop, grace)
        _rmdir(options["--rmdir"])
    return 128 + signal.SIGKILL if child.exit_code is None else child.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
