"""The two servers that take Shopify's webhooks, started as they run, before one buffer: for test_contract."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import SupabaseTransport
from esl_pipeline_tests.gateway import Gateway
from esl_pipeline_tests.receiver.support import SECRET, make_app, served, signed
from esl_pipeline_tests.supabase.function import running
from esl_pipeline_tests.watched import WatchedBuffer


@dataclass(frozen=True)
class Server:
    """One of them. address: where it takes every topic; each topic has its own below it. health: its other one."""

    address: str
    health: str
    gateway: Gateway
    buffer: WatchedBuffer
    client: httpx.Client

    @property
    def calls(self) -> list[str]:
        """What it has asked the buffer for because of what came in; timers and health ask too."""
        return [name for name in self.gateway.calls if name not in {"esl_refusals_note", "esl_version"}]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What it has kept."""
        return self.buffer.rows

    def send(self, topic: str | None, raw: bytes, headers: Any, **more: Any) -> httpx.Response:
        """A request as it is, to the topic's address or to the one for all."""
        path = self.address + (f"/{topic}" if topic else "")
        return self.client.post(path, content=raw, headers=headers, **more)

    def deliver(self, topic: str, raw: bytes, **changes: Any) -> httpx.Response:
        """A webhook, signed."""
        return self.send(topic, raw, signed(topic, raw, **changes))


Settings = dict[str, str | None]
"""By their names in small letters."""


class Servers:
    """Of one kind, before one gateway; each of other settings is started once."""

    def __init__(self, kind: str, gateway: Gateway, buffer: WatchedBuffer) -> None:
        self._start = {"python": self._python, "deno": self._deno}[kind]
        self._gateway, self._buffer = gateway, buffer
        self._started: dict[tuple[tuple[str, str | None], ...], Server] = {}
        self._running = ExitStack()
        self._client = self._running.enter_context(httpx.Client(timeout=20))

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def with_settings(self, **settings: str | None) -> Server:
        """The server of these settings."""
        settings = {"shopify_webhook_secret": SECRET} | settings
        key = tuple(sorted(settings.items()))
        if key not in self._started:
            address, health = self._running.enter_context(self._start(settings))
            self._started[key] = Server(address, health, self._gateway, self._buffer, self._client)
        return self._started[key]

    @contextmanager
    def _python(self, settings: Settings) -> Iterator[tuple[str, str]]:
        key = SecretStr(self._gateway.service_key)
        with (
            SupabaseTransport(self._gateway.url, key, attempts=1) as transport,
            served(make_app(Buffer(transport), **settings)) as url,
        ):
            yield f"{url}/webhooks/shopify", f"{url}/health"

    @contextmanager
    def _deno(self, settings: Settings) -> Iterator[tuple[str, str]]:
        variables = {name.upper(): value for name, value in settings.items() if value is not None}
        project = {
            "SUPABASE_URL": self._gateway.url,
            "SUPABASE_SECRET_KEYS": f'{{"default": "{self._gateway.service_key}"}}',
        }
        with running(variables | project) as function:
            yield function.url, f"{function.url}/health"
