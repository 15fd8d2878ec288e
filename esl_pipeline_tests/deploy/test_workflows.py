"""The workflows for GitHub: their own schema, and what they call exists. That they run cannot be seen from here."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> list[dict[str, Any]]:
    read = yaml.safe_load(workflow.read_text())
    return [step for job in read["jobs"].values() for step in job["steps"]]


def test_there_are_some() -> None:
    assert WORKFLOWS


@pytest.mark.long
@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_is_one(workflow: Path) -> None:
    beside = Path(sys.executable).with_name("check-jsonschema")
    checker = str(beside) if beside.exists() else shutil.which("check-jsonschema")
    if checker is None:
        pytest.skip("check-jsonschema is not installed")
    command = [checker, "--builtin-schema", "vendor.github-workflows", str(workflow)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_what_a_workflow_calls_is_there(workflow: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"])
            continue
        for wanted in re.findall(r"\bmake ((?:[\w-]+ ?)+)", step["run"]):
            assert set(wanted.split()) <= targets, step["run"]
        for path in re.findall(r"\besl_pipeline_tests/\S+", step["run"]):
            assert (ROOT / path).exists(), path


def test_each_python_that_is_promised_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {said.rpartition(" ")[2] for said in project["classifiers"] if " :: Python :: " in said}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    for job in ("test", "build"):
        assert set(jobs[job]["strategy"]["matrix"]["python"]) == promised
