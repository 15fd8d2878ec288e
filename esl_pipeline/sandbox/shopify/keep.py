"""Keeps a shop in a file, so that it is the same shop after a restart."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from esl_pipeline.sandbox.shopify.catalogue import Product
from esl_pipeline.sandbox.shopify.shop import Shop, real_time
from esl_pipeline.sandbox.shopify.subscriptions import Subscription, Subscriptions


@dataclass
class _Kept:
    """What is in the file, as JSON."""

    created_at: datetime
    now: datetime
    products: list[Product]
    subscriptions: list[Subscription] = field(default_factory=list)


_FILE = TypeAdapter(_Kept)


def keep(shop: Shop, file: Path) -> None:
    """Write the whole shop; whatever happens meanwhile, the file holds this shop or the one before."""
    with shop.lock:
        kept = _Kept(shop.created_at, shop.now, list(shop.products.values()), shop.subscriptions.all())
        part = file.with_name(file.name + ".part")
        part.write_bytes(_FILE.dump_json(kept))
        part.replace(file)


def kept_shop(file: Path, seed: int) -> Shop:
    """The shop in the file, which changes in the real time from now on. Raises ValueError when it holds none."""
    try:
        kept = _FILE.validate_json(file.read_bytes())
    except ValidationError:
        raise ValueError(
            f"{file} holds no shop that this version can read: remove it to start anew"
        ) from None
    shop = Shop(seed, kept.created_at)
    shop.now = kept.now
    shop.products = {product.id: product for product in kept.products}
    shop.subscriptions = Subscriptions(kept.subscriptions)
    shop.clock = real_time
    return shop
