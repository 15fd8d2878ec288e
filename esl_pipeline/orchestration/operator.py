"""The operators' jobs: what people want done now, with a form each. They exist where ESL_OPERATOR_DATABASE_URL is set.

Dagster's webserver has no login and the pipeline's own role may do none of this, so they use a login of their own, and
who launches them is what the form says: kept as unverified, beside the run's id.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import TypeVar

import dagster as dg
from pydantic import Field

from esl_pipeline import done
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import ActionRefused
from esl_pipeline.buffer.operator import Who
from esl_pipeline.connections import open_operator_buffer
from esl_pipeline.moments import moment_named
from esl_pipeline.orchestration import forms
from esl_pipeline.orchestration.failures import stop_retries
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.storable import unstorable

_STORE = "The Hipoink store code, e.g. 001."
_TAGS = {"dagster/max_retries": "0", "dagster/max_runtime": "600", "esl/role": "operator"}


class Form(forms.Form):
    """What every operator's job is told."""

    by: str = Field(
        description="Who you are. Kept with what is done; as Dagster asks for no password, as unverified."
    )


class Choice(Enum):
    """How labels are chosen."""

    CODES = "codes"
    PRODUCT = "product"
    SKU = "sku"
    VENDOR = "vendor"
    TAG = "tag"
    PRODUCT_TYPE = "product_type"
    WHOLE_STORE = "whole_store"


class PushForm(Form):
    """Which labels go out once more."""

    store: str = Field(description=_STORE)
    choose: Choice = Field(
        Choice.CODES, description="What `values` are; whole_store: all labels of the store, without values."
    )
    values: list[str] = Field(
        [],
        description="Codes, any number; or one product (id or handle), SKU, vendor, tag or product type.",
    )


class PauseForm(Form):
    """Which store is left alone, why, and until when."""

    store: str = Field(description=_STORE)
    reason: str = Field(description="Why; whoever finds the store paused reads it.")
    until: str = Field(
        "",
        description='When it ends by itself: "2026-11-28 18:00" (UTC), or 90min, 2h, 3d. Empty: when it is resumed.',
    )


class StoreForm(Form):
    """Which store."""

    store: str = Field(description=_STORE)


class Ended(Enum):
    """How a delivery has ended."""

    ANY = "any"
    DONE = "done"
    SUPERSEDED = "superseded"
    UNUSABLE = "unusable"
    DEAD = "dead"


class ReplayForm(Form):
    """Which deliveries are read again: those of which all of this is true."""

    ids: list[str] = Field([], description="Webhook ids, or numbers of the inbox. Empty: any.")
    shop: str = Field("", description="The shop's domain. Empty: any.")
    since: str = Field("", description='Received then or later: "2026-11-28 18:00" (UTC), or 2h ago as 2h.')
    until: str = Field("", description="Received before then.")
    reason: str = Field("", description="A part of why they were not used. Empty: any.")
    state: Ended = Field(Ended.ANY, description="How they have ended.")
    limit: int = Field(10_000, ge=1, le=100_000, description="At most so many, the oldest.")
    only_count: bool = Field(False, description="Only say how many there are.")


class RedriveForm(Form):
    """Which refused, failed and dead labels are due again."""

    store: str = Field("", description="Of one Hipoink store. Empty: of all, and dead deliveries as well.")
    code: str = Field("", description="Of one label. Empty: all.")
    reason: str = Field("", description="Only those of whose refusal this is a part. Empty: any.")


class ServerForm(Form):
    """Which label server."""

    label_server: str = Field("default", description="Its name in the settings, or default.")


class ApproveForm(Form):
    """Which waiting changes go on."""

    store: str = Field(description=_STORE)
    codes: list[str] = Field([], description="The labels' codes: `esl-pipeline changes list`.")
    all_that_wait: bool = Field(False, description="Instead of codes: all but the rejected ones.")


class RejectForm(Form):
    """Which waiting changes are not made."""

    store: str = Field(description=_STORE)
    codes: list[str] = Field(description="The labels' codes: `esl-pipeline changes list`.")
    reason: str = Field("", description="Why; the list of changes shows it.")


class Fate(Enum):
    """What becomes of the labels of a store that is removed."""

    KEEP = "keep"
    BLANK = "blank"
    REMOVE = "remove"


class RemoveForm(Form):
    """Which store is removed."""

    store: str = Field(description=_STORE)
    labels: Fate = Field(
        description="What becomes of its labels: they stay as they are (keep), become blank, or are removed at the "
        "label server."
    )
    shop: str = Field(
        "", description="Only this shop leaves it, by its domain. Empty: every shop that feeds it."
    )


def _push(buffer: Buffer, form: PushForm, who: Who) -> str:
    way, values = form.choose, form.values
    if way is not Choice.WHOLE_STORE and not values:
        raise ActionRefused(f"say which: values is empty, and is to name the {way.value}")
    if way is Choice.WHOLE_STORE and values:
        raise ActionRefused("choose whole_store without values, or say what the values are")
    if way not in {Choice.CODES, Choice.WHOLE_STORE} and len(values) > 1:
        raise ActionRefused(f"one {way.value} at a time")
    chosen = {way.value: values if way is Choice.CODES else values[0]} if values else {"whole": True}
    return done.pushed(form.store, buffer.labels_push(store=form.store, **chosen, **who))


def _pause(buffer: Buffer, form: PauseForm, who: Who) -> str:
    until = _moment(form.until, ahead=True)
    return done.paused(buffer.store_pause(store=form.store, reason=form.reason, until=until, **who))


def _resume(buffer: Buffer, form: StoreForm, who: Who) -> str:
    return done.resumed(buffer.store_resume(store=form.store, **who))


def _replay(buffer: Buffer, form: ReplayForm, who: Who) -> str:
    answer = buffer.deliveries_replay(
        ids=form.ids or None,
        shop=_shop(form.shop),
        since=_moment(form.since, ahead=False),
        until=_moment(form.until, ahead=False),
        reason=form.reason or None,
        state=None if form.state is Ended.ANY else form.state.value,
        limit=form.limit,
        dry_run=form.only_count,
        **who,
    )
    return done.replayed(answer, dry_run=form.only_count)


def _redrive(buffer: Buffer, form: RedriveForm, who: Who) -> str:
    chosen = {"store": form.store or None, "code": form.code or None, "reason": form.reason or None}
    return done.redriven(buffer.redrive(**chosen, **who))


def _try(buffer: Buffer, form: ServerForm, who: Who) -> str:
    return done.tried(buffer.label_server_try(label_server=form.label_server, **who))


def _approve(buffer: Buffer, form: ApproveForm, who: Who) -> str:
    if bool(form.codes) == form.all_that_wait:
        raise ActionRefused("say which changes: name codes, or all_that_wait, not both")
    return done.approved(
        form.store, buffer.changes_approve(store=form.store, codes=form.codes or None, **who)
    )


def _reject(buffer: Buffer, form: RejectForm, who: Who) -> str:
    if not form.codes:
        raise ActionRefused("say which changes: codes is empty")
    answer = buffer.changes_reject(store=form.store, codes=form.codes, reason=form.reason or None, **who)
    return done.rejected(form.store, answer)


def _remove(buffer: Buffer, form: RemoveForm, who: Who) -> str:
    how = form.labels.value
    answer = buffer.store_remove(store=form.store, labels=how, shop=_shop(form.shop), **who)
    return done.removed(answer, how)


def _moment(text: str, *, ahead: bool) -> str | None:
    try:
        return moment_named(text, now=datetime.now(UTC), ahead=ahead) if text.strip() else None
    except ValueError as error:
        raise ActionRefused(str(error)) from None


def _shop(text: str) -> dict[str, str] | None:
    """The shop that somebody means, of whatever source in use has such names."""
    if not text:
        return None
    for source in load_settings().sources_in_use:
        if shop := source.shop_named(text):
            return {"source_system": source.system, "source_store_id": shop}
    raise ActionRefused(f"{text} is no shop of a source in use: {', '.join(SOURCES)}")


Asked = TypeVar("Asked", bound=Form)


def _job(
    name: str, says: str, form: type[Asked], act: Callable[[Buffer, Asked, Who], str]
) -> dg.JobDefinition:
    """A job of one step, which does one thing, all of it or nothing, and says in a sentence what came of it."""

    @dg.op(name=f"{name}_now", description=says, out=dg.Out(str, is_required=False))
    def step(
        context: dg.OpExecutionContext,
        config: form,  # type: ignore[valid-type]
        operator: dg.ResourceParam[Buffer],
    ) -> Iterator[dg.Output[str]]:
        # A run's id: a step that is run again does not do it again.
        who = Who(by=config.by.strip(), run_id=context.run.run_id, action_id=context.run.run_id)  # type: ignore[attr-defined]
        try:
            if wrong := [f"{at}: {what}" for at, what in unstorable(config.model_dump(mode="json"))]:  # type: ignore[attr-defined]
                raise ActionRefused("; ".join(wrong))
            if not who["by"]:
                raise ActionRefused("say who you are: `by` is empty")
            operator.check_version()
            sentence = act(operator, config, who)
        except ActionRefused as refused:
            raise dg.Failure(str(refused), allow_retries=False) from None
        context.log.info(sentence)
        yield dg.Output(sentence, metadata={"done": sentence, "by (unverified)": who["by"]})

    @dg.job(
        name=name, description=says, tags=_TAGS, hooks={stop_retries}, executor_def=dg.in_process_executor
    )
    def job() -> None:
        step()

    return job


def operator_jobs() -> list[dg.JobDefinition]:
    """One job for each thing that operators do."""
    return [
        _job(
            "push_labels_again",
            "Sends labels of a store once more: new physical labels, or a label server restored from an old backup.",
            PushForm,
            _push,
        ),
        _job(
            "pause_store",
            "Pushes nothing to a store for a while; what comes meanwhile waits, and goes out once.",
            PauseForm,
            _pause,
        ),
        _job("resume_store", "Ends the pause of a store: what waits goes out.", StoreForm, _resume),
        _job(
            "replay_deliveries",
            "Reads webhook deliveries again that have ended; what is older than what is known changes nothing.",
            ReplayForm,
            _replay,
        ),
        _job(
            "redrive_labels",
            "Makes refused, failed and dead labels due again, with a clean count of attempts.",
            RedriveForm,
            _redrive,
        ),
        _job(
            "try_label_server",
            "Tries a label server that is down now, with one label, instead of at its next turn.",
            ServerForm,
            _try,
        ),
        _job(
            "approve_changes",
            "Lets removals and large price changes go on that were too many at once.",
            ApproveForm,
            _approve,
        ),
        _job(
            "reject_changes",
            "Leaves labels as they are whose removal or price change waits, until the source says something else.",
            RejectForm,
            _reject,
        ),
        _job(
            "remove_store",
            "Ends a store's mappings; its labels stay as they are, become blank or are removed.",
            RemoveForm,
            _remove,
        ),
    ]


class OperatorResource(dg.ConfigurableResource[Buffer]):
    """The buffer, by the login of ESL_OPERATOR_DATABASE_URL."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Buffer]:
        """Open for one run."""
        buffer = open_operator_buffer(load_settings())
        try:
            yield buffer
        finally:
            buffer.close()
