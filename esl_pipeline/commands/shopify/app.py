"""`esl-pipeline shopify`: connect a shop, see how it stands, disconnect it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from esl_pipeline.commands import shared
from esl_pipeline.commands.shared import AsJson, CommandError, Share
from esl_pipeline.printable import printable
from esl_pipeline.sources.shopify.shop_names import shop_named

if TYPE_CHECKING:
    from esl_pipeline.sources.shopify.connect import Kind, Line

app = typer.Typer(help="Connect Shopify shops.", no_args_is_help=True)

Shop = Annotated[str, typer.Argument(help="The shop's domain, e.g. demo.myshopify.com, or its name.")]


@app.command()
def connect(
    shop: Shop,
    *,
    store: Annotated[
        str | None, typer.Option(help="A Hipoink store code: map the shop there, in dry run, and read it.")
    ] = None,
    location: Annotated[
        str | None, typer.Option(help="Whose stock counts, by name or id, where there are several.")
    ] = None,
    toml: Annotated[
        bool | None,
        typer.Option(
            "--toml/--api", help="The app's shopify.app.toml subscribes (prints the block), or we do."
        ),
    ] = None,
    share: Share = False,
    as_json: AsJson = False,
) -> None:
    """Connect a shop: access, scopes, location, webhooks; with a store its first labels. May be repeated any time."""
    from esl_pipeline.commands.shopify import first_day
    from esl_pipeline.receiver.mappings import NewMapping

    domain = _domain(shop)
    if store is not None:
        named = {"source_system": "shopify", "source_store_id": domain, "hipoink_store_code": store}
        shared.checked_by(NewMapping, named)
    kind: Kind | None = None if toml is None else "toml" if toml else "api"
    wish = first_day.Wish(domain, kind, store, location, share)
    told = _Told(as_json)
    with told, shared.buffer_here() as buffer, shared.said_of_refusals():
        done = first_day.connect(shared.settings_here(), buffer, wish, by=shared.cli_user(), say=told.say)
        told.more = {"mapping": done.mapping, "toml": done.toml}
    if done.toml is not None and not as_json:
        shared.out.print("\nInto the app's shopify.app.toml, then `shopify app deploy`:\n")
        print(done.toml)


@app.command()
def status(
    shop: Annotated[str | None, typer.Argument(help="One shop only.")] = None, as_json: AsJson = False
) -> None:
    """How each shop is connected: what `connect` says, and the webhooks that arrive; changes nothing."""
    from esl_pipeline.commands.shopify import first_day

    settings = shared.settings_here()
    with shared.buffer_here() as buffer:
        connections, mappings = buffer.connection_list(), buffer.mappings()
    rows = {row["source_store_id"]: row for row in connections if row["source_system"] == "shopify"}
    names = first_day.shops_of(settings, connections) if shop is None else [_domain(shop)]
    if not names:
        raise CommandError("no shop is connected: esl-pipeline shopify connect SHOP")
    all_told, wrong = {}, False
    for name in names:
        told = _Told(as_json)
        if not as_json:
            shared.out.print(f"[bold]{escape(name)}[/]")
        key = {"source_system": "shopify", "source_store_id": name}
        ours = [mapping for mapping in mappings if mapping.shop == key]
        first_day.show(settings, name, rows.get(name, {}), ours, told.say)
        all_told[name] = [asdict(line) for line in told.lines]
        wrong |= any(line.state == "wrong" for line in told.lines)
    if as_json:
        shared.print_json(all_told)
    if wrong:
        raise typer.Exit(1)


@app.command()
def disconnect(shop: Shop, as_json: AsJson = False) -> None:
    """Remove our webhook subscriptions and pause the shop's mappings; its labels stay as they hang."""
    from esl_pipeline.commands.shopify import first_day

    domain, told = _domain(shop), _Told(as_json)
    with told, shared.buffer_here() as buffer:
        first_day.disconnect(shared.settings_here(), buffer, domain, by=shared.cli_user(), say=told.say)


class _Told:
    """The lines of a command, printed as they come or as JSON at the end. A step that failed is exit code 1."""

    def __init__(self, as_json: bool) -> None:
        self.lines: list[Line] = []
        self.more: dict[str, object] = {}
        self._as_json = as_json

    def say(self, line: "Line") -> None:
        self.lines.append(line)
        if not self._as_json:
            says = escape(printable(line.says))
            shared.out.print(
                f"{shared.MARKS[line.state]} {line.what:<13} {says}", soft_wrap=True, highlight=False
            )

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from esl_pipeline.sources.shopify.connect import NotConnectedError

        if self._as_json and (error is None or isinstance(error, NotConnectedError)):
            shared.print_json({"lines": [asdict(line) for line in self.lines]} | self.more)
        if isinstance(error, NotConnectedError):
            raise typer.Exit(1) from None


def _domain(shop: str) -> str:
    domain = shop_named(shop)
    if domain is None:
        raise CommandError(f"{shop} is no shop's domain: write it like my-shop.myshopify.com")
    return domain
