"""The console's routes: who is signed in looks, and with a token of scope `write` acts. Pages in, pages out."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import ActionRefused
from esl_pipeline.buffer.operator import Who
from esl_pipeline.console import actions, health
from esl_pipeline.console.doors import Door, Form, Visit
from esl_pipeline.console.label import label_page
from esl_pipeline.console.render import label_address, page, static
from esl_pipeline.console.routes import PageRoute, own_path, storable
from esl_pipeline.receiver.tokens import Gate

FOUND, CHANGES, FINDINGS, DONE, STORY = 50, 100, 100, 20, 30


def console_router(gate: Gate, buffer: Buffer) -> APIRouter:
    """`/console` and what is below it, for those whom the gate admits."""
    router = APIRouter(prefix="/console", route_class=PageRoute, include_in_schema=False)
    door = Door(gate)
    _add_signing(router, door)
    _add_pages(router, door, buffer)
    _add_actions(router, door, buffer)

    @router.get("/static/{name}")
    def file(name: str) -> Response:
        return static(name) or page("error.html", 404, says="There is no such file.")

    @router.get("/{_rest:path}")
    def nowhere(_rest: str) -> Response:
        return page("error.html", 404, says="There is no such page.")

    return router


def _add_signing(router: APIRouter, door: Door) -> None:
    @router.get("/sign-in")
    def ask(request: Request, next: str = "") -> Response:
        if door.session(request):
            return RedirectResponse(own_path(next), 303)
        return page("sign_in.html", next=own_path(next), wrong="")

    @router.post("/sign-in")
    def sign_in(request: Request, form: Annotated[Form, Depends(Form.of_a_stranger)]) -> Response:
        onward = own_path(form.one("next"))
        try:
            session = door.sign_in(request, form.one("token").strip())
        except HTTPException as refused:
            return page(
                "sign_in.html", refused.status_code, refused.headers, next=onward, wrong=refused.detail
            )
        answer = RedirectResponse(onward, 303)
        door.give(answer, request, session)
        return answer

    @router.post("/sign-out", dependencies=[Depends(door.form("read"))])
    def sign_out(request: Request) -> Response:
        answer = RedirectResponse("/console/sign-in", 303)
        door.sign_out(request, answer)
        return answer


def _add_pages(router: APIRouter, door: Door, buffer: Buffer) -> None:
    looking = Annotated[Visit, Depends(door.visit)]

    @router.get("")
    def all_stores(visit: looking) -> Response:
        return visit.page("stores.html", stores=health.stores(buffer.status()), here="stores")

    @router.get("/search")
    def search(visit: looking, q: str = "", store: str = "") -> Response:
        typed = storable(q).strip()[:200]
        found = (
            buffer.console_search(codes=_forms(typed), text=typed, store=storable(store) or None, limit=FOUND)
            if typed
            else []
        )
        if len(found) == 1 and found[0]["code"] in _forms(typed):
            return RedirectResponse(label_address(found[0]["store_code"], found[0]["code"]), 303)
        return visit.page("search.html", q=typed, found=found, most=FOUND, here="search")

    @router.get("/label")
    def label(visit: looking, store: str, code: str) -> Response:
        places = buffer.trace(storable(code), store=storable(store), limit=1)
        if not places:
            return visit.page("error.html", 404, says=f"Store {store} has no label with the code {code}.")
        rungs = buffer.ladder(code, store=store)
        shown = label_page(code, places[0], rungs[0] if rungs else None)
        story = buffer.story(store=store, code=code, limit=STORY)
        return visit.page("label.html", label=shown, story=story, here="label")

    @router.get("/stores/{code}")
    def store(visit: looking, code: str) -> Response:
        found = [store for store in health.stores(buffer.status()) if store.code == storable(code)]
        if not found:
            return visit.page("error.html", 404, says=f"There is no store {code}.")
        return visit.page(
            "store.html",
            store=found[0],
            findings=health.grouped(buffer.findings(store=code, limit=FINDINGS)),
            waits=health.waiting(buffer.preview(store=code, limit=CHANGES)),
            pause=next((pause for pause in buffer.store_pauses(store=code, limit=1) if pause["holds"]), None),
            done=buffer.operator_actions(store=code, limit=DONE),
            here="stores",
        )

    @router.get("/approvals")
    def approvals(visit: looking, store: str = "") -> Response:
        waiting = buffer.changes_waiting(store=storable(store) or None, limit=CHANGES + 1)
        return visit.page(
            "approvals.html",
            stores=actions.by_store(waiting[:CHANGES]),
            is_more=len(waiting) > CHANGES,
            here="approvals",
        )


def _add_actions(router: APIRouter, door: Door, buffer: Buffer) -> None:
    """Each is a form of a page that was looked at; what came of it is told on that page."""

    def add(path: str, act: Callable[[Buffer, Form, Who], str]) -> None:
        @router.post(path)
        def carry_out(form: Annotated[Form, Depends(door.form("write"))]) -> Response:
            session = form.visit.session
            try:
                session.say("done", act(buffer, form, actions.who(form)))
            except ActionRefused as refused:
                session.say("refused", str(refused.message))
            return RedirectResponse(own_path(form.one("back")), 303)

    for path, act in actions.ACTIONS.items():
        add(f"/{path}", act)


def _forms(typed: str) -> list[str]:
    """A code in the forms in which scanners and shops write it: UPC-A is EAN-13 with a zero before it."""
    forms = {typed}
    if typed.isascii() and typed.isdigit():
        forms |= (
            {f"0{typed}"}
            if len(typed) == 12
            else {typed[1:]}
            if len(typed) == 13 and typed[0] == "0"
            else set()
        )
    return sorted(forms)
