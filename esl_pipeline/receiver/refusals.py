"""Wrong signatures, counted per shop that they claim, so that a wrong secret is seen before its webhooks are missed.

Whose such a webhook is nobody knows, so strangers must gain nothing by it: it is counted in memory and for mapped
shops alone, which a timer asks for; the same timer, and never a request, tells the buffer what was counted. Each
process counts for itself, and what it counted in its last seconds goes with it: a wrong secret is wrong again.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.model.shop import shop_key, shop_of

SHOPS = 1_000  # esl_refusals_note takes no more
TELL_SECONDS = 20.0
# Longer than the hours in which a source (Shopify) sends one webhook again, so that it is one series and not many.
QUIET = timedelta(hours=6)

log = logging.getLogger(__name__)


class Refusals:
    """The series of wrong signatures of each mapped shop. For one thread.

    shops: how many are counted for; beyond that the one that was refused least lately is forgotten.
    """

    def __init__(self, shops: int = SHOPS) -> None:
        self.receiver = secrets.token_hex(8)
        self._shops = shops
        self._mapped: frozenset[str] = frozenset()
        self._series: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._untold: set[str] = set()

    def refused(self, system: str, shop: str | None, now: datetime) -> None:
        """A wrong signature came with the claim to be this shop's, of this source."""
        key = f"{system}:{shop}"
        if shop is None or key not in self._mapped:
            return
        series = self._series.get(key)
        if series is None or now - series["last_at"] > QUIET:
            series = self._series[key] = {"refused": 0, "since": now}
        series |= {"refused": series["refused"] + 1, "last_at": now}
        self._series.move_to_end(key)
        self._untold.add(key)
        if len(self._series) > self._shops:
            forgotten, _ = self._series.popitem(last=False)
            self._untold.discard(forgotten)

    async def tell(self, buffer: Buffer) -> None:
        """Tell the buffer what was counted since it was told last, and learn which shops are mapped: one call.

        Raises BufferError; then the same is told the next time.
        """
        shops, self._untold = self._untold, set()
        told = [_told(shop, self._series[shop]) for shop in sorted(shops)]
        try:
            mapped = await asyncio.to_thread(buffer.refusals_note, receiver=self.receiver, refused=told)
        except BaseException:
            self._untold |= shops & self._series.keys()
            raise
        self._mapped = frozenset(map(shop_key, mapped))

    async def keep_telling(self, buffer: Buffer, seconds: float = TELL_SECONDS) -> None:
        """Tell every few seconds, for ever."""
        failing = False
        while True:
            try:
                await self.tell(buffer)
                failing = False
            except BufferError as error:
                if not failing:
                    log.warning("refused signatures cannot be told to the buffer: %a", str(error))
                failing = True
            except Exception:
                log.exception("refused signatures could not be told to the buffer")
            await asyncio.sleep(seconds)


def _told(key: str, series: dict[str, Any]) -> dict[str, Any]:
    times = {name: series[name].isoformat() for name in ("since", "last_at")}
    return {**shop_of(key), "refused": series["refused"], **times}
