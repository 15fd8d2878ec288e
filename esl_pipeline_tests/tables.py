"""The tables of docs/configuration.md, made from the models: `make docs` renews them, test_docs.py compares."""

import re
from collections.abc import Collection
from pathlib import Path

from esl_pipeline import needed
from esl_pipeline.labels.describe import describe_policy
from esl_pipeline.labels.policy import ATTRIBUTES
from esl_pipeline.settings import every_field, secret_names

CONFIGURATION = Path(__file__).parents[1] / "docs" / "configuration.md"


def _settings() -> str:
    rows = [
        f"| `{name.upper()}` | {'' if field.default is None else f'`{field.default}`'} | {field.description} |"
        for name, field in every_field().items()
    ]
    return "\n".join(["| name | default | |", "|---|---|---|", *rows])


def _processes() -> str:
    def row(name: str, by: Collection[str]) -> str:
        marks = " | ".join("x" if process in by else "" for process in needed.PROCESSES)
        return f"| `{name}`{' (secret)' if name in secret_names() else ''} | {marks} |"

    head = f"| name | {' | '.join(needed.PROCESSES)} |\n|---|{'---|' * len(needed.PROCESSES)}"
    rows = {"DAGSTER_HOME": {"code-server", "run", "daemon", "webserver"}, **needed.table()}
    return "\n".join([head, *(row(name, by) for name, by in rows.items())])


def _policy() -> str:
    rows = [
        f"| `{name}` | {values} | `{default}` | {meaning} |"
        for name, values, default, meaning in describe_policy()
    ]
    return "\n".join(["| setting | values | default | |", "|---|---|---|---|", *rows])


def _attributes() -> str:
    return ", ".join(f"`{name}`" for name in sorted(ATTRIBUTES)) + "."


def renewed(text: str) -> str:
    """The text, with what stands between the marks of each table made anew."""
    for name, table in {
        "settings": _settings,
        "processes": _processes,
        "policy": _policy,
        "attributes": _attributes,
    }.items():
        marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        made = table()
        text, count = marks.subn(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
        assert count == 1, f"{CONFIGURATION.name} has no place for {name}"
    return text


if __name__ == "__main__":
    CONFIGURATION.write_text(renewed(CONFIGURATION.read_text(encoding="utf-8")), encoding="utf-8")
