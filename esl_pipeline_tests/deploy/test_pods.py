"""The pods of runs, as dagster-k8s builds them of our values and our jobs' tags. No cluster has seen them."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed")
pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

import kubernetes_validate
from dagster import DagsterRun
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job
from kubernetes.client import ApiClient

from esl_pipeline_tests.deploy.test_images import VALUES

# Dagster reads its resources in pydantic's old way.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

IMAGE = "registry.example.com/esl-pipeline:build"
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: none, user: {}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
"""
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
PARTS = {
    "containerConfig": "container_config",
    "podSpecConfig": "pod_spec_config",
    "jobSpecConfig": "job_spec_config",
}


@pytest.fixture
def launcher(tmp_path: Path) -> K8sRunLauncher:
    """As the chart configures it of our values, but for the cluster."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    return K8sRunLauncher(
        service_account_name="dagster",
        instance_config_map="dagster-instance",
        postgres_password_secret=VALUES["global"]["postgresqlSecretName"],
        dagster_home="/opt/dagster/dagster_home",
        job_namespace="default",
        load_incluster_config=False,
        kubeconfig_file=str(kubeconfig),
        image_pull_policy=LAUNCHER["imagePullPolicy"],
        resources=LAUNCHER["resources"],
        run_k8s_config={PARTS[name]: config for name, config in LAUNCHER["runK8sConfig"].items()},
    )


def pod_of(launcher: K8sRunLauncher, job: str) -> dict[str, Any]:
    """The Job that is sent to the cluster for a run of this job."""
    from esl_pipeline.definitions import build_definitions

    tags = build_definitions().resolve_job_def(job).run_tags
    context = K8sContainerContext.create_for_run(
        DagsterRun(job_name=job, tags=tags), launcher, include_run_tags=True
    )
    built = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(job_image=IMAGE, run_launcher=launcher),
        args=["dagster", "api", "execute_run"],
        job_name=f"run-{job.replace('_', '-')}",
        pod_name=f"run-{job.replace('_', '-')}",
        component="run_worker",
        user_defined_k8s_config=context.run_k8s_config,
    )
    sent: dict[str, Any] = ApiClient().sanitize_for_serialization(built)
    return sent


@pytest.mark.parametrize(
    ("job", "resources"),
    [
        ("event_sync", {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}),
        ("full_reconciliation", {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}),
        ("catch_up", LAUNCHER["resources"]),
    ],
)
def test_a_runs_pod_has_its_jobs_resources(
    launcher: K8sRunLauncher, job: str, resources: dict[str, Any]
) -> None:
    sent = pod_of(launcher, job)
    pod = sent["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert container["resources"] == resources
    assert container["image"] == IMAGE
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert sent["spec"]["backoffLimit"] == 0
    kubernetes_validate.validate(sent, kubernetes_validate.latest_version(), strict=True)
