"""The list of processes and what `install-units` makes of it."""

from pathlib import Path

import pytest
import yaml

from esl_pipeline.commands.units import install_units
from esl_pipeline.deploy.instances import for_workers, instance_text
from esl_pipeline.deploy.processes import PROCESSES, Process
from esl_pipeline.deploy.units import UNITS, Places, own_files, unit_files, unit_of
from esl_pipeline.settings import every_field
from esl_pipeline_tests.deploy.checkers import ROOT, checked, checker, resolve


@pytest.mark.long
@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_each_command_is_one_of_ours(process: Process) -> None:
    resolve(process.command_at("127.0.0.1", "/home"))
    if process.health:
        resolve([*process.health, "--json"])


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_what_a_process_needs_it_may_know(process: Process) -> None:
    known = set(process.settings())

    assert {name for need in process.needs for name in need.split("|")} <= known


def test_what_strangers_reach_knows_no_secret_of_the_runs() -> None:
    secrets = {
        process.name: {name for name, secret in process.settings().items() if secret} for process in PROCESSES
    }

    assert secrets["receiver"] & secrets["code-server"] == {  # an app's secret signs its webhooks, too
        *("ESL_DATABASE_URL", "SUPABASE_SERVICE_KEY", "SHOPIFY_API_SECRET", "SHOPIFY_APPS")
    }
    assert secrets["webserver"] == secrets["daemon"] == {"ESL_DAGSTER_DATABASE_URL"}
    assert secrets["migrate"] == {"ESL_DATABASE_URL"}


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    systemd = checker("systemd-analyze")
    for path, text in unit_files(Places(programs="/bin"), workers=True).items():
        if path.startswith(UNITS):  # the programs need not be on this machine
            lines = (
                "ExecStart=/bin/true" if line.startswith("ExecStart=") else line for line in text.split("\n")
            )
            (tmp_path / Path(path).name).write_text("\n".join(lines))

    said = checked(systemd, "verify", *map(str, sorted(tmp_path.iterdir())))

    assert said == ""


def test_a_unit_starts_its_process() -> None:
    units = unit_files(Places(programs="/opt/bin"), workers=True)
    for process in PROCESSES:
        unit = units[f"{UNITS}/{unit_of(process)}"]
        program, *arguments = process.command_at("127.0.0.1", "/var/lib/esl-pipeline/dagster")
        assert f"ExecStart=/opt/bin/{program} {' '.join(arguments)}\n" in unit
        for hardening in ("NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=\n"):
            assert hardening in unit
        assert ("DynamicUser=yes" in unit) != ("User=esl-pipeline" in unit)
        assert ("Restart=always" in unit) == process.is_lasting


def test_the_files_to_fill_in_name_settings_only() -> None:
    known = {name.upper() for name in every_field()}
    for path, text in own_files(instance_text(), workers=True).items():
        if path.endswith(".env"):
            lines = [line.lstrip("#") for line in text.split("\n") if not line.startswith("# ")]
            assert {line.partition("=")[0] for line in lines if line} <= known, path


def test_the_code_server_is_where_the_workspace_says() -> None:
    files = own_files(instance_text())
    (place,) = yaml.safe_load(files["/var/lib/esl-pipeline/dagster/workspace.yaml"])["load_from"]

    assert place["grpc_server"] == {"host": "127.0.0.1", "port": 4000, "location_name": "esl_pipeline"}


def test_the_workers_instance_is_ours_but_for_its_launcher() -> None:
    shipped = yaml.safe_load((ROOT / "deploy/celery/dagster.yaml").read_text())

    assert shipped == for_workers(yaml.safe_load(instance_text()))


def test_what_was_filled_in_stays(tmp_path: Path) -> None:
    install_units(root=tmp_path)
    variables = tmp_path / "etc/esl-pipeline/receiver.env"
    assert variables.stat().st_mode & 0o777 == 0o600
    variables.write_text("ESL_DATABASE_URL=postgresql://filled-in\n")
    unit = tmp_path / "etc/systemd/system/esl-receiver.service"
    unit.write_text("old")

    install_units(root=tmp_path)

    assert variables.read_text() == "ESL_DATABASE_URL=postgresql://filled-in\n"
    assert "ExecStart=" in unit.read_text()


def test_printed_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_units(root=tmp_path, to_stdout=True)

    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for process in PROCESSES:
        assert (f"# --- /etc/systemd/system/{unit_of(process)}\n" in printed) == (process.name != "worker")
