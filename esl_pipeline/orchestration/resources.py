"""Resources: what runs need, built from the settings of the run's own process. No secret is run configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.connections import drain_limits, open_admin, open_buffer, open_label_server, push_rules
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.settings import Settings, load_settings
from esl_pipeline.sources.shopify.admin import AdminClient
from esl_pipeline.stages.drain import CONNECTIONS, DrainLimits
from esl_pipeline.stages.push import PushRules

HOW_TO_READ = "set SHOPIFY_API_KEY and SHOPIFY_API_SECRET, or SHOPIFY_ADMIN_TOKEN"


@dataclass(frozen=True)
class LabelServer:
    """The label server's client and how it is used."""

    client: HipoinkClient
    rules: PushRules
    limits: DrainLimits


@dataclass(frozen=True)
class ShopifyAdmin:
    """The shops' Admin APIs, for those that have an app or a token."""

    settings: Settings

    def has(self, shop: str) -> bool:
        """Whether there is a token or an app for a shop's domain."""
        return self.settings.admin_access(shop) is not None

    @contextmanager
    def client(self, shop: str) -> Iterator[AdminClient]:
        """A client of one shop. Raises dg.Failure, not to be retried, when there is neither app nor token for it."""
        client = open_admin(self.settings, shop)
        if client is None:
            raise dg.Failure(
                f"there is no app and no Admin API token for {shop}: {HOW_TO_READ}", allow_retries=False
            )
        with client:
            yield client


class ShopifyAdminResource(dg.ConfigurableResource[ShopifyAdmin]):
    """The Admin APIs that SHOPIFY_API_KEY, SHOPIFY_APPS and SHOPIFY_ADMIN_TOKEN open."""

    def create_resource(self, context: dg.InitResourceContext) -> ShopifyAdmin:
        """From the settings of this process."""
        return ShopifyAdmin(load_settings())


class BufferResource(dg.ConfigurableResource[Buffer]):
    """The buffer named by ESL_DATABASE_URL, or by SUPABASE_URL and SUPABASE_SERVICE_KEY."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Buffer]:
        """Open for one run or tick."""
        buffer = open_buffer(load_settings(), pool_size=CONNECTIONS)  # opened when needed
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
