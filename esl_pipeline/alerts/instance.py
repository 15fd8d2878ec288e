"""Troubles that the buffer cannot know, from what Dagster's instance and this machine tell: pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from esl_pipeline.alerts.model import Condition, Known

# After its time a night's run may be queued behind others, and at work for so long.
_BEGINS_WITHIN, _ENDS_WITHIN = timedelta(minutes=15), timedelta(hours=3)
_HOUSEKEEPING_ENDS_WITHIN = timedelta(hours=2)
# Of a disk; less is hardly any room.
_LEAST_SHARE, _LEAST_BYTES = 0.02, 500_000_000

# Said by troubles of the buffer, with more of their numbers.
_SAID_ELSEWHERE = frozenset({"backlog", "webhooks_arrive", "preview", "alerts"})
_READING = "shop_is_read"


@dataclass(frozen=True)
class Check:
    """What an asset check says of a shop (its key). passed: None while it is being made."""

    asset: str
    name: str
    shop: str
    passed: bool | None
    is_error: bool = False
    says: str = ""
    at: datetime | None = None


@dataclass(frozen=True)
class Run:
    """A run of a job. about: the shop (its key) or label server that it is of. is_over: it will not be tried again."""

    run_id: str
    job: str
    about: str
    status: str
    created_at: datetime
    ended_at: datetime | None = None
    is_over: bool = True
    says: str = ""

    @property
    def of(self) -> tuple[str, str]:
        """Runs of one kind: a newer one that went well ends the trouble of an older one."""
        return self.job, self.about


def failed_checks(checks: Iterable[Check]) -> Known:
    """Checks that fail; those about reading a shop are one trouble of it. Nothing is known of those being made."""
    found: dict[str, Condition] = {}
    unknown = set()
    for check in checks:
        if check.name in _SAID_ELSEWHERE:
            continue
        condition = _condition(check)
        if check.passed is None:
            unknown.add(condition.key)
        elif not check.passed:
            found.setdefault(condition.key, condition)
    return Known(tuple(found.values()), frozenset(unknown))


def _condition(check: Check) -> Condition:
    is_about_reading = check.name == _READING or check.name.endswith("_connection")
    return Condition(
        "shop_unread" if is_about_reading else "check_failed",
        check.shop if is_about_reading else f"{check.name} {check.shop}",
        since=check.at,
        shops=(check.shop,),
        detail=check.says,
        path=f"/assets/{check.asset}?view=checks",
        severity="critical" if check.is_error else "warning",
    )


def failed_runs(failed: Iterable[Run], went_well: Mapping[tuple[str, str], datetime]) -> Known:
    """Runs that failed for good, but where a newer one of the same went well (made at that time)."""
    newest: dict[tuple[str, str], Run] = {}
    for run in failed:
        later = went_well.get(run.of)
        if run.is_over and (later is None or later < run.created_at):
            newest[run.of] = max(run, newest.get(run.of, run), key=lambda one: one.created_at)
    return Known(tuple(map(_failed, newest.values())))


def _failed(run: Run) -> Condition:
    return Condition(
        "run_failed",
        f"{run.job} of {run.about}" if run.about else run.job,
        since=run.ended_at or run.created_at,
        shops=(run.about,) if ":" in run.about else (),
        detail=run.says,
        path=f"/runs/{run.run_id}",
    )


def nights(shops: Mapping[str, datetime], runs: Sequence[Run], due_at: datetime, now: datetime) -> Known:
    """Shops (their keys, and since when they are mapped) whose nightly run of `due_at` is missing or late.

    runs: of full_reconciliation since then.
    """
    of_shop: dict[str, list[Run]] = {}
    for run in runs:
        of_shop.setdefault(run.about, []).append(run)
    found = []
    for shop, since in sorted(shops.items()):
        if since > due_at:
            continue
        mine = of_shop.get(shop, [])
        at = f"it was due at {due_at:%Y-%m-%d %H:%MZ}"
        if not mine and now - due_at > _BEGINS_WITHIN:
            found.append(Condition("night_missing", shop, due_at, shops=(shop,), detail=at))
        under_way = [run for run in mine if run.ended_at is None]
        if under_way and not _went_well(mine) and now - due_at > _ENDS_WITHIN:
            path = f"/runs/{under_way[0].run_id}"
            found.append(Condition("night_late", shop, due_at, shops=(shop,), detail=at, path=path))
    return Known(tuple(found))


def housekeeping(
    in_use_since: datetime | None, runs: Sequence[Run], due_at: datetime, now: datetime
) -> Known:
    """Whether the housekeeping of `due_at` has been done, by runs since then; a failed one is told by itself."""
    was_due = in_use_since is not None and in_use_since < due_at and now - due_at > _HOUSEKEEPING_ENDS_WITHIN
    if not was_due or any(run.status in ("SUCCESS", "FAILURE") for run in runs):
        return Known()
    detail = f"it was due at {due_at:%Y-%m-%d %H:%MZ}"
    return Known((Condition("housekeeping_late", "housekeeping", due_at, detail=detail),))


def storage(places: Mapping[str, tuple[int, int]]) -> Known:
    """Folders of which hardly any room is left: {name: (free bytes, all bytes)}."""
    return Known(
        tuple(
            Condition("storage_low", name, detail=f"{free / 1e6:.0f} MB are left where {name} is")
            for name, (free, whole) in places.items()
            if free < max(_LEAST_BYTES, _LEAST_SHARE * whole) and free < whole / 2
        )
    )


def not_judged(what: str, reason: str, kinds: Iterable[str]) -> Known:
    """Something could not be found out: a trouble itself, and nothing of these kinds ends."""
    return Known((Condition("not_judged", what, detail=reason),), frozenset(kinds))


def _went_well(runs: Iterable[Run]) -> bool:
    return any(run.status == "SUCCESS" for run in runs)
