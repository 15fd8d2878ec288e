"""What the pretend Shopify answers, without the HTTP."""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; a text is sent as it is, anything else as JSON."""

    content: Json | str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
