"""`esl-pipeline labels`, `flash` and `probe`: what somebody does with the physical labels of a store."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands.shared import (
    AsJson,
    CommandError,
    buffer_here,
    cli_user,
    err,
    out,
    print_json,
    settings_here,
)
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.devices import is_not_known
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.printable import printable
from esl_pipeline.stages.hands import Hands, Hanging, NotBoundError

app = typer.Typer(help="Bind, replace and look at the labels on the shelf.", no_args_is_help=True)

Esl = Annotated[str, typer.Argument(help="The physical label's code, as printed on it.")]
Code = Annotated[str, typer.Argument(help="The label's product code.")]
InStore = Annotated[
    str | None, typer.Option("--store", help="The Hipoink store code; needed where several have such a name.")
]
_FLASHED_AT_ONCE = 100


@app.command()
def bind(esl: Esl, code: Code, store: InStore = None, as_json: AsJson = False) -> None:
    """Let a label show a product, whatever it showed, with the default template of its model."""
    with buffer_here() as buffer:
        found = _Found(buffer, [esl, code], store)
        place = found.store_of_product(code, beside=esl)
        with _at(buffer, found, place) as (hands, client):
            label = _hanging(hands, found, esl, place)
            is_listed = hands.bind(label, code)
            triggered = _refresh(buffer, found, client, place)
    _warn_of(found.product(place, code), label, place)
    done = {"store": place, "esl_code": esl, "code": code, "was": label.product_code, "triggered": triggered}
    if as_json:
        print_json(done | {"listed": is_listed})
        return
    was = f", no longer {label.product_code}" if label.product_code not in (None, code) else ""
    _say(f"{place}: {esl} shows {_described(found.product(place, code))}{was}; {_when(triggered)}")
    if not is_listed:
        _doubt(f"the label server accepted it and does not list it yet: look with `esl-pipeline flash {esl}`")


@app.command()
def replace(
    old: Annotated[str, typer.Argument(help="The code of the label that goes.")],
    new: Annotated[str, typer.Argument(help="The code of the one that takes over; it must show nothing.")],
    store: InStore = None,
    as_json: AsJson = False,
) -> None:
    """Let another label show what one shows. The new one is bound before the old one goes."""
    if old == new:
        raise CommandError("a label cannot take over from itself: name two")
    with buffer_here() as buffer:
        found = _Found(buffer, [old, new], store)
        place = found.store_of_label(old)
        with _at(buffer, found, place) as (hands, client):
            first, second = (_hanging(hands, found, esl, place) for esl in (old, new))
            code = first.product_code
            if code is None:
                raise CommandError(
                    f"{old} shows nothing in store {place}: esl-pipeline labels bind {new} CODE"
                )
            if found.is_probe(first):
                raise CommandError(
                    f"{old} is for measuring: set the policy probe_label to {new}, and esl-pipeline probe --store "
                    f"{place} --label {new}"
                )
            if second.product_code not in (None, code):
                raise CommandError(f"{new} shows {second.product_code}: take a label that shows nothing")
            hands.replace(first, second)
            triggered = _refresh(buffer, found, client, place)
    _warn_of(None, second, place)
    if as_json:
        print_json({"store": place, "old": old, "new": new, "code": code, "triggered": triggered})
    else:
        _say(f"{place}: {new} shows {code}, {old} shows nothing any more; {_when(triggered)}")


@app.command()
def seen(
    code: Code,
    price: Annotated[
        str | None, typer.Option(help="The price that it shows; where that is another one, this is recorded.")
    ] = None,
    store: InStore = None,
    as_json: AsJson = False,
) -> None:
    """Record that you have looked at a product's label on the shelf, and that it shows what it should."""
    with buffer_here() as buffer:
        found = _Found(buffer, [code], store)
        place = found.store_of_product(code)
        product = found.product(place, code)
        is_right = price is None or _is_same_price(price, product["label"]["pp"])
        is_so = buffer.hands_seen(
            action_id=str(uuid4()),
            by=cli_user(),
            store=place,
            code=code,
            label_hash=product["label_hash"],
            shows=None if is_right else price,
        )
    if not is_so:
        raise CommandError(f"store {place}: the label of {code} has just changed: look again")
    if as_json:
        print_json({"store": place, "code": code, "is_right": is_right, "label": product["label"]})
    elif is_right:
        _say(f"{place}: recorded that {cli_user()} has seen {_described(product)}")
    else:
        _doubt(
            f"{place}: recorded that {cli_user()} has seen {price} instead of {_described(product)}; why, "
            f"esl-pipeline trace {code} may tell"
        )


def flash(
    name: Annotated[str, typer.Argument(help="A product's code, or a label's: then it alone.")],
    store: InStore = None,
    as_json: AsJson = False,
) -> None:
    """Let the light of a product's labels flash, so that somebody finds them."""
    with buffer_here() as buffer:
        found = _Found(buffer, [name], store)
        place = found.store_of_any(name)
        with _at(buffer, found, place) as (hands, _):
            chosen = _to_flash(hands, found, name, place)
            if not chosen:
                raise CommandError(
                    f"store {place}: no physical label is known to show {name}, or is called so"
                )
            hands.flash(chosen, None if chosen == [name] else name)
    if as_json:
        print_json({"store": place, "labels": chosen})
    else:
        flash = "1 label flashes" if len(chosen) == 1 else f"{len(chosen)} labels flash"
        _say(f"{place}: {flash}: {', '.join(chosen)}")


def _to_flash(hands: Hands, found: "_Found", name: str, store: str) -> list[str]:
    """The label of this code, or those that show this product, as the label server says now; some of many."""
    known = found.labels(store, name)[:_FLASHED_AT_ONCE]
    now = hands.find_all(known or [name])
    if now is None:  # it cannot say
        return known
    return [label.esl_code for label in now if name in (label.esl_code, label.product_code)]


def probe(
    store: Annotated[str, typer.Option(help="The Hipoink store code.")],
    label: Annotated[
        str, typer.Option(help="The code of a label that is dedicated to it: online, and showing no product.")
    ],
    wait: Annotated[float, typer.Option(min=1, max=900, help="Seconds that a refresh may take.")] = 180,
    look: Annotated[
        bool, typer.Option("--look", help="Ask what the label shows, where its row does not tell.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find out with one label what its label server does: whether it refreshes by itself, whether that can be seen in
    its list, and how long it takes. Takes minutes; the label shows a product of its own from then on."""
    from dataclasses import asdict, replace

    from esl_pipeline.commands.shelf_lines import probe_result
    from esl_pipeline.connections import open_label_server
    from esl_pipeline.stages.probe import DEFAULT_RULES
    from esl_pipeline.stages.probe import probe as measure

    with buffer_here() as buffer:
        server = _Found(buffer, [label], store).server(store)
        with open_label_server(settings_here(), buffer, server) as client:
            done = measure(
                buffer.at(server),
                client,
                store=store,
                esl_code=label,
                by=cli_user(),
                run_id=f"cli-{uuid4()}",
                rules=replace(DEFAULT_RULES, wait=wait, quiet=min(DEFAULT_RULES.quiet, wait)),
                look=_ask if look else None,
                tell=lambda what: err.print(escape(printable(what)), style="dim", soft_wrap=True),
            )
    if as_json:
        print_json(asdict(done) | {"rows_move": done.rows_move})
    else:
        for line in probe_result(done, server):
            _say(line)
    if done.rows_move is None:
        raise typer.Exit(1)


def _ask(triggered: str, pushed: str) -> str | None:
    answer = typer.prompt(f"Which price does the label show, {triggered} or {pushed}", err=True)
    return next((price for price in (triggered, pushed) if _is_same_price(answer, price)), None)


def mapped_stores(buffer: Buffer, store: str | None) -> list[str]:
    """All mapped stores. Raises CommandError where the one that is meant is not among them."""
    return _Found(buffer, (), store).stores


class _Found:
    """What the buffer knows of the names that somebody gave; every refusal says what is there."""

    def __init__(self, buffer: Buffer, names: Sequence[str], store: str | None) -> None:
        known = buffer.hands_find(*names, store=store)
        self._servers = {row["store_code"]: row["label_server"] for row in known["stores"]}
        self._labels, self._products, self._store = known["labels"], known["products"], store
        if store is not None:
            self.server(store)

    @property
    def stores(self) -> list[str]:
        """Every mapped store."""
        return list(self._servers)

    def server(self, store: str) -> str:
        """The label server of a mapped store."""
        if store not in self._servers:
            there = ", ".join(self._servers) or "none is mapped yet"
            raise CommandError(f"no shop is mapped to store {store}: there are {there}")
        return str(self._servers[store])

    def store_of_product(self, code: str, beside: str | None = None) -> str:
        """The store that has a product of this code; of several the one that has the label named beside it."""
        stores = [row["store_code"] for row in self._products if row["code"] == code]
        if not stores:
            at = f"store {self._store}" if self._store else "any store"
            raise CommandError(
                f"the label server has accepted no label {code} for {at}: esl-pipeline trace {code}, or findings, may "
                "tell why"
            )
        with_label = [
            s for s in stores if beside and any(self._is_label(row, s, beside) for row in self._labels)
        ]
        return self._only(with_label or stores, f"product {code}")

    def store_of_label(self, esl: str) -> str:
        """The store where a label of this code hangs."""
        stores = [row["store_code"] for row in self._labels if row["esl_code"] == esl]
        return self._only(stores or self._named(esl), f"label {esl}")

    def store_of_any(self, name: str) -> str:
        """The store that has a label of this code, or one that shows this product, or the product."""
        for rows, key in (
            (self._labels, "esl_code"),
            (self._labels, "product_code"),
            (self._products, "code"),
        ):
            if stores := [row["store_code"] for row in rows if row[key] == name]:
                return self._only(stores, name)
        return self._only(self._named(name), name)

    def labels(self, store: str, name: str) -> list[str]:
        """The label of this code, or those that show this product or were bound to it lately."""
        codes = [row["esl_code"] for row in self._labels if row["store_code"] == store]
        return [name] if name in codes else codes

    def label(self, store: str, esl: str) -> Hanging | None:
        """A label as it was read last."""
        for row in self._labels:
            if self._is_label(row, store, esl):
                return Hanging(esl, row["product_code"], row["model"], row["online"])
        return None

    def product(self, store: str, code: str) -> Mapping[str, Any]:
        """A product of a store."""
        return next(row for row in self._products if (row["store_code"], row["code"]) == (store, code))

    def is_probe(self, label: Hanging) -> bool:
        """Whether a label is for measuring."""
        from esl_pipeline.labels.checks import RESERVED

        return (label.product_code or "").upper().startswith(RESERVED)

    def _named(self, name: str) -> list[str]:
        """The store that was said, or the only one there is: its label server may know what no pass has read yet."""
        if self._store:
            return [self._store]
        if len(self._servers) == 1:
            return list(self._servers)
        raise CommandError(
            f"nothing called {name} is known in any store ({', '.join(self._servers) or 'none is mapped yet'}): say "
            "--store"
        )

    @staticmethod
    def _only(stores: Sequence[str], what: str) -> str:
        several = sorted(set(stores))
        if len(several) > 1:
            raise CommandError(f"{what} is in {len(several)} stores ({', '.join(several)}): say --store")
        return several[0]

    @staticmethod
    def _is_label(row: Mapping[str, Any], store: str, esl: str) -> bool:
        return bool((row["store_code"], row["esl_code"]) == (store, esl))


@contextmanager
def _at(buffer: Buffer, found: _Found, store: str) -> Iterator[tuple[Hands, HipoinkClient]]:
    """Hands at a store's labels; what its label server refuses is said."""
    from esl_pipeline.connections import open_label_server

    with open_label_server(settings_here(), buffer, found.server(store)) as client:
        try:
            yield Hands(buffer, client, store=store, by=cli_user()), client
        except HipoinkError as error:
            unknown = ": the label server does not know this action" if is_not_known(error) else ""
            raise CommandError(f"{error}{unknown}") from None
        except NotBoundError as error:
            raise CommandError(str(error)) from None


def _hanging(hands: Hands, found: _Found, esl: str, store: str) -> Hanging:
    """A label as the server says now, or as it was read last."""
    label = hands.find(esl) or found.label(store, esl)
    if label is None:
        raise CommandError(f"store {store} has no label {esl} at its label server")
    return label


def _refresh(buffer: Buffer, found: _Found, client: HipoinkClient, store: str) -> bool:
    """Trigger what is due; whether this store was among it. Else the pipeline does it, as after its own pushes."""
    from esl_pipeline.stages.refresh import refresh_stores

    return store in refresh_stores(buffer.at(found.server(store)), client, run_id=f"cli-{uuid4()}")


def _when(triggered: bool) -> str:
    return "the store is being refreshed" if triggered else "the store's next refresh brings it"


def _described(product: Mapping[str, Any]) -> str:
    label = product["label"]
    return f"{product['code']} ({label['pn']}, {label['pp']})"


def _is_same_price(one: str, other: object) -> bool:
    try:
        first, second = (Decimal(str(price).strip().replace(",", ".")) for price in (one, other))
    except InvalidOperation:
        return False
    return first == second


def _warn_of(product: Mapping[str, Any] | None, label: Hanging, store: str) -> None:
    if label.online is False:
        _doubt(f"the label server does not reach {label.esl_code} now: it changes once it does")
    if product and product["waits"]:
        _doubt(f"{product['code']} is to be removed from store {store}: esl-pipeline trace {product['code']}")


def _say(sentence: str) -> None:
    out.print(escape(printable(sentence)), soft_wrap=True, highlight=False)


def _doubt(sentence: str) -> None:
    err.print(f"[yellow]{escape(printable(sentence))}[/]", soft_wrap=True, highlight=False)
