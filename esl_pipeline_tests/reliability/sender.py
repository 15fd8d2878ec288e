"""A shop that sends webhooks to a receiver and repeats what is not acknowledged, like Shopify."""

import json
import socket
import threading
import time
from dataclasses import dataclass, field
from uuid import uuid4

import httpx

from esl_pipeline_tests.receiver.support import signed
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import SHOP, Body

_TOPIC = "products/update"


@dataclass
class Half:
    """A body of which the first half is sent, and the second when it may go on."""

    sent: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


class Delivery:
    """One webhook that is sent until it is acknowledged, like Shopify's; `statuses` has all answers, None for none."""

    def __init__(self, port: int, body: Body, shop: str = SHOP) -> None:
        self.webhook_id = str(uuid4())
        self.statuses: list[int | None] = []
        self.half: Half | None = None
        self._port = port
        self._raw = json.dumps(body).encode()
        self._headers = signed(
            _TOPIC, self._raw, shop_domain=shop, webhook_id=self.webhook_id, triggered_at=body["updated_at"]
        )

    def send(self) -> None:
        """One try."""
        try:
            self.statuses.append(self._send_slowly(self.half) if self.half else self._send())
        except (OSError, httpx.TransportError):
            self.statuses.append(None)  # the receiver is gone

    def _send(self) -> int:
        url = f"http://127.0.0.1:{self._port}/webhooks/shopify/{_TOPIC}"
        return httpx.post(url, content=self._raw, headers=self._headers, timeout=10).status_code

    def _send_slowly(self, half: Half) -> int | None:
        """Wait in the middle of the body, once the receiver has asked for it (100 Continue)."""
        head = [f"POST /webhooks/shopify/{_TOPIC} HTTP/1.1", "Host: receiver", "Connection: close"]
        head += [f"{name}: {value}" for name, value in self._headers.items()]
        head += [f"Content-Length: {len(self._raw)}", "Expect: 100-continue", "", ""]
        self.half = None  # the next try is an ordinary one
        with socket.create_connection(("127.0.0.1", self._port), timeout=10) as connection:
            connection.sendall("\r\n".join(head).encode())
            assert connection.recv(1_000).startswith(b"HTTP/1.1 100")
            connection.sendall(self._raw[:100])
            half.sent.set()
            assert half.go_on.wait(10)
            connection.sendall(self._raw[100:])
            answer = connection.recv(1_000)
            return int(answer.split()[1]) if answer else None

    def send_until_acknowledged(self) -> None:
        def acknowledged() -> bool:
            self.send()
            return self.statuses[-1] == 200 or bool(time.sleep(0.2))

        if 200 not in self.statuses:
            eventually(acknowledged, 30)
