"""`esl-pipeline tokens`: who may use the store-mapping API."""

from typing import Annotated, Literal

import typer

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands import shown
from esl_pipeline.commands.shared import (
    AsJson,
    CommandError,
    buffer_here,
    err,
    out,
    print_json,
)

app = typer.Typer(
    help="Who may use the store-mapping API, the numbers and the console for staff.", no_args_is_help=True
)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose it is; the history of mappings names it.")],
    scope: Annotated[Literal["read", "write"], typer.Option(help="Only read, or also change.")],
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Expires then; without: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    from esl_pipeline.receiver.tokens import NAME, digest, new_token

    if not NAME.fullmatch(name):
        raise CommandError("a name is 1 to 64 small letters, digits, '_', '.' or '-', e.g. ana-laptop")
    token = new_token()
    with buffer_here() as buffer:
        try:
            added = buffer.token_add(name=name, sha256=digest(token), scope=scope, days=days)
        except BufferError as error:
            if error.code != "23505":
                raise
            raise CommandError(
                f"there is or was a token {name}, and a name is used once: see `esl-pipeline tokens list`"
            ) from None
    if as_json:
        print_json(added | {"token": token})
    else:
        err.print("Keep it now, it cannot be shown again:")
        print(token)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All tokens by name; ESL_ADMIN_TOKEN is not among them."""
    with buffer_here() as buffer:
        found = buffer.token_list()
    print_json(found) if as_json else shown.print_tokens(out, found)


@app.command()
def revoke(name: str, as_json: AsJson = False) -> None:
    """Refuse a token from now on."""
    with buffer_here() as buffer:
        revoked = buffer.token_revoke(name)
    if revoked is None:
        raise CommandError(f"there is no token {name}: see `esl-pipeline tokens list`")
    print_json(revoked) if as_json else shown.print_tokens(out, [revoked])
