"""What every request to Shopify minds: for how long it is tried, and what passes by itself."""

from esl_pipeline.http import pause_before_retry
from esl_pipeline.sources.shopify.admin.errors import AdminUnavailableError

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 20.0
_LONGEST_PAUSE_HERE = 5.0


def pause_before_another_try(error: Exception) -> bool | float:
    """stamina's hook: False for no retry, True for its back-off, or the server's own pause in seconds."""
    if not isinstance(error, AdminUnavailableError):
        return False
    return pause_before_retry(error.retry_after, _LONGEST_PAUSE_HERE)
