"""Dockerfile, compose.yaml, the Kubernetes files and nginx's: each by its own checker, and against the package.

That an image can be built and a cluster takes the files cannot be seen from here.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from esl_pipeline.deploy.instances import instance_text
from esl_pipeline.deploy.processes import PROCESSES, Process
from esl_pipeline.settings import every_field
from esl_pipeline_tests.deploy.checkers import ROOT, checked, checker, resolve

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
HOME = "/var/lib/esl-pipeline/dagster"
KUBERNETES = ROOT / "deploy" / "kubernetes"
MANIFESTS = sorted(file for file in KUBERNETES.glob("*.yaml") if not file.name.endswith("-values.yaml"))
VALUES = yaml.safe_load((KUBERNETES / "dagster-values.yaml").read_text())
OURS = {process.name: process for process in PROCESSES}
WORKLOADS = {
    (file.name, each["kind"]): each
    for file in MANIFESTS
    for each in yaml.safe_load_all(file.read_text())
    if each["kind"] in {"Deployment", "Job"}
}


def test_every_file_of_deploy_is_checked_somewhere() -> None:
    known = {
        *("celery/dagster.yaml", "celery/workspace.yaml", "compose/workspace.yaml", "compose/secrets.sh"),
        *(
            "grafana/esl-pipeline.json",
            "nginx/esl-pipeline.conf",
            "compose/init.sql",
            "postgres/dagster.sql",
            "postgres/logins.sql",
        ),
        *("kubernetes/dagster-values.yaml", *(f"kubernetes/{file.name}" for file in MANIFESTS)),
    }
    assert {
        str(file.relative_to(ROOT / "deploy")) for file in (ROOT / "deploy").rglob("*") if file.is_file()
    } == known


# --- the image


def test_hadolint_takes_the_dockerfile() -> None:
    checked(checker("hadolint"), "Dockerfile")


def test_what_the_dockerfile_copies_is_there_and_sent_along() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().split("\n") if line.startswith("!")]
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*) \S+$", _dockerfile(), re.MULTILINE)
        for word in line.split()
    ]

    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(name == other or name.startswith(f"{other}/") for other in sent), name


def test_the_image_is_the_receiver_and_has_no_embedded_postgres() -> None:
    text = _dockerfile()
    command, asked = (json.loads(found) for found in re.findall(r"CMD (\[.*\])$", text, re.MULTILINE)[::-1])

    assert command == OURS["receiver"].command_at("0.0.0.0", HOME)
    assert asked == [*OURS["receiver"].health, "--json"]
    assert "USER 10001:10001" in text
    (lock,) = re.findall(r"--require-hashes .*-r (\S+)", text)
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
    assert not {name for name in locked if "pgserver" in name}
    assert {"celery", "dagster-k8s", "s3fs"} <= locked
    for name, value in re.findall(
        r"([A-Z_]+)=(\S+)", text.partition("ENV PATH=/opt")[2].partition("USER")[0]
    ):
        assert name.startswith(("PYTHON", "DAGSTER_")) or name.lower() in every_field(), (name, value)


def _dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text().replace("\\\n", "")


# --- compose.yaml


@pytest.mark.long
def test_the_compose_file_is_one() -> None:
    checked(checker("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_the_compose_file_has_every_process() -> None:
    assert set(SERVICES) == {"postgres", *OURS}


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_a_service_is_the_process_of_that_name(process: Process) -> None:
    service = SERVICES[process.name]

    assert service["command"] == process.command_at("0.0.0.0", HOME)
    test = service["healthcheck"].get("test", [])
    if process.health:
        assert test == ["CMD", *process.health, "--json"]
    assert [port.rpartition(":")[2] for port in service.get("ports", [])] in ([], [str(process.port)])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    _may_know(process, service["environment"])
    needed = {name for need in process.needs for name in need.split("|")[:1]}
    settings = {name.removesuffix("_FILE") for name in service["environment"]}
    assert needed - settings <= {"HIPOINK_API_BASE_URL"}  # no secret: in compose.env


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_a_service_gets_the_secrets_that_its_variables_name_and_no_other(process: Process) -> None:
    service = SERVICES[process.name]
    named = {
        value.removeprefix("/run/secrets/")
        for name, value in service["environment"].items()
        if name.endswith("_FILE")
    }

    assert named == set(service["secrets"])
    assert named <= set(COMPOSE["secrets"])
    assert all(secret == {"file": f"secrets/{name}"} for name, secret in COMPOSE["secrets"].items())


def test_the_script_makes_the_secrets_that_nobody_else_gives(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([str(ROOT / "deploy/compose/secrets.sh")], check=True, cwd=tmp_path)
    made = {file.name for file in (tmp_path / "secrets").iterdir()}

    from_outside = {"shopify_api_key", "shopify_api_secret", "shopify_webhook_secret", "hipoink_api_secret"}
    assert made == set(COMPOSE["secrets"]) - from_outside
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    url, password = (tmp_path / "secrets" / f"receiver_{kind}" for kind in ("database_url", "password"))
    assert f"//shelf_receiver:{password.read_text()}@" in url.read_text()


def test_the_containers_find_the_code_server() -> None:
    (place,) = yaml.safe_load((ROOT / "deploy/compose/workspace.yaml").read_text())["load_from"]

    assert place["grpc_server"]["host"] in SERVICES
    assert place["grpc_server"]["port"] == OURS["code-server"].port


def _may_know(process: Process, environment: dict[str, Any]) -> None:
    """Its variables are settings that it may know; those that name a file are of secrets."""
    known = process.settings()
    for name in environment:
        secret = name.removesuffix("_FILE")
        assert secret in known, (process.name, name)
        assert name == secret or known[secret], f"{name} would be read from a file, and is no secret"


# --- Kubernetes


@pytest.mark.long
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_the_manifests_are_valid(file: Path) -> None:
    checked(checker("kubernetes-validate"), "--strict", "--quiet", str(file))


def test_each_workload_is_a_process() -> None:
    assert {each["metadata"]["name"] for each in WORKLOADS.values()} == {
        *("esl-migrate", "esl-receiver", "esl-webserver")
    }
    for each in WORKLOADS.values():
        pod = each["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        process = OURS[container["name"]]
        assert container["command"] == [
            word.replace(f"{HOME}/workspace.yaml", "/workspace/workspace.yaml")
            for word in process.command_at("0.0.0.0", HOME)
        ]
        assert [port["containerPort"] for port in container.get("ports", [])] == [process.port] * bool(
            process.port
        )
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {"requests", "limits"} == set(container["resources"])
        own = {env["name"]: env for env in container["env"] if not env["name"].startswith("DAGSTER_")}
        _may_know(process, own)
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        for env in own.values():
            assert env["value"].rpartition("/")[0] in mounts


def test_what_strangers_reach_is_two_pods_behind_a_policy() -> None:
    every = {each["kind"]: each for each in yaml.safe_load_all((KUBERNETES / "receiver.yaml").read_text())}
    labels = every["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (container,) = every["Deployment"]["spec"]["template"]["spec"]["containers"]

    for kind, selector in (
        ("Service", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodDisruptionBudget", "selector"),
    ):
        found = every[kind]["spec"][selector]
        assert found.get("matchLabels", found) == labels, kind
    assert every["Deployment"]["spec"]["replicas"] > every["PodDisruptionBudget"]["spec"]["minAvailable"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "httpGet" not in container["livenessProbe"]
    paths = [path["path"] for path in every["Ingress"]["spec"]["rules"][0]["http"]["paths"]]
    assert paths == ["/webhooks/", "/health"]


@pytest.mark.long
def test_the_charts_code_server_is_ours() -> None:
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    (server,) = VALUES["dagsterWebserver"]["workspace"]["servers"]

    resolve(["dagster", "api", "grpc", "-h", "0.0.0.0", "-p", "4000", *deployment["dagsterApiGrpcArgs"]])
    assert (server["host"], server["port"]) == (deployment["name"], deployment["port"])
    assert deployment["port"] == OURS["code-server"].port
    assert server["name"] in deployment["dagsterApiGrpcArgs"]


def test_the_charts_instance_is_ours() -> None:
    ours, daemon = yaml.safe_load(instance_text()), VALUES["dagsterDaemon"]
    queue, monitoring = daemon["runCoordinator"]["config"]["queuedRunCoordinator"], daemon["runMonitoring"]

    assert {
        "max_concurrent_runs": queue["maxConcurrentRuns"],
        "dequeue_interval_seconds": queue["dequeueIntervalSeconds"],
        "tag_concurrency_limits": queue["tagConcurrencyLimits"],
    } == ours["run_coordinator"]["config"]
    assert {"enabled": True, "max_retries": daemon["runRetries"]["maxRetries"]} == ours["run_retries"]
    assert {
        "use_threads": daemon["sensors"]["useThreads"],
        "num_workers": daemon["sensors"]["numWorkers"],
    } == ours["sensors"]
    assert monitoring["pollIntervalSeconds"] == ours["run_monitoring"]["poll_interval_seconds"]
    for of in ("sensor", "schedule"):
        assert VALUES["retention"][of]["purgeAfterDays"] == ours["retention"][of]["purge_after_days"]


# --- nginx


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    nginx, openssl = checker("nginx"), checker("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = (
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    )
    checked(openssl, *made, "-subj", "/CN=example.com", "-keyout", str(key), "-out", str(certificate))
    text = _nginx()
    text = re.sub(r"ssl_certificate /.*;", f"ssl_certificate {certificate};", text)
    text = re.sub(r"ssl_certificate_key /.*;", f"ssl_certificate_key {key};", text)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{text}\n}}\n"
    )

    checked(nginx, "-t", "-q", "-c", str(tmp_path / "nginx.conf"))


def test_nginx_asks_our_ports_and_lets_strangers_reach_two_paths() -> None:
    hooks, people = _nginx().split("server {")[2:]

    assert re.findall(r"location (?:= )?(\S+) ", hooks) == ["/webhooks/", "/health", "/"]
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", hooks)) == {str(OURS["receiver"].port)}
    assert re.findall(r"127\.0\.0\.1:(\d+)", people) == [str(OURS["admin"].port), str(OURS["webserver"].port)]
    assert int(re.findall(r"client_max_body_size (\d+)m", hooks)[0]) * 2**20 >= 5_000_000


def _nginx() -> str:
    return (ROOT / "deploy/nginx/esl-pipeline.conf").read_text()
