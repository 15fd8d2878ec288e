"""How the devices of a sandbox store behave, and what people can do with them: what /sandbox/ is asked with."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Floor(_Strict):
    """How the labels of a store behave. Seconds are real ones, and those of `tick`."""

    auto_trigger: bool | None = None
    """Whether a change starts the refresh by itself; None: as the server does."""
    poll_seconds: float = Field(default=0, ge=0)
    """How often a device asks for its picture; 0: it has it at once."""
    rows_move: Literal["on_refresh", "never", "on_poll", "on_push"] = "on_refresh"
    """What moves a row's `updated_at`, beside bindings: the refresh, nothing, each poll, or the product's change."""
    sleep_after: float | None = Field(default=None, gt=0)
    """A device without a refresh for so long sleeps deeply: its next one takes wake_seconds."""
    wake_seconds: float = Field(default=60, ge=0)
    offline_after: float = Field(default=0, ge=0)
    """How long the server goes on to call a device online that it has lost."""
    staff: bool = False
    """People bind a label to every product that has none, as soon as it is there, and take blank ones away."""


class Hang(_Strict):
    """Devices to hang in a store: one for each of its products, or of `products`; or `count` in turn; and spares."""

    store: str
    products: list[str] | None = None
    count: int | None = Field(default=None, ge=0)
    unbound: int = Field(default=0, ge=0)
    esl_codes: list[str] | None = None
    model: str = "ESL29"
    template: int | None = None
    aps: list[str] = Field(default=["AP-1"], min_length=1)
    battery: float = 3000
    drain: float = Field(default=0, ge=0)
    shown: bool = True
    """Whether they show their product already; else they are blank and in the refresh queue."""


class Change(_Strict):
    """What happens to devices of a store: to those named, to those bound to `products`, or to all."""

    store: str
    esl_codes: list[str] | None = None
    products: list[str] | None = None
    offline: bool | None = None
    asleep: bool | None = None
    fallen: bool | None = None
    template: int | None = None
    model: str | None = None
    ap: str | None = None
    battery: float | None = None
    drain: float | None = Field(default=None, ge=0)


class Template(_Strict):
    """A template of a model; `fields` are the request codes that it shows, None: all."""

    id: int
    model: str
    name: str
    is_default: bool = False
    fields: list[str] | None = None
