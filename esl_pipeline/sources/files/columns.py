"""Which column of a file says what: by the mapping's policy, else by the names that people use. Pure."""

from collections.abc import Mapping, Sequence

from esl_pipeline.sources.files.faults import FileError
from esl_pipeline.sources.files.table import normal, shown

# Field -> names under which its column is found without being named; compared as table.normal makes them.
NAMES: Mapping[str, tuple[str, ...]] = {
    "id": (
        *(
            "id",
            "article number",
            "article no",
            "article id",
            "item number",
            "item no",
            "item id",
            "product id",
        ),
        *("artikelnummer", "artikel nr", "artikelnr", "artikel nummer", "art nr", "artnr", "produktnummer"),
    ),
    "code": (
        *(
            "code",
            "barcode",
            "bar code",
            "ean",
            "ean code",
            "ean nummer",
            "gtin",
            "gtin ean",
            "ean gtin",
            "upc",
        ),
        *("strichcode", "ean13", "ean 13"),
    ),
    "title": (
        *("title", "name", "description", "product", "product name", "item name", "item description"),
        *("bezeichnung", "artikelbezeichnung", "artikelname", "produkt", "produktname", "beschreibung"),
    ),
    "variant_title": ("variant", "variant title", "variante"),
    "price": (
        *("price", "retail price", "sales price", "selling price", "gross price"),
        *("preis", "vk", "vk preis", "verkaufspreis", "bruttopreis", "vk brutto", "endpreis"),
    ),
    "compare_at_price": (
        *("compare at price", "was price", "old price", "rrp", "list price"),
        *("uvp", "statt", "statt preis", "stattpreis", "streichpreis", "alter preis"),
    ),
    "sku": ("sku",),
    "vendor": ("vendor", "brand", "manufacturer", "hersteller", "marke"),
    "product_type": (
        *("product type", "type", "category", "group", "department"),
        *("warengruppe", "kategorie", "artikelgruppe", "abteilung"),
    ),
    "tags": ("tags", "schlagworte"),
    "image_url": ("image", "image url", "bild", "bild url"),
    "stock": ("stock", "quantity", "qty", "stock quantity", "bestand", "lagerbestand"),
    "deleted": ("deleted", "delete", "removed", "gelöscht", "geloescht", "entfernt"),
}
_NEEDED = ("title", "price")

Places = Mapping[str, int]


def known(header: Sequence[str], named: Mapping[str, str]) -> int:
    """How many columns of a header are known."""
    names = set(map(normal, header))
    return sum(normal(name) in names for name in named.values()) + sum(
        bool(names & set(defaults)) for field, defaults in NAMES.items() if field not in named
    )


def places(header: Sequence[str], named: Mapping[str, str], *, is_full: bool) -> Places:
    """Field -> position of its column. named: field -> column, of the policy.

    Raises FileError for a header that lacks what its kind of list needs, or where two columns may be meant.
    """
    at = {normal(name): position for position, name in enumerate(header) if name}
    found: dict[str, int] = {}
    for field, name in named.items():
        if normal(name) not in at:
            raise FileError(
                f"it has no column {shown(name)}, which the store's columns name for {field}; {_has(header)}"
            )
        found[field] = at[normal(name)]
    free = {name: position for name, position in at.items() if position not in found.values()}
    for field, names in NAMES.items():
        if field in found:
            continue
        meant = [name for name in names if name in free]
        if len(meant) > 1:
            columns = " and ".join(shown(header[free[name]]) for name in meant)
            raise FileError(f"{columns} may each be the {field}: say which, in the store's setting columns")
        if meant:
            found[field] = free[meant[0]]
    _check(found, header, is_full=is_full)
    return found


def _check(found: Places, header: Sequence[str], *, is_full: bool) -> None:
    if not found.keys() & {"id", "code"}:
        raise FileError(f"no column is known as the code or the article's number (id); {_has(header)}")
    if is_full and (missing := [field for field in _NEEDED if field not in found]):
        raise FileError(
            f"no column is known as the {' and the '.join(missing)}, which a full list needs: name it in the store's "
            f"setting columns; {_has(header)}"
        )
    if len(found) == 1:
        raise FileError(f"it tells nothing of its products but which they are; {_has(header)}")


def _has(header: Sequence[str]) -> str:
    return f"its columns are {', '.join(map(shown, header[:30]))}"
