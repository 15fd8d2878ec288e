"""A store's policy: the choices a shopkeeper may make differently. Kept in the mapping's settings."""

from typing import Annotated, Any, Literal, Self

from iso4217 import Currency
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# The label server returns prices with two decimals (hipoink-api.md section 6).
LABEL_SERVER_DECIMALS = 2


class Policy(BaseModel):
    """Typed settings of one store mapping; every default is the safe choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")] | None = Field(
        default=None,
        description="ISO 4217 code of the shop's prices; without it prices have two decimals.",
    )
    send_images: bool = Field(default=True, description="Put the image address (https only) into `pim`.")
    stock_field: Literal["none", "kc", "qty"] = Field(
        default="none", description="The label field that takes the stock of `location_id`."
    )
    location_id: Annotated[str, StringConstraints(pattern="^[0-9]{1,20}$")] | None = Field(
        default=None,
        description="The Shopify location whose stock counts; stock is never summed over locations.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.currency is not None and self.currency not in Currency.__members__:
            raise ValueError(f"currency {self.currency} is not an ISO 4217 code")
        if self.stock_field != "none" and self.location_id is None:
            raise ValueError("stock_field needs location_id: stock of several locations is never summed")
        return self

    @property
    def decimals(self) -> int:
        """Minor units of the currency (JPY 0, EUR 2, KWD 3)."""
        if self.currency is None:
            return LABEL_SERVER_DECIMALS
        return Currency[self.currency].exponent or 0


def validate_policy(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a mapping as given, checked. Raises pydantic.ValidationError naming each bad field."""
    Policy.model_validate(settings)
    return settings
