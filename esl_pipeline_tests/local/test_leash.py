"""The leash, with real processes: whatever happens to the owner or the leash, nothing is left running."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esl_pipeline.local import leash
from esl_pipeline.local.leash import Leashed
from esl_pipeline_tests.waiting import eventually

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes as another user")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")

PRELUDE = """
import os, signal, subprocess, sys, time

def say(word):
    os.write(1, f"{word}\\n".encode())  # in one piece, whoever else writes

"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('up'); time.sleep(60)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + code]


def is_gone(pid: int) -> bool:
    """Whether the process has ended (a zombie that nobody collects counts as ended)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:
        return Path("/proc/self").exists()


def group_is_gone(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except (ProcessLookupError, PermissionError):
        return True
    return False


@pytest.fixture
def start() -> Iterator[Callable[..., Leashed]]:
    """Leashed.start whose commands are stopped at the end of the test."""
    started: list[Leashed] = []

    def start_python(code: str, **options: object) -> Leashed:
        started.append(Leashed.start("command", python(code), **options))  # type: ignore[arg-type]
        return started[-1]

    yield start_python
    for leashed in started:
        leashed.stop()


def finish(leashed: Leashed) -> int:
    eventually(lambda: leashed.poll() is not None)
    code = leashed.poll()
    assert code is not None
    return code


def test_a_command_that_ends_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shell = ["/bin/sh", "-c", "echo $$; pwd; /usr/bin/env; echo complaint >&2; exit 7"]
    leashed = Leashed.start("shell", shell, log=log, cwd=tmp_path, env={"ONLY": "this"})

    assert finish(leashed) == 7
    leashed.stop()
    assert leashed.poll() == 7
    output = log.read_text().splitlines()
    assert output[:2] == [str(leashed.pid), str(tmp_path)]
    added_by_shell_and_python = ("PWD=", "OLDPWD=", "_=", "LC_CTYPE=")
    assert {line for line in output[2:-1] if not line.startswith(added_by_shell_and_python)} == {"ONLY=this"}
    assert leashed.log_tail(1) == "complaint"


def test_the_log_is_appended_to(start: Callable[..., Leashed], tmp_path: Path) -> None:
    log = tmp_path / "log"
    for number in range(3):
        finish(start(f"say('run {number}')", log=log))
    assert log.read_text() == "run 0\nrun 1\nrun 2\n"
    assert start("", log=log).log_tail(2) == "run 1\nrun 2"


def test_death_by_a_signal_is_128_plus_its_number(start: Callable[..., Leashed]) -> None:
    assert finish(start("os.kill(os.getpid(), 9)")) == 128 + 9


def test_what_the_command_leaves_behind_ends_with_it(start: Callable[..., Leashed], tmp_path: Path) -> None:
    log = tmp_path / "log"
    leashed = start(f"say(subprocess.Popen({python(STUBBORN)!r}).pid)", log=log, grace=0.1)

    assert finish(leashed) == 0
    assert is_gone(int(log.read_text().replace("up", "")))
    assert group_is_gone(leashed.pid)


def test_stop_lets_the_command_finish_its_work(start: Callable[..., Leashed], tmp_path: Path) -> None:
    tidy = "signal.signal(signal.SIGTERM, lambda *_: (say('tidied'), sys.exit(3)))"
    leashed = start(f"{tidy}; say('up'); time.sleep(60)", log=tmp_path / "log")
    eventually(lambda: leashed.log_tail(1) == "up")
    assert leashed.poll() is None

    leashed.stop()
    assert leashed.poll() == 3
    assert leashed.log_tail(1) == "tidied"
    assert is_gone(leashed.pid)


def test_stop_kills_what_ignores_the_signal(start: Callable[..., Leashed], tmp_path: Path) -> None:
    leashed = start(STUBBORN, log=tmp_path / "log", grace=0.1)
    eventually(lambda: leashed.log_tail(1) == "up")

    leashed.stop()
    assert leashed.poll() == 128 + signal.SIGKILL
    assert is_gone(leashed.pid)


def test_the_grace_is_for_the_whole_group(start: Callable[..., Leashed], tmp_path: Path) -> None:
    tidy = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), say('tidied'), sys.exit()))"
    grandchild = python(f"{tidy}; say('up'); time.sleep(60)")
    leashed = start(f"subprocess.run({grandchild!r})", log=tmp_path / "log")
    eventually(lambda: leashed.log_tail(1) == "up")

    leashed.stop()
    assert leashed.log_tail(1) == "tidied"


@pytest.mark.parametrize(
    ("stop_signal", "heard_by"), [("TERM", ["grandchild", "command"]), ("INT", ["command"])]
)
def test_term_goes_to_the_group_and_int_to_the_command(
    start: Callable[..., Leashed], tmp_path: Path, stop_signal: str, heard_by: list[str]
) -> None:
    log = tmp_path / "log"
    hear = f"signal.signal(signal.SIG{stop_signal}, lambda *_: (say('grandchild'), sys.exit()))"
    # The command waits until the grandchild has heard or, with INT, long enough to tell the difference.
    command = f"""
heard = []
signal.signal(signal.SIG{stop_signal}, lambda *_: heard.append(True))
grandchild = subprocess.Popen({python(f"{hear}; say('up'); time.sleep(60)")!r})
say("up")
while not heard:
    time.sleep(0.01)
try:
    grandchild.wait(0.5)
except subprocess.TimeoutExpired:
    pass
say("command")
"""
    leashed = start(command, log=log, stop_signal=stop_signal)
    eventually(lambda: log.read_text() == "up\nup\n")

    leashed.stop()
    assert log.read_text().split()[2:] == heard_by
    assert group_is_gone(leashed.pid)


def test_an_empty_directory_goes_with_the_command(start: Callable[..., Leashed], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    for name in ("empty", "full"):
        finish(start("", rmdir=tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_forked_process_cannot_keep_the_command_alive_after_stop(start: Callable[..., Leashed]) -> None:
    leashed = start("time.sleep(60)")
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    fork.start()
    try:
        leashed.stop()
        assert is_gone(leashed.pid)
    finally:
        fork.kill()
        fork.join()


def test_reasons_for_not_starting(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"server could not be started: .*no-such-program: .*No such file"):
        Leashed.start("server", ["no-such-program"])
    with pytest.raises(OSError, match=r"server could not be started: .*missing/log"):
        Leashed.start("server", ["true"], log=tmp_path / "missing" / "log")
    planted = tmp_path / "planted"
    planted.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"server could not be started: .*planted"):
        Leashed.start("server", ["true"], log=planted)
    assert not (tmp_path / "precious").exists()


OWNER = f"""
from pathlib import Path
from esl_pipeline.local.leash import Leashed

def start(name, argv):
    return Leashed.start(name, argv, grace=0.2, log=Path(sys.argv[1]) / name)

quick = start("quick", {python("time.sleep(60)")!r})
stubborn = start("stubborn", {python(STUBBORN)!r})
while not stubborn.log_tail(1):
    pass
"""
READY = "print(quick.pid, stubborn.pid, flush=True)"


def start_owner(tmp_path: Path, end: str) -> tuple[subprocess.Popen[str], list[int]]:
    owner = subprocess.Popen(
        [*python(OWNER + end), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    return owner, [int(pid) for pid in owner.stdout.readline().split()]


def test_no_command_outlives_a_killed_owner(tmp_path: Path) -> None:
    owner, pids = start_owner(tmp_path, f"{READY}; signal.pause()")
    with owner:
        assert not any(map(is_gone, pids))
        os.killpg(owner.pid, signal.SIGKILL)
    eventually(lambda: all(map(is_gone, pids)))


def test_an_owner_that_just_returns_takes_its_commands_along(tmp_path: Path) -> None:
    owner, pids = start_owner(tmp_path, f"{READY}; os._exit(0)")
    with owner:
        pass
    eventually(lambda: all(map(is_gone, pids)))


def test_control_c_leaves_the_order_of_stopping_to_the_owner(tmp_path: Path) -> None:
    owner, pids = start_owner(
        tmp_path,
        f"try: {READY}; signal.pause()\n"
        "except KeyboardInterrupt: pass\n"
        "stubborn.stop()\n"  # takes its grace time, in which the other would end if it had heard Ctrl-C
        "print(stubborn.poll(), quick.poll(), flush=True)\n"
        "quick.stop()",
    )
    with owner:
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.stdout is not None
        assert owner.stdout.readline().split() == [str(128 + signal.SIGKILL), "None"]
    assert owner.returncode == 0
    assert all(map(is_gone, pids))


@needs_linux
def test_leaving_the_group_is_no_escape(start: Callable[..., Leashed], tmp_path: Path) -> None:
    log = tmp_path / "log"
    away = python(
        f"os.setsid(); say(os.getpid()); subprocess.run({python('say(os.getpid()); time.sleep(60)')!r})"
    )
    leashed = start(f"subprocess.Popen({away!r}); time.sleep(60)", log=log)
    eventually(lambda: log.read_text().count("\n") == 2)

    leashed.stop()
    assert all(is_gone(int(pid)) for pid in log.read_text().split())


@needs_linux
def test_the_command_is_stopped_even_if_the_leash_is_killed(
    start: Callable[..., Leashed], tmp_path: Path
) -> None:
    leashed = start("say(os.getppid()); time.sleep(60)", log=tmp_path / "log")
    eventually(lambda: leashed.log_tail(1) != "")

    os.kill(int(leashed.log_tail(1)), signal.SIGKILL)
    eventually(lambda: is_gone(leashed.pid))


@needs_root
def test_running_as_another_user(tmp_path: Path) -> None:
    log = tmp_path / "log"  # which that user could not open
    shell = ["sh", "-c", "id -u; id -g; id -G; sleep 60"]
    leashed = Leashed.start("shell", shell, user=65534, log=log)
    try:
        eventually(lambda: log.read_text() == "65534\n65534\n65534\n")
    finally:
        leashed.stop()
    assert is_gone(leashed.pid)
    with pytest.raises(OSError, match="uid not found: 54321"):
        Leashed.start("shell", shell, user=54321)


LEASH = [sys.executable, "-m", "esl_pipeline.local.leash"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_from_the_command_line(number: signal.Signals) -> None:
    code = "signal.signal(signal.SIGINT, lambda *_: sys.exit(5)); say('up'); time.sleep(60)"
    argv = [*LEASH, "--signal", "INT", "--grace", "5", "--", *python(code)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pid = int(process.stdout.readline())
        assert process.stderr.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait() == 5
        assert process.stdout.read() == b""
    assert is_gone(pid)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["true"],
        ["--"],
        ["--signal", "--", "true"],
        ["--signal", "KILL", "--", "true"],
        ["--x", "1", "--", "true"],
    ],
)
def test_wrong_arguments(args: list[str]) -> None:
    done = subprocess.run(
        [*LEASH, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: leash")


def test_the_leash_imports_next_to_nothing() -> None:
    argv = [sys.executable, "-I", "-S", "-X", "importtime", leash.__file__, "--", "sleep", "60"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"select", "signal"} <= imported
    assert not imported & {"subprocess", "pathlib", "typing", "re", "argparse", "contextlib", "threading"}
