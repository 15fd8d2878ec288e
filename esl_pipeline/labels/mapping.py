"""A store mapping as code reads it: which shop feeds which store, by which policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from pydantic import ValidationError

from esl_pipeline.labels.lengths import FIELD_LENGTH, fitted
from esl_pipeline.labels.policy import Policy, said_of
from esl_pipeline.model.shop import Shop


@dataclass(frozen=True)
class StoreMapping:
    """label_server: where the store is. settings: as kept, whatever they are. currency, taxes_included: what the shop
    says of its prices, where asked."""

    id: str
    shop: Shop
    store: str
    label_server: str
    is_active: bool
    is_dry_run: bool
    settings: Mapping[str, Any]
    currency: str | None = None
    taxes_included: bool | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """As the buffer gives it."""
        return cls(
            id=row["id"],
            shop={key: row[key] for key in ("source_system", "source_store_id")},
            store=row["hipoink_store_code"],
            label_server=row["label_server"],
            is_active=row["is_active"],
            is_dry_run=row["is_dry_run"],
            settings=row["settings"],
            currency=row.get("currency"),
            taxes_included=row.get("taxes_included"),
        )

    @property
    def policy(self) -> Policy | None:
        """What the settings say; None where they are not valid (see problem)."""
        return self._policy if isinstance(self._policy, Policy) else None

    @property
    def problem(self) -> str | None:
        """What is wrong with the settings, as much as somebody reads."""
        return self._policy if isinstance(self._policy, str) else None

    @cached_property
    def _policy(self) -> Policy | str:
        try:
            return Policy.model_validate(self.settings)
        except ValidationError as error:
            return _in_words(error)


def _in_words(error: ValidationError) -> str:
    """Each wrong setting with what is wrong with it."""
    words = "; ".join(
        f"{'.'.join(map(str, wrong['loc'])) or 'settings'}: {said_of(wrong, wrong['loc'])}"
        for wrong in error.errors(include_url=False, include_input=False, include_context=False)
    )
    return fitted(words, 4 * FIELD_LENGTH)
