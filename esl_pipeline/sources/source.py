"""What a source brings: the door between one kind of shop system and everything else.

A source says facts and never writes. It is a class for what needs no settings (names of shops, reading deliveries), and
an object of it, made with the source's own settings, for what does (webhooks, readers, checks). Everything but names
and deliveries is optional. A new one is a folder here and a line in `registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, Self, TypeVar

from starlette.datastructures import Headers

from esl_pipeline.environment import Environment
from esl_pipeline.model.check import Check
from esl_pipeline.sources.facts import Facts, Row

OnStart = Callable[[datetime], None]


class SourceSettings(Environment):
    """The environment variables of one source; `settings.Settings` holds one object of each registered source's class.

    Every field has a default, and a name that begins with the source's. also_signing: what opens shops and signs their
    webhooks as well, beside the source's own ..._WEBHOOK_SECRET.
    """

    also_signing: ClassVar[tuple[str, ...]] = ()

    def warnings(self) -> Iterator[str]:
        """Sentences about settings that work but deserve a second look; no secret in them."""
        yield from ()


S = TypeVar("S", bound=SourceSettings)


class SourceError(Exception):
    """Reading failed. The text is for a reader: what, where, what to do; never with a secret."""


class SourceRefusedError(SourceError):
    """The source refuses this one request, and asking again will not help: a product may be wrong, not the shop."""


class NothingToReadError(SourceError):
    """There is nothing to read now, and nothing is wrong with the pipeline; the text says why. Nothing is concluded."""


class DeliveryError(ValueError):
    """The headers do not say what the delivery is, so it cannot be kept."""


@dataclass(frozen=True)
class News:
    """What `Reader.news` saw. state: for the next look. name: of this news, the same for the same; "" for none.

    whole: the catalogue is to be read; changes: the changes are.
    """

    state: str
    name: str = ""
    whole: bool = False
    changes: bool = False


class Memory(ABC):
    """What the pipeline keeps for a reader whose shop cannot tell it: the settings of the stores that it feeds, and
    what was read of its files (esl.source_files). Of one shop."""

    @abstractmethod
    def policies(self) -> Mapping[str, Mapping[str, Any]]:
        """Store code -> settings, of every active mapping of the shop."""

    @abstractmethod
    def known_files(self, files: Sequence[Row], columns: str) -> Row:
        """See Buffer.files_known."""

    @abstractmethod
    def note_file(self, file: Row) -> Row:
        """See Buffer.files_note."""

    @abstractmethod
    def finish_file(self, file_id: int, told: Sequence[str] | None) -> None:
        """See Buffer.files_finish."""


class Reader(ABC):
    """Reads one shop. A context manager. Every method may raise SourceError; after that nothing may be concluded from
    what is absent.

    stock_in_catalogue: whether the catalogue's parts hold the levels too, so that there is no `stock` to read.
    """

    stock_in_catalogue: ClassVar[bool] = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - not every reader holds something open
        """Give back what is open."""

    def remember(self, memory: Memory) -> None:  # noqa: B027 - only some need it
        """What is known of the shop; told before anything is read."""

    def stored(self) -> None:  # noqa: B027 - likewise
        """The catalogue that was read is stored, and what it does not have is gone."""

    def news(self, state: str) -> News:
        """Whether there is something to read, for sources that are_polled; state: of the last look, "" before it."""
        return News(state)

    def lets_in(self) -> bool | None:
        """Whether the shop still takes what opens it; None when that cannot be told now."""
        return None

    def shop(self) -> Facts:
        """Currency, taxes and time zone (`Facts.shops`), as far as the source says them."""
        return Facts()

    @abstractmethod
    def catalogue(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        """All variants with their products, at most `chunk` at a time; complete only when the iterator ends by itself.

        on_start is told when the read began, by the source's clock, before the first part is given. A row's
        `triggered_at` is that time.
        """

    def stock(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:  # noqa: ARG002
        """All levels, likewise. Asked only where a label shows stock and it does not come with the catalogue."""
        return iter(())

    @abstractmethod
    def changes(self, since: datetime) -> Iterator[Facts]:
        """Products that changed at `since` (aware) or later, each whole, with all its variants; may lag and overlap."""

    def product(self, product_id: str) -> Facts | None:
        """One product with all its variants; None when the shop has no such product. Raises SourceRefusedError too."""
        raise SourceRefusedError(f"product {product_id} cannot be asked for alone")


class Webhooks(ABC):
    """How a source's webhooks are told, verified and kept. Made with settings; knows nothing of the receiver.

    path: the address that takes every topic; each topic has one of its own below it. signature_header and
    `parameters` are for the OpenAPI page. sample_of_headers is for the log: which headers name topic, shop and id.
    """

    path: str
    topics: tuple[str, ...]
    signature_header: str

    @property
    @abstractmethod
    def are_verifiable(self) -> bool:
        """Whether there is any secret; without one every webhook is refused."""

    @abstractmethod
    def parameters(self, topics: Sequence[str]) -> Mapping[str, dict[str, Any]]:
        """Header to JSON schema, of what a delivery of these topics must have beside its signature."""

    @abstractmethod
    def described(self, headers: Headers) -> tuple[str, str, str]:
        """Topic, shop and id as the headers claim them; a stranger's text, or ""."""

    @abstractmethod
    def claimed_shop(self, headers: Headers) -> str | None:
        """The shop that the delivery claims to come from, None when the headers do not name one."""

    @abstractmethod
    def claims_signature(self, headers: Headers) -> bool:
        """Whether there is a signature at all."""

    @abstractmethod
    def is_signed(self, headers: Headers, raw: bytes, now: datetime) -> bool:
        """Whether the raw body was signed with a secret that counts for the shop that is claimed. Constant in time."""

    @abstractmethod
    def proves(self, shop: str | None) -> bool:
        """Whether a good signature can have been made for no other shop."""

    @abstractmethod
    def delivery(self, topic: str | None, headers: Headers, raw: bytes, now: datetime) -> Row:
        """The inbox row (see Buffer.inbox_add) of a delivery whose signature is good; topic: the address's.

        Raises DeliveryError when the headers are missing, doubled or wrong.
        """

    def is_greeting(self, headers: Headers, raw: bytes) -> bool:  # noqa: ARG002
        """Whether this is no delivery but a word that the source sends unsigned, to be answered 200 and forgotten."""
        return False


@dataclass(frozen=True)
class Verdict:
    """How a shop's connection is. problems: a sentence for each thing that is wrong. remarks: what else was seen."""

    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()


class Source(ABC, Generic[S]):
    """A place that products come from.

    system: `source_system` in every table; an address, an asset and the folder are called after it. name: for people.
    ids_are_global: whether a product's or item's id is one thing over all shops of the source. example_shop: how a
    shop is called, for people; shop_pattern: the same as a regular expression, for whole texts. how_to_read: what to
    set so that shops can be read; opens_others: why a shop cannot be read while others can. is_watched: whether
    `watch` can tell how a shop's connection is. is_polled: whether its readers can tell cheaply that there is `news`,
    so that they are asked every few seconds.
    """

    system: ClassVar[str]
    name: ClassVar[str]
    settings_class: ClassVar[type[SourceSettings]]
    ids_are_global: ClassVar[bool] = False
    example_shop: ClassVar[str]
    shop_pattern: ClassVar[str]
    how_to_read: ClassVar[str] = ""
    opens_others: ClassVar[str] = ""
    is_watched: ClassVar[bool] = False
    is_polled: ClassVar[bool] = False

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        needed = ("system", "name", "settings_class", "example_shop", "shop_pattern")
        if missing := [name for name in needed if not hasattr(cls, name)]:
            raise TypeError(
                f"the source {cls.__name__} does not say its {', '.join(missing)}: see {__name__}.Source"
            )

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @classmethod
    def products_asset(cls) -> str:
        """The Dagster asset of its products."""
        return f"{cls.system}_products"

    @classmethod
    @abstractmethod
    def shop_id(cls, text: str) -> str | None:
        """The canonical id of a shop that a machine names so; None when it is no shop's name."""

    @classmethod
    def shop_named(cls, text: str) -> str | None:
        """The same for what people write."""
        return cls.shop_id(text.strip())

    @classmethod
    def image_hosts(cls, shop: str) -> tuple[str, ...]:  # noqa: ARG003
        """Hosts whose images may go on a label where the policy names none."""
        return ()

    @classmethod
    def read_deliveries(cls, deliveries: Sequence[Mapping[str, Any]]) -> Facts:
        """Facts of claimed webhook deliveries, folded to the newest state per product. Never raises for a body."""
        reason = f"{cls.name} sends no webhooks"
        return Facts(events=[{"id": row["id"], "state": "unusable", "reason": reason} for row in deliveries])

    @classmethod
    def sends_webhooks(cls) -> bool:
        """Whether it has any, whatever the settings say."""
        return cls.webhooks is not Source.webhooks

    @property
    def is_set_up(self) -> bool:
        """Whether any of its settings is set."""
        return bool(self.settings.model_fields_set)

    def webhooks(self) -> Webhooks | None:
        """Its webhooks; None where it sends none."""
        return None

    @property
    def reads_any(self) -> bool:
        """Whether any shop can be read at all."""
        return False

    def opens(self, shop: str) -> bool:  # noqa: ARG002
        """Whether there is what it takes to read this shop (its canonical id)."""
        return False

    def reader(self, shop: str, *, patient: bool = True) -> Reader:  # noqa: ARG002
        """A reader of the shop. Raises SourceError when there is nothing that opens it.

        Not `patient`, for somebody who waits before a screen, it gives up after seconds what a run tries for a minute.
        """
        raise SourceError(f"{shop} cannot be read: {self.name} has no reader")

    def not_readable(self, shops: Sequence[str]) -> list[str]:
        """Those of these shops that nothing opens although others can be read; sorted, each once."""
        return sorted({shop for shop in shops if not self.opens(shop)}) if self.reads_any else []

    def checks(self, mapped: Sequence[str], active: Sequence[str]) -> Iterator[Check]:  # noqa: ARG002
        """For `doctor`: the shops that are mapped, and the active ones of them, against the settings and the source."""
        yield from ()

    def watch(
        self, row: Mapping[str, Any], *, base_url: str | None, patience: timedelta, now: datetime
    ) -> Verdict:
        """How a shop's connection is, a row of `Buffer.connection_list`; base_url: APP_BASE_URL. See is_watched."""
        raise NotImplementedError
