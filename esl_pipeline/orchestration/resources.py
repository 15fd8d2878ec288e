"""Resources: what runs need, built from the settings of the run's own process. No secret is run configuration.

None holds another: what needs the buffer is given it, so that an override reaches whatever uses it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import dagster as dg

from esl_pipeline import logs
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.connections import (
    connections_of_run,
    drain_limits,
    open_buffer,
    open_label_server,
    push_rules,
)
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.model.push import PushRules
from esl_pipeline.model.shop import Shop
from esl_pipeline.settings import Settings, load_settings
from esl_pipeline.sources.source import Reader, Source
from esl_pipeline.stages.drain import DrainLimits


@dataclass(frozen=True)
class LabelServer:
    """A label server and how it is used."""

    settings: Settings
    name: str

    @contextmanager
    def client(self, buffer: Buffer) -> Iterator[HipoinkClient]:
        """Its client, paced together with all other runs through the buffer."""
        with open_label_server(self.settings, buffer, self.name) as client:
            yield client

    @property
    def rules(self) -> PushRules:
        """How pushes are batched and repeated."""
        return push_rules(self.settings, self.name)

    @property
    def limits(self) -> DrainLimits:
        """When a drain run ends."""
        return drain_limits(self.settings)


@dataclass(frozen=True)
class LabelServers:
    """The label servers, by the names that the settings give them."""

    settings: Settings

    def of(self, name: str) -> LabelServer:
        """One of them. Raises SettingsError when the settings name none so."""
        self.settings.label_server(name)
        return LabelServer(self.settings, name)


@dataclass(frozen=True)
class Sources:
    """Where shops' products come from, each source with its settings."""

    settings: Settings

    def of(self, shop: Shop) -> Source[Any]:
        """The shop's source. Raises dg.Failure, not to be retried, when none is called so."""
        system = shop["source_system"]
        if system not in self.settings.sources:
            raise dg.Failure(
                f"no source is called {system}; there are {', '.join(self.settings.sources)}",
                allow_retries=False,
            )
        return self.settings.sources[system]

    def opens(self, shop: Shop) -> bool:
        """Whether there is what it takes to read the shop."""
        source = self.settings.sources.get(shop["source_system"])
        return source is not None and source.opens(shop["source_store_id"])

    def why_not_read(self, shop: Shop) -> str | None:
        """Why the shop cannot be read although others of its source can; None where that is not so."""
        return self.settings.not_readable([shop]).get(shop["source_store_id"])

    @contextmanager
    def reader(self, shop: Shop) -> Iterator[Reader]:
        """A reader of one shop. Raises dg.Failure, not to be retried, when nothing opens it."""
        source = self.of(shop)
        if not source.opens(shop["source_store_id"]):
            raise dg.Failure(
                f"nothing opens {shop['source_store_id']}: {source.how_to_read}", allow_retries=False
            )
        with source.reader(shop["source_store_id"]) as reader:
            yield reader

    def how_to_read(self) -> str:
        """What to set so that shops can be read, for each source in use."""
        return "; ".join(source.how_to_read for source in self.settings.sources_in_use)


class SourcesResource(dg.ConfigurableResource[Sources]):
    """The registered sources, opened by their own settings."""

    def create_resource(self, context: dg.InitResourceContext) -> Sources:
        """From the settings of this process."""
        return Sources(load_settings())


class BufferResource(dg.ConfigurableResource[Buffer]):
    """The buffer named by ESL_DATABASE_URL, or by SUPABASE_URL and SUPABASE_SERVICE_KEY."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Buffer]:
        """Open for one run or tick."""
        settings = load_settings()
        buffer = open_buffer(settings, pool_size=connections_of_run(settings))  # opened when needed
        try:
            # Every run has a buffer, and every line that it logs is about the run.
            with logs.process_about(run_id=context.run.run_id) if context.run else nullcontext():
                yield buffer
        finally:
            buffer.close()


class LabelServerResource(dg.ConfigurableResource[LabelServers]):
    """The label servers: that of HIPOINK_API_BASE_URL, and those of HIPOINK_SERVERS_FILE."""

    def create_resource(self, context: dg.InitResourceContext) -> LabelServers:
        """From the settings of this process."""
        return LabelServers(load_settings())
