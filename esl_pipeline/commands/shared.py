"""What the commands share: where they print, whose settings and buffer they use, and the sentence of a refusal."""

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands.tables import Terminal
from esl_pipeline.environment import SettingsError
from esl_pipeline.settings import Settings, load_settings
from esl_pipeline.storable import unstorable

out = Terminal()
err = Terminal(stderr=True)

SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="The shop's source; needed where several know shops of that form."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Server = Annotated[
    str | None,
    typer.Option("--server", help="The label server where the store is, by its name in the settings."),
]
Share = Annotated[bool, typer.Option("--share", help="Other shops feed this store too, and that is meant.")]

MARKS = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "wrong": "[red]wrong  [/]"}


class CommandError(Exception):
    """A command cannot do what it was asked; the message is for the reader."""


def settings_here() -> Settings:
    """The settings; what they leave out is that of a running `esl-pipeline up` in the same ESL_HOME, where its buffer
    is the one that they name or they name none. Raises CommandError when that has ended without a word."""
    from esl_pipeline.local.one_up import is_dead
    from esl_pipeline.local.variables import running_environment

    settings = load_settings()
    own = settings.esl_database_url.get_secret_value() if settings.esl_database_url else None
    if settings.supabase_url is not None:
        return settings
    try:
        running = running_environment(settings.esl_home)
    except SettingsError:
        if own is None:
            raise
        return settings  # somebody else's home, and not needed
    if own not in (None, running.get("ESL_DATABASE_URL")):
        return settings
    if running and is_dead(settings.esl_home):
        if own is not None:  # a buffer that does not need it
            return settings
        raise CommandError(
            f"esl-pipeline up, which ran on {settings.esl_home.absolute()}, has ended without a word (killed, or the "
            "machine was): start it again with `esl-pipeline up`, nothing is lost"
        )
    return load_settings(**{name: value for name, value in running.items() if not _is_set(settings, name)})


def _is_set(settings: Settings, name: str) -> bool:
    """Whether the settings, or those of a source, say this themselves."""
    parts = (settings, *(source.settings for source in settings.sources.values()))
    return any(name.lower() in part.model_fields_set for part in parts)


def shop_named(text: str, system: str | None = None) -> dict[str, str]:
    """The shop that somebody means: of that source, or of the one in use that opens it, or has shops of such names.

    A name that no source in use has is taken as it is, for those who check it to say what is wrong. Raises CommandError
    when there is no such source, or several have shops of that form.
    """
    from esl_pipeline.sources.registry import SOURCES

    if system is not None and system not in SOURCES:
        raise CommandError(f"no source is called {system}: there are {', '.join(SOURCES)}")
    settings = settings_here()
    sources = [SOURCES[system]] if system else [type(source) for source in settings.sources_in_use]
    found = {source.system: shop for source in sources if (shop := source.shop_named(text))}
    opened = {name: shop for name, shop in found.items() if settings.sources[name].opens(shop)}
    if len(opened) == 1:
        found = opened
    if len(found) > 1:
        raise CommandError(f"{text} may be a shop of {' and of '.join(found)}: say --source")
    for source_system, shop in found.items():
        return {"source_system": source_system, "source_store_id": shop}
    return {"source_system": sources[0].system, "source_store_id": text}


@contextmanager
def buffer_here() -> Iterator[Buffer]:
    from esl_pipeline.connections import open_buffer

    buffer = open_buffer(settings_here())
    try:
        buffer.check_version()
        yield buffer
    finally:
        buffer.close()


def user() -> str:
    """Who runs this command. A container may run as somebody without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def cli_user() -> str:
    """The same for the history of mappings, where tokens have their names too."""
    return f"cli:{user()}"


@contextmanager
def said_of_refusals() -> Iterator[None]:
    try:
        yield
    except BufferError as error:
        if error.code == "23505":
            says = "this shop is mapped to this store already: see `esl-pipeline stores list`"
        elif error.code == "23P01":
            says = error.message
        elif (error.code or "").startswith("22"):  # as in receiver/mappings.py: the data itself is refused
            says = f"settings: {error.message}"
        else:
            raise
        raise CommandError(says) from None


def checked_by(model: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The given fields of a mapping, as the store-mapping API checks them. Raises CommandError."""
    from pydantic import ValidationError

    from esl_pipeline.receiver.mappings import SERVERS_KNOWN, said_of_field

    if wrong := [f"{at}: {says}" for at, says in unstorable(fields)]:
        raise CommandError("\n".join(wrong))
    try:
        context = {SERVERS_KNOWN: tuple(settings_here().label_servers)} if "label_server" in fields else None
        checked: dict[str, Any] = model.model_validate(fields, context=context).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {said_of_field(problem)}"
            for problem in error.errors(include_url=False)
        ]
        raise CommandError("\n".join(problems)) from None
    return checked


def print_json(value: Any) -> None:
    # Escaped, so that no control character in a title reaches a terminal.
    print(json.dumps(value, indent=2))
