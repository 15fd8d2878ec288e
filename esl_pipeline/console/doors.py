"""Who may come in: the cookie of a sign-in, and forms that only our own pages can have sent."""

import hmac
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from esl_pipeline.console.render import page
from esl_pipeline.console.routes import SignedOut
from esl_pipeline.console.sessions import HOURS, Session, Sessions
from esl_pipeline.receiver.body import read_body
from esl_pipeline.receiver.tokens import MAY_ONLY_READ, Bearer, Gate, Scope, digest

# The first where the browser came over https: it is taken from no other host and over nothing else.
_COOKIES = ("__Host-esl_console", "esl_console")
_FORM_BYTES, _FORM_SECONDS, _FORM_FIELDS = 65_536, 5, 1_000


@dataclass(frozen=True)
class Visit:
    """One request of somebody who is signed in."""

    session: Session
    bearer: Bearer
    address: str

    def page(self, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
        """A page for this visitor, which tells what was done before it."""
        asked: dict[str, Any] = {"visit": self, "notices": self.session.told(), "q": "", "here": ""}
        return page(template, status, None, **(asked | shown))

    @property
    def may_write(self) -> bool:
        """Whether buttons do anything for this visitor."""
        return self.bearer.scope == "write"


class Form:
    """What a form of ours has sent. visit: whose it is; of the sign-in's nobody's yet."""

    def __init__(self, raw: bytes, visit: Visit | None = None) -> None:
        try:
            text = raw.decode()
            self._fields = parse_qs(text, True, max_num_fields=_FORM_FIELDS)
        except ValueError:
            raise HTTPException(400, "This is no form of this page.") from None
        self._visit = visit

    @property
    def visit(self) -> Visit:
        """Whose it is."""
        if self._visit is None:
            raise SignedOut
        return self._visit

    def one(self, name: str) -> str:
        """The value of a field, "" where it is not filled."""
        return self.all(name)[0] if self.all(name) else ""

    def all(self, name: str) -> list[str]:
        """Each value of a field."""
        return self._fields.get(name, [])

    @staticmethod
    async def of_a_stranger(request: Request) -> "Form":
        """The form of the sign-in."""
        return Form(await _raw(request))


class Door:
    """Lets in by cookie whom the gate has admitted by token, for as long as the token is good."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._sessions = gate, Sessions()

    def session(self, request: Request) -> Session | None:
        """The sign-in of a browser, whether its token is still good or not."""
        return next(filter(None, map(self._sessions.find, map(request.cookies.get, _COOKIES))), None)

    def visit(self, request: Request) -> Visit:
        """Who asks; raises SignedOut."""
        if (session := self.session(request)) is None:
            raise SignedOut
        try:
            bearer = self._gate.again(session.hashed)
        except HTTPException:
            self._sessions.end(session.key)
            raise SignedOut from None
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return Visit(session, bearer, asked)

    def form(self, scope: Scope) -> Callable[..., Coroutine[Any, Any, Form]]:
        """A dependency: a form of one of our own pages, of somebody with this scope. Nothing of others' is read."""

        def allowed(visit: Annotated[Visit, Depends(self.visit)]) -> Visit:
            if scope == "write" and not visit.may_write:
                raise HTTPException(403, MAY_ONLY_READ.format(visit.bearer.name))
            return visit

        async def sent(request: Request, visit: Annotated[Visit, Depends(allowed)]) -> Form:
            form = Form(await _raw(request), visit)
            if not hmac.compare_digest(form.one("form_key").encode(), visit.session.form_key.encode()):
                raise HTTPException(
                    403, "This form is not of a page that you have open, so nothing was done."
                )
            return form

        return sent

    def sign_in(self, request: Request, token: str) -> Session:
        """A new session of whoever bears the token; raises HTTPException as the gate does."""
        address = request.client.host if request.client else ""
        self._gate.admit(address, token or None, "read")
        return self._sessions.begin(digest(token))

    def give(self, answer: Response, request: Request, session: Session) -> None:
        """The session's cookie: for this host alone, and for no script."""
        is_safe = request.headers.get("origin", "").startswith("https://")
        answer.set_cookie(
            _COOKIES[0 if is_safe else 1],
            session.key,
            max_age=HOURS * 3600,
            path="/" if is_safe else "/console",
            secure=is_safe,
            httponly=True,
            samesite="strict",
        )

    def sign_out(self, request: Request, answer: Response) -> None:
        """End the session, here and in the browser."""
        for name, path in zip(_COOKIES, ("/", "/console"), strict=True):
            self._sessions.end(request.cookies.get(name))
            answer.delete_cookie(name, path, secure=path == "/", httponly=True, samesite="strict")


async def _raw(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "A form is expected here.")
    return await read_body(request, _FORM_BYTES, _FORM_SECONDS)
