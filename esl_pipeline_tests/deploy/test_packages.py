"""What is installed: the sdist, the wheel made of it, and that wheel in an environment with nothing beside it."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.webserver import Webserver
from esl_pipeline_tests.reliability.outside import scratch_home
from esl_pipeline_tests.waiting import eventually

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

ROOT = Path(__file__).parents[2]
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"
# Of no use to who has not the repository.
LEFT_OUT = (".ci/", ".github/", ".gitignore")


def tracked() -> set[str]:
    """The files that git knows, as they stand here."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone of the repository")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def built(kind: str, source: Path, into: Path) -> Path:
    """A package made of a folder."""
    made = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(into)],
        cwd=source, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    return into / made.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def packages() -> Iterator[tuple[Path, Path]]:
    """The sdist, and the wheel made of nothing but the sdist."""
    with scratch_home("esl-packages-") as home:
        clone = home / "clone"
        for name in tracked():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
        sdist = built("sdist", clone, home)
        with tarfile.open(sdist) as archive:
            archive.extractall(home / "unpacked", filter="data")
        (unpacked,) = (home / "unpacked").iterdir()
        yield sdist, built("wheel", unpacked, home)


def test_the_sdist_holds_what_the_repository_holds(packages: tuple[Path, Path]) -> None:
    with tarfile.open(packages[0]) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers()}

    assert {name for name in tracked() - held if not name.startswith(LEFT_OUT)} == set()


def test_the_wheel_holds_the_package_with_all_its_files_and_nothing_else(packages: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(packages[1]) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert held == {name for name in tracked() if name.startswith("esl_pipeline/")}


def test_the_wheel_says_what_it_needs(packages: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(packages[1]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(archive.read(name).decode())

    assert said["Requires-Python"] == "<3.14,>=3.11"
    assert set(said.get_all("Provides-Extra") or ()) >= {"local", "celery", "s3", "gcs"}
    versions = {line.rpartition(" ")[2] for line in said.get_all("Classifier") or ()}
    assert versions >= {"3.11", "3.12", "3.13"} and "3.14" not in versions


class Installed:
    """A new environment with the wheel in it, and a folder to work in. It knows of no checkout."""

    def __init__(self, home: Path) -> None:
        self.home, self._bin = home, home / "venv" / "bin"
        self.work = home / "work"
        self.work.mkdir()
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.environment = own | {"ESL_HOME": str(self.work / "esl")}

    def command(self, program: str, *arguments: str) -> list[str]:
        return [str(self._bin / program), *arguments]

    def run(self, program: str, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(program, *arguments),
            env=self.environment, cwd=self.work, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def start(self, name: str, program: str, *arguments: str, **variables: str) -> Leashed:
        return Leashed.start(
            name,
            self.command(program, *arguments),
            env=self.environment | variables,
            cwd=self.work,
            log=self.home / f"{name}.log",
        )


@pytest.fixture(scope="module")
def installed(packages: tuple[Path, Path]) -> Iterator[Installed]:
    with scratch_home("esl-installed-") as home:
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True, timeout=120)
        found = Installed(home)
        quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        lock = str(ROOT / "requirements-local.lock")
        needs = found.run("python", *quiet, "--require-hashes", "-r", lock, seconds=900)
        if needs.returncode:
            pytest.skip(f"pip cannot install the lock here: {needs.stderr[-300:]}")
        wheel = found.run("python", *quiet, "--no-index", str(packages[1]))
        assert wheel.returncode == 0, wheel.stderr
        yield found


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the installation
def test_an_installed_wheel_finds_everything_it_needs(installed: Installed) -> None:
    checked = installed.run("python", "-m", "pip", "check")
    assert checked.returncode == 0, checked.stdout
    where = installed.run("python", "-c", "import esl_pipeline; print(esl_pipeline.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed.home / "venv")
    printed = installed.run("esl-pipeline", "migrate", "--print")
    assert printed.returncode == 0 and "create schema if not exists esl" in printed.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_runs_the_demo(installed: Installed) -> None:
    done = installed.run("esl-pipeline", "demo", seconds=380)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_runs_up_and_dagster_dev_beside_it(installed: Installed) -> None:
    ready = installed.work / "ready.json"
    ports = [
        argument for port in ("receiver", "ui", "labels", "shop") for argument in (f"--{port}-port", "0")
    ]
    up = installed.start("up", "esl-pipeline", "up", *ports, "--no-fill", "--json-ready", str(ready))
    dev = None
    try:
        eventually(lambda: ready.exists() or up.poll() is not None, 150, "the start of `up`")
        assert up.poll() is None, up.log_tail(30)
        assert Webserver(json.loads(ready.read_text())["ui"]).is_loaded()
        status = installed.run("esl-pipeline", "status")
        assert status.returncode == 0, status.stdout + status.stderr
        again = installed.run("esl-pipeline", "migrate")
        assert again.returncode == 0, again.stdout + again.stderr

        port = free_port()
        module = ("-m", "esl_pipeline.definitions", "--host", "127.0.0.1", "--port", str(port))
        dev = installed.start("dev", "dagster", "dev", *module)
        eventually(Webserver(f"http://127.0.0.1:{port}").is_loaded, 90, "`dagster dev`, see its log")
    finally:
        for part in (dev, up):
            if part is not None:
                part.stop()
