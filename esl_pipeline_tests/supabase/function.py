"""The webhook function in a real Deno, with no more rights than it needs and nothing to fetch."""

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from esl_pipeline_tests.scratch import scratch

FOLDER = Path(__file__).parents[2] / "supabase" / "functions" / "shopify-webhook"
VARIABLES = (
    "ESL_WEBHOOK_BODY_LIMIT_BYTES",
    "SHOPIFY_WEBHOOK_SECRET",
    "SUPABASE_SECRET_KEYS",
    "SUPABASE_SERVICE_ROLE_KEY",
    "SUPABASE_URL",
)
"""All that the function may know of its environment."""

_STARTED = re.compile(r"Listening on (http://\S+?)/? ")
_CLOSED = ("--no-remote", "--no-npm", "--no-prompt", "--cached-only")
RIGHTS = (*_CLOSED, "--allow-net=127.0.0.1", f"--allow-env={','.join(VARIABLES)}")


def deno() -> str:
    """The program; without it the test is skipped."""
    return str(pytest.importorskip("deno").find_deno_bin())


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """What Deno compiles, for as long as the tests run."""
    return tempfile.TemporaryDirectory(prefix="esl-deno-", dir=scratch())


def environment(**variables: str) -> dict[str, str]:
    """Of a Deno that asks nobody for a newer one and keeps nothing when the tests have ended."""
    return {
        "PATH": os.environ["PATH"],
        "DENO_DIR": _kept().name,
        "DENO_NO_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
        **variables,
    }


def run(*arguments: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """One command of Deno's in the function's folder."""
    return subprocess.run(
        [deno(), *arguments],
        cwd=FOLDER,
        env=environment(**variables),
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def evaluated(script: str, text: str, *rights: str) -> str:
    """What a script that imports modules of the function prints, given this text."""
    ended = run("run", *_CLOSED, *rights, "-", text=script.replace("INPUT", text))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@dataclass
class Running:
    """A function that listens. url: its own address."""

    url: str
    lines: list[str] = field(default_factory=list)


@contextmanager
def running(variables: Mapping[str, str]) -> Iterator[Running]:
    """The function on a free port of loopback."""
    process = subprocess.Popen(
        [deno(), "run", *RIGHTS, "index.ts"],
        cwd=FOLDER,
        env=environment(DENO_SERVE_ADDRESS="tcp:127.0.0.1:0", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    found = Running("")
    started = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            found.lines.append(line)
            if listening := _STARTED.search(line.rstrip() + " "):
                found.url = f"{listening[1]}/shopify-webhook"
                started.set()
        started.set()

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    try:
        assert started.wait(30) and found.url, f"the function did not start: {''.join(found.lines)}"
        yield found
    finally:
        process.kill()
        process.wait(10)
        reading.join(10)
        process.stdout.close()
