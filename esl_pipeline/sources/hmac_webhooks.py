"""Webhooks that are signed with the base64 HMAC-SHA256 of their raw body, as most shop systems do it."""

import base64
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from starlette.datastructures import Headers

from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.secrets import WebhookSecret, keys_for, proves
from esl_pipeline.sources.signature import verify
from esl_pipeline.sources.source import DeliveryError, Webhooks


class HmacWebhooks(Webhooks):
    """Verified with these secrets. topic_header, shop_header and id_header: which headers name them, unsigned.

    system: of the source. shop_schema: JSON schema of the shop's header.
    """

    system: str
    topic_header: str
    shop_header: str
    id_header: str
    shop_schema: Mapping[str, Any]

    def __init__(self, secrets: Sequence[WebhookSecret]) -> None:
        self._secrets = tuple(secrets)

    @abstractmethod
    def shop_in(self, text: str) -> str | None:
        """The shop that a header's text names; None for what is none."""

    @property
    def are_verifiable(self) -> bool:
        """Whether there is any secret, an expired one included."""
        return bool(self._secrets)

    def parameters(self, topics: Sequence[str]) -> Mapping[str, dict[str, Any]]:
        """Topic and shop."""
        return {
            self.topic_header: {"type": "string", "enum": list(topics)},
            self.shop_header: dict(self.shop_schema),
        }

    def described(self, headers: Headers) -> tuple[str, str, str]:
        """Of the three headers."""
        names = (self.topic_header, self.shop_header, self.id_header)
        topic, shop, id = (headers.get(name, "") for name in names)
        return topic, shop, id

    def claimed_shop(self, headers: Headers) -> str | None:
        """What the shop's header names, where it is given once."""
        return self.shop_in(only(headers, self.shop_header) or "")

    def claims_signature(self, headers: Headers) -> bool:
        """Whether the signature's header is there, once."""
        return bool(only(headers, self.signature_header))

    def is_signed(self, headers: Headers, raw: bytes, now: datetime) -> bool:
        """Under a secret of the claimed shop, or of shops without their own."""
        signature = only(headers, self.signature_header) or ""
        return verify(raw, signature, keys_for(self._secrets, self.claimed_shop(headers), now))

    def proves(self, shop: str | None) -> bool:
        """Whether the shop has secrets that no other has."""
        return proves(self._secrets, shop)

    def delivery(self, topic: str | None, headers: Headers, raw: bytes, now: datetime) -> Row:  # noqa: ARG002
        """The inbox row of a webhook whose headers say all that there is to say, to be read whatever is in its body.

        A copy is told by its id and by its body. Raises DeliveryError.
        """
        named, shop = only(headers, self.topic_header), self.claimed_shop(headers)
        if named is None or (topic or named) != named or named not in self.topics:
            raise DeliveryError(f"{self.topic_header} must be given once and be a topic of this address.")
        if shop is None:
            raise DeliveryError(f"{self.shop_header} must be given once and be a shop's name.")
        sha256 = hashlib.sha256(raw).hexdigest()
        return {
            "source_system": self.system,
            "source_store_id": shop,
            "topic": named,
            "webhook_id": only(headers, self.id_header) or f"derived-{sha256}",
            "body_base64": base64.b64encode(raw).decode(),
            "body_sha256": sha256,
            "state": "ready",
            **dict.fromkeys(("event_id", "triggered_at", "api_version", "said_at", "reason")),
        }


def only(headers: Headers, name: str) -> str | None:
    """A header's value; None when it is missing or given more than once."""
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else None
