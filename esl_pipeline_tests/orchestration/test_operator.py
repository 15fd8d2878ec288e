"""The operators' jobs, launched as Dagster's pages do: through GraphQL, on a real instance, with the roles of
production."""

from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import instance_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.test.utils import execute_dagster_graphql

from esl_pipeline.connections import open_label_server, push_rules
from esl_pipeline.orchestration.operator import ReplayForm
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import SHOP, STORE, arrive, map_shop, product
from esl_pipeline_tests.reliability.test_roles import login
from esl_pipeline_tests.scratch import scratch
from esl_pipeline_tests.world import drain_round

# Dagster's own, where a code location is loaded into this process.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Error loading"),
]

JOBS = {
    "push_labels_again",
    "pause_store",
    "resume_store",
    "replay_deliveries",
    "redrive_labels",
    "try_label_server",
    "approve_changes",
    "reject_changes",
    "remove_store",
}
LAUNCH = """
mutation ($run: ExecutionParams!) { launchRun(executionParams: $run) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
ENDED = """
query ($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } runConfigYaml eventConnection {
    events { __typename
        ... on LogMessageEvent { message }
        ... on ExecutionStepFailureEvent { error { message } }
        ... on ExecutionStepOutputEvent { metadataEntries { label ... on TextMetadataEntry { text } } } } } } } }"""
FORM = """
query ($of: PipelineSelector!) { runConfigSchemaOrError(selector: $of) { ... on RunConfigSchema { allConfigTypes {
    __typename
    ... on EnumConfigType { values { value } }
    ... on CompositeConfigType { fields { name description isRequired } } } } } }"""


def definitions() -> dg.Definitions:
    """What the code location loads, with the environment of the test."""
    from esl_pipeline.definitions import build_definitions

    return build_definitions()


class Ui:
    """Dagster's pages, as far as they are GraphQL."""

    def __init__(self, context: WorkspaceProcessContext, instance: dg.DagsterInstance) -> None:
        self.context, self.instance = context, instance

    def ask(self, query: str, **variables: Any) -> Any:
        answer = execute_dagster_graphql(self.context.create_request_context(), query, variables)
        assert not answer.errors, answer.errors
        return answer.data

    def launch(self, job: str, **config: Any) -> dict[str, Any]:
        """Launch a job as its Launchpad does and wait until it has ended -> what the run's page says of it."""
        run = {
            "selector": self._selector(job),
            "runConfigData": {"ops": {f"{job}_now": {"config": config}}},
            "mode": "default",
        }
        launched = self.ask(LAUNCH, run=run)["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            return dict(launched)
        run_id = launched["run"]["runId"]
        self.instance.launch_run(run_id, self.context.create_request_context())  # as the daemon does
        return {"id": run_id} | self.ask(ENDED, id=run_id)["runOrError"]

    def form(self, job: str) -> list[dict[str, Any]]:
        """What the Launchpad knows of a job's configuration."""
        schema = self.ask(FORM, of=self._selector(job))["runConfigSchemaOrError"]
        return list(schema["allConfigTypes"])

    def _selector(self, job: str) -> dict[str, str]:
        return {
            "repositoryLocationName": "esl",
            "repositoryName": "__repository__",
            "pipelineName": job,
        }


@pytest.fixture(scope="module")
def pages() -> Iterator[Ui]:
    """A code location of these definitions; which buffer a run finds is its environment's matter."""
    target = LoadableTargetOrigin(python_file=__file__, attribute="definitions")
    with (
        pytest.MonkeyPatch.context() as patch,
        TemporaryDirectory(dir=scratch()) as folder,
        instance_for_test(set_dagster_home=False, synchronous_run_launcher=True, temp_dir=folder) as found,
    ):
        patch.setenv("ESL_OPERATOR_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/esl")
        place = InProcessWorkspaceLoadTarget([InProcessCodeLocationOrigin(target, location_name="esl")])
        with WorkspaceProcessContext(found, place) as context:
            yield Ui(context, found)


@pytest.fixture
def ui(pages: Ui, pipeline: Pipeline, buffer_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Ui:
    monkeypatch.setenv("ESL_DATABASE_URL", login(buffer_dsn, "esl_pipeline"))
    monkeypatch.setenv("ESL_OPERATOR_DATABASE_URL", login(buffer_dsn, "esl_admin"))
    return pages


def drained(pipeline: Pipeline) -> None:
    """What is due is read and pushed, as a drain does."""
    settings = load_settings()
    with open_label_server(settings, pipeline.buffer) as client:
        drain_round(pipeline.buffer, client, push_rules(settings))


@pytest.fixture
def stocked(pipeline: Pipeline) -> Pipeline:
    """Three labels that hang."""
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1), product(2), product(3))
    drained(pipeline)
    assert set(pipeline.labels(STORE)) == {"C-1", "C-2", "C-3"}
    return pipeline


def said(run: dict[str, Any]) -> str:
    """The sentence in which a run says what it did."""
    assert run["status"] == "SUCCESS", run
    (sentence,) = [
        entry["text"]
        for event in run["eventConnection"]["events"]
        for entry in event.get("metadataEntries", ())
        if entry["label"] == "done"
    ]
    return str(sentence)


def failed(run: dict[str, Any]) -> str:
    """The sentence in which a run says why it did nothing; it is not run again."""
    assert run["status"] == "FAILURE", run
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert tags["dagster/max_retries"] == "0"
    assert tags["dagster/retry_on_asset_or_op_failure"] == "false"
    (error,) = [
        e["error"]["message"]
        for e in run["eventConnection"]["events"]
        if e["__typename"] == "ExecutionStepFailureEvent"
    ]
    return str(error).removeprefix("dagster._core.definitions.events.Failure: ").strip()


def kept(pipeline: Pipeline, run: dict[str, Any], action: str) -> dict[str, Any]:
    """What is kept of a run's action."""
    (row,) = [row for row in pipeline.buffer.operator_actions() if row["run_id"] == run["id"]]
    who = {key: row[key] for key in ("by", "verified", "db_user", "action")}
    assert who == {"by": "Ada", "verified": False, "db_user": "login_esl_admin", "action": action}
    return row


@pytest.mark.long
def test_without_a_login_of_their_own_there_are_no_such_jobs(
    pipeline: Pipeline, buffer_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert JOBS.isdisjoint(definitions().get_repository_def().job_names)
    monkeypatch.setenv("ESL_OPERATOR_DATABASE_URL", login(buffer_dsn, "esl_admin"))
    assert set(definitions().get_repository_def().job_names) >= JOBS


@pytest.mark.long
def test_every_field_of_every_form_is_explained_and_choices_are_shown(ui: Ui) -> None:
    for job in JOBS:
        types = ui.form(job)
        (form,) = [
            kind["fields"]
            for kind in types
            if kind["__typename"] == "CompositeConfigType" and {"by"} <= {f["name"] for f in kind["fields"]}
        ]
        assert [f["name"] for f in form if not f["description"]] == [], job
        assert next(f for f in form if f["name"] == "by")["isRequired"], job
    enums = {
        tuple(v["value"] for v in kind["values"])
        for job in ("push_labels_again", "remove_store", "replay_deliveries")
        for kind in ui.form(job)
        if kind["__typename"] == "EnumConfigType"
    }
    assert any("WHOLE_STORE" in values for values in enums)
    assert any({"KEEP", "BLANK", "REMOVE"} <= set(values) for values in enums)
    assert any("SUPERSEDED" in values for values in enums)


@pytest.mark.long
def test_labels_are_pushed_again(ui: Ui, stocked: Pipeline) -> None:
    stocked.sandbox.clear()
    run = ui.launch("push_labels_again", by="Ada", store=STORE, choose="CODES", values=["C-1", "C-3"])
    assert said(run) == f"{STORE}: 2 labels are due now"
    drained(stocked)
    assert set(stocked.labels(STORE)) == {"C-1", "C-3"}
    assert kept(stocked, run, "push")["how_many"] == 2
    assert said(ui.launch("push_labels_again", by="Ada", store=STORE, choose="WHOLE_STORE")).startswith(
        f"{STORE}: 3 labels"
    )


@pytest.mark.long
def test_a_value_that_a_form_does_not_allow_is_one_sentence() -> None:
    with pytest.raises(dg.Failure) as failure:
        ReplayForm(by="Ada", limit=0)
    assert failure.value.description == "limit is 0: input should be greater than or equal to 1"
    assert failure.value.allow_retries is False


@pytest.mark.long
def test_a_store_is_paused_and_resumed(ui: Ui, stocked: Pipeline) -> None:
    run = ui.launch("pause_store", by="Ada", store=STORE, reason="stock-taking", until="2h")
    assert said(run).startswith(f"{STORE}: paused until 20") and "stock-taking" in said(run)
    assert kept(stocked, run, "pause")["store_code"] == STORE
    arrive(stocked.buffer, product(1, price="9.00"))
    drained(stocked)
    assert stocked.labels(STORE)["C-1"]["pp"] == "1.50"
    run = ui.launch("resume_store", by="Ada", store=STORE)
    assert "1 label goes out now" in said(run)
    kept(stocked, run, "resume")
    drained(stocked)
    assert stocked.labels(STORE)["C-1"]["pp"] == "9.00"


@pytest.mark.long
def test_deliveries_are_replayed(ui: Ui, stocked: Pipeline) -> None:
    assert said(ui.launch("replay_deliveries", by="Ada", shop=SHOP, only_count=True)).startswith(
        "3 deliveries would"
    )
    run = ui.launch("replay_deliveries", by="Ada", shop=SHOP, since="1h", state="DONE", limit=2)
    assert said(run).startswith("2 deliveries are read again; there are more")
    assert kept(stocked, run, "replay")["how_many"] == 2
    assert stocked.rows("select count(*) from esl.webhook_inbox where state = 'ready'") == [(2,)]


@pytest.mark.long
def test_labels_are_redriven_by_reason(ui: Ui, stocked: Pipeline) -> None:
    stocked.sql(
        "insert into esl.sync_queue (store_code, code, mapping_id, variant_id, operation, label, label_hash,"
        " priority, state, last_error) select store_code, code, mapping_id, variant_id, 'upsert', label, label_hash,"
        " 2, 'failed', 'error 7: bad template ' || code from esl.hipoink_products"
    )
    run = ui.launch("redrive_labels", by="Ada", reason="template C-2")
    assert said(run) == "1 labels and 0 deliveries are due again"
    assert kept(stocked, run, "redrive")["asked"] == {"reason": "template C-2"}


@pytest.mark.long
def test_a_label_server_is_tried_now(ui: Ui, stocked: Pipeline) -> None:
    stocked.sql(
        "update esl.label_servers set failures = 3, down_since = now(), probe_at = now() + interval '1 hour',"
        " last_error = 'HTTP 503'"
    )
    arrive(stocked.buffer, product(1, price="9.00"))
    drained(stocked)
    assert stocked.labels(STORE)["C-1"]["pp"] == "1.50"
    run = ui.launch("try_label_server", by="Ada", label_server="default")
    assert "is tried with the next label now; 1 label waits for it" in said(run)
    kept(stocked, run, "try")
    drained(stocked)
    assert stocked.labels(STORE)["C-1"]["pp"] == "9.00" and stocked.buffer.due().outage is None


@pytest.mark.long
def test_waiting_changes_are_approved_and_rejected_one_by_one(ui: Ui, stocked: Pipeline) -> None:
    arrive(stocked.buffer, *(product(n) for n in range(4, 13)))
    drained(stocked)
    arrive(stocked.buffer, *(product(n, price="99.00") for n in range(1, 9)))
    drained(stocked)
    assert len(stocked.buffer.changes_waiting(store=STORE)) == 8
    run = ui.launch("reject_changes", by="Ada", store=STORE, codes=["C-1"], reason="a decimal point")
    assert "0 removals and 1 price changes are not made" in said(run)
    kept(stocked, run, "reject")
    run = ui.launch("approve_changes", by="Ada", store=STORE, codes=["C-2", "C-3"])
    assert said(run) == f"{STORE}: 0 removals and 2 price changes may go on"
    kept(stocked, run, "approve")
    drained(stocked)
    shown = {code: label["pp"] for code, label in stocked.labels(STORE).items()}
    assert {code for code, price in shown.items() if price == "99.00"} == {"C-2", "C-3"}
    assert "5 price changes" in said(ui.launch("approve_changes", by="Ada", store=STORE, all_that_wait=True))
    drained(stocked)
    assert stocked.labels(STORE)["C-1"]["pp"] == "1.50"


@pytest.mark.long
def test_a_store_is_removed_with_its_labels(ui: Ui, stocked: Pipeline) -> None:
    run = ui.launch("remove_store", by="Ada", store=STORE, labels="REMOVE", shop=SHOP)
    assert "3 labels at label server default are removed there" in said(run)
    assert kept(stocked, run, "remove")["how_many"] == 3
    drained(stocked)
    assert stocked.labels(STORE) == {} and stocked.buffer.mapping_list() == []


# One or two of each job: the names themselves are the doors' matter (stages/test_operator.py).
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "push, code": ("push_labels_again", {"store": STORE, "values": ["C-9"]}, "has no label C-9"),
    "push, nothing": ("push_labels_again", {"store": STORE}, "values is empty"),
    "pause, time": ("pause_store", {"store": STORE, "reason": "x", "until": "soon"}, "soon is no time"),
    "resume, not paused": ("resume_store", {"store": STORE}, "is not paused"),
    "replay, shop": ("replay_deliveries", {"shop": "nobody.myshopify.com"}, "nothing is known of a shop"),
    "redrive, reason": ("redrive_labels", {"reason": "x"}, 'has "x" in it'),
    "try": ("try_label_server", {"label_server": "north"}, "there is no label server north"),
    "approve, code": ("approve_changes", {"store": STORE, "codes": ["C-9"]}, "no change of C-9 waits"),
    "approve, nothing": ("approve_changes", {"store": STORE}, "say which changes"),
    "reject, code": ("reject_changes", {"store": STORE, "codes": ["C-1"]}, "no change of C-1 waits"),
    "remove, shop": (
        "remove_store",
        {"store": STORE, "labels": "KEEP", "shop": "nobody.myshopify.com"},
        "is not mapped to store",
    ),
}


@pytest.mark.long
def test_what_is_wrong_is_one_sentence_of_a_failed_run_and_nothing_is_done(ui: Ui, stocked: Pipeline) -> None:
    for name, (job, config, says) in WRONG.items():
        sentence = failed(ui.launch(job, by="Ada", **config))
        assert says in sentence and len(sentence.splitlines()) == 1, (name, sentence)
    assert "say who you are" in failed(ui.launch("resume_store", by=" ", store=STORE))
    assert stocked.buffer.operator_actions() == [] and stocked.rows(
        "select count(*) from esl.sync_queue"
    ) == [(0,)]


@pytest.mark.long
def test_a_form_without_what_it_needs_is_not_launched(ui: Ui) -> None:
    for config in ({"store": STORE}, {"by": "Ada"}, {"by": "Ada", "store": STORE, "reson": "x"}):
        assert ui.launch("pause_store", **config)["__typename"] == "RunConfigValidationInvalid"
    wrong = ui.launch("remove_store", by="Ada", store=STORE, labels="BURN")
    assert wrong["__typename"] == "RunConfigValidationInvalid"


@pytest.mark.long
def test_no_secret_is_in_what_dagster_keeps(
    ui: Ui, stocked: Pipeline, buffer_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a-secret-word"
    monkeypatch.setenv("ESL_OPERATOR_DATABASE_URL", f"postgresql://ada:{secret}@127.0.0.1:1/esl")
    run = ui.launch("resume_store", by="Ada", store=STORE)
    assert run["status"] == "FAILURE" and secret not in str(run)
    records = ui.instance.all_logs(run["id"])
    assert records and secret not in str(records)
