"""What a run is given where each is a pod of its own (deploy/kubernetes); elsewhere nobody reads it.

Jobs that say nothing get what the launcher's own configuration names.
"""

from typing import Any


def pod(*, cpu: str, memory: str, at_most: str) -> dict[str, Any]:
    """The tag of a job: what its pod asks for, and the memory beyond which it is ended. CPU has no limit: a drain that
    is throttled is a price that comes late."""
    resources = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": at_most}}
    return {"dagster-k8s/config": {"container_config": {"resources": resources}}}
