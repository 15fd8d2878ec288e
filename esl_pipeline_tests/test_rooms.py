"""The house rules: who may import whom, and a sentence at every door."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import esl_pipeline

PACKAGE = Path(esl_pipeline.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
# What the heart must not do: reach for files, processes, the network or a clock.
INPUT_OUTPUT = {
    "asyncio", "dagster", "fastapi", "httpx", "io", "os", "pathlib", "psycopg", "requests", "shutil", "socket",
    "sqlite3", "subprocess", "supabase", "tempfile", "time", "upath", "urllib", "uvicorn",
}  # fmt: skip


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_package(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def files(room: str = "") -> list[Path]:
    found = sorted((PACKAGE / room).rglob("*.py"))
    assert found, f"no such room: {room}"
    return found


def test_only_the_orchestration_knows_dagster() -> None:
    knowing = {
        file.relative_to(PACKAGE).parts[0]
        for file in files()
        if any(of_package(module.partition("_")[0], "dagster") for module in imports(file))
    }
    assert knowing == {"orchestration", "definitions.py"}


def test_nobody_below_imports_the_orchestration() -> None:
    importing = {
        file.relative_to(PACKAGE).parts[0]
        for file in files()
        if any(
            of_package(module, "esl_pipeline.orchestration") or of_package(module, "esl_pipeline.definitions")
            for module in imports(file)
        )
    }
    assert importing == {"orchestration", "definitions.py"}


# What each pure room may know of the package: the model nothing but itself, the labels the model as well.
PURE = {"model": ("esl_pipeline.model",), "labels": ("esl_pipeline.labels", "esl_pipeline.model")}


@pytest.mark.parametrize(
    ("room", "file"),
    [(room, file) for room in PURE for file in files(room)],
    ids=lambda given: given if isinstance(given, str) else given.name,
)
def test_the_heart_is_pure(room: str, file: Path) -> None:
    for module in imports(file):
        known = any(of_package(module, package) for package in PURE[room])
        assert known or not of_package(module, "esl_pipeline"), module
        assert module.partition(".")[0] not in INPUT_OUTPUT, module
    calls = [
        node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    named = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    assert named.isdisjoint({"open", "print", "input", "exec", "eval"})


@pytest.mark.parametrize("room", ["sources", "hipoink", "buffer", "receiver", "stages", "console"])
def test_rooms_of_the_pipeline_need_nothing_of_the_local_ones(room: str) -> None:
    above = [f"esl_pipeline.{name}" for name in ("local", "sandbox", "demo", "commands")]
    for file in files(room):
        assert not any(of_package(module, name) for module in imports(file) for name in above), file


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_says_what_belongs_there(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert text and text.rstrip().endswith(".") and len(text) > 20


@pytest.mark.parametrize("file", files(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_every_module_says_what_belongs_there(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


def test_no_module_is_too_long_to_read_at_once() -> None:
    too_long = {file.name for file in files() if file.read_text(encoding="utf-8").count("\n") > 500}
    assert not too_long


# Where the word may stand in code: the source itself, what stands in for it, what `up` and `demo` start, its group of
# commands, and the lines that register it, in Python and in SQL: there a constraint guards where its tokens may go.
SHOPIFYS_OWN = ("sources/shopify", "sandbox", "demo", "local", "commands/shopify", "commands/running.py")
REGISTRIES = {
    "sources/registry.py",
    "buffer/functions/source_bodies.sql",
    "buffer/functions/sources.sql",
    "buffer/migrations/0100_tables.sql",
    "commands/cli.py",
}


def words_of(file: Path) -> Iterator[str]:
    """Names, and texts that are no sentence: what code says, without what it tells people."""
    with file.open("rb") as code:
        for token in tokenize.tokenize(code.readline):
            is_text = token.type == tokenize.STRING and not re.search(r"\s", token.string)
            if token.type == tokenize.NAME or is_text:
                yield token.string


def sql_words_of(file: Path) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield line.partition("--")[0]


@pytest.mark.parametrize(
    "file",
    [
        file
        for file in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.sql")])
        if not file.relative_to(PACKAGE).as_posix().startswith(SHOPIFYS_OWN)
        and file.relative_to(PACKAGE).as_posix() not in REGISTRIES
    ],
    ids=lambda file: file.relative_to(PACKAGE).as_posix(),
)
def test_nobody_else_knows_which_source_it_is(file: Path) -> None:
    words = words_of(file) if file.suffix == ".py" else sql_words_of(file)
    assert not [word for word in words if "shopify" in word.lower()]
