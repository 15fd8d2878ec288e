"""Resources: what runs need, built from the settings of the run's own process. No secret is run configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.connections import drain_limits, open_buffer, open_label_server, push_rules
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.settings import load_settings
from esl_pipeline.stages.drain import DrainLimits
from esl_pipeline.stages.push import PushRules


@dataclass(frozen=True)
class LabelServer:
    """The label server's client and how it is used."""

    client: HipoinkClient
    rules: PushRules
    limits: DrainLimits


class BufferResource(dg.ConfigurableResource[Buffer]):
    """The buffer named by ESL_DATABASE_URL, or by SUPABASE_URL and SUPABASE_SERVICE_KEY."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Buffer]:
        """Open for one run or tick."""
        buffer = open_buffer(load_settings())
        try:
            yield buffer
        finally:
            buffer.close()


class LabelServerResource(dg.ConfigurableResource[LabelServer]):
    """The label server named by HIPOINK_API_BASE_URL."""

    buffer: dg.ResourceDependency[Buffer]

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[LabelServer]:
        """Open for one run."""
        settings = load_settings()
        with open_label_server(settings, self.buffer) as client:
            yield LabelServer(client, push_rules(settings), drain_limits(settings))
