"""docs/production.md: short, and each of our commands, paths and settings in it is there."""

import re
import shlex

import pytest

from esl_pipeline.deploy.processes import PROCESSES
from esl_pipeline.settings import every_field, secret_names
from esl_pipeline_tests.deploy.checkers import ROOT, resolve
from esl_pipeline_tests.deploy.test_images import COMPOSE

TEXT = (ROOT / "docs" / "production.md").read_text()
PLACES = {
    title: text
    for title, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    if "```" in text and title != "Connect a shop"
}
COMMANDS = re.findall(r"^\$ (.*)$", TEXT, re.MULTILINE)


def test_the_places_are_the_four() -> None:
    assert list(PLACES) == ["One VM", "Docker Compose", "Kubernetes", "Supabase and one small host"]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_takes_at_most_fifteen_lines_of_commands_and_words(place: str) -> None:
    lines = [line for line in PLACES[place].split("\n") if line and not line.startswith("```")]

    assert len(lines) <= 15


@pytest.mark.long
def test_each_command_of_ours_is_one() -> None:
    ours = [
        words
        for line in COMMANDS
        for part in re.split(r" && |; | \| ", line)
        for words in [shlex.split(part)]
        if words and words[0] == "esl-pipeline"
    ]

    assert len(ours) > 6
    for words in ours:
        resolve(words)


def test_each_path_is_in_the_repository() -> None:
    paths = set(re.findall(r"(?<![\w/.-])((?:deploy|requirements)[\w/.-]*\.(?:sql|sh|conf|yaml|lock))", TEXT))

    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_variable_unit_and_secret_is_ours() -> None:
    known = {name.upper() for name in every_field()} | {f"{name}_FILE" for name in secret_names()}
    units = {f"esl-{process.name}" for process in PROCESSES} | {"esl-daemon-watch"}

    named = set(re.findall(r"\b((?:ESL|HIPOINK|SHOPIFY|SUPABASE|APP|DAGSTER)_[A-Z_]+)\b", TEXT))
    assert named <= known
    assert {
        name.rstrip(".") for name in re.findall(r"\besl-(?:daemon-watch|[a-z]+(?:-server)?)\b", TEXT)
    } - units <= {*("esl-pipeline", "esl-settings", "esl-owner")}
    assert set(re.findall(r">?secrets/(\w+)", TEXT)) <= set(COMPOSE["secrets"])
