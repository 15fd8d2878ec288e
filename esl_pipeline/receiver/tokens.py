"""Who may use the store-mapping API: the bearer of ESL_ADMIN_TOKEN, or of a token that the buffer knows the hash of."""

import hashlib
import hmac
import logging
import math
import re
import secrets
from collections import OrderedDict
from threading import Lock
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.receiver.lockout import Lockout

Scope = Literal["read", "write"]

BOOTSTRAP = "ESL_ADMIN_TOKEN"
"""The name, in the history of mappings, of whoever bears that one."""
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
"""What a token may be called; so no name reads like BOOTSTRAP or like a command's user."""
CLOSED = (
    "The store-mapping API is closed: no token is valid. Make one with `esl-pipeline tokens add`, or set "
    "ESL_ADMIN_TOKEN and start the receiver again."
)

MAY_ONLY_READ = "The bearer token {} may only read; changes need one with the scope write."

# What settings and `new_token` let through. Anything else is wrong without asking the buffer.
_FORM = re.compile(r"[!-~]{32,1024}")
_MALFORMED: dict[str, Any] = {"any": True, "token": None}
_REMEMBERED = 1_000

log = logging.getLogger(__name__)


def new_token() -> str:
    """A token of 32 random bytes; it says whose it is to whoever finds it lying about."""
    return "esl_" + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """The SHA-256 of a token in hex, the form in which it is kept. Slow hashing is for passwords: a token is random."""
    return hashlib.sha256(token.encode()).hexdigest()


class Bearer(NamedTuple):
    """Whose a token is, and what it is good for."""

    name: str
    scope: Scope


class Gate:
    """Admits callers by their token. bootstrap: the token of the settings, which may do everything.

    Behind one address there may be many, so a right token is not refused for the wrong ones of others: while the
    address is locked out, the bootstrap token and those that were right before pass as ever. All others share one
    place at the buffer, where strangers have then no more than one call at a time.
    """

    def __init__(self, bootstrap: SecretStr | None, buffer: Buffer, lockout: Lockout) -> None:
        self._bootstrap = digest(bootstrap.get_secret_value()) if bootstrap else None
        self._buffer, self._lockout = buffer, lockout
        self._right: OrderedDict[str, None] = OrderedDict()
        self._one_unknown = Lock()

    def admit(self, address: str, token: str | None, scope: Scope) -> str:
        """The name of the token, which is good for the scope. At most one call of the buffer.

        Raises HTTPException: 429 for a wrong or no token while the address is locked out, 401 without a valid token,
        403 when the scope is too small or no token is valid at all; BufferError when the buffer cannot be asked.
        """
        wait = self._lockout.wait(address)
        if token is None:
            _refuse_for(wait)
            _refuse("A bearer token is needed.")
        hashed = digest(token)
        if self._bootstrap is not None and hmac.compare_digest(hashed, self._bootstrap):
            return BOOTSTRAP
        known = self._checked(hashed, wait) if _FORM.fullmatch(token) else _MALFORMED
        found = known["token"]
        if found is None:
            _refuse_for(wait)
            self._lockout.wrong(address)
            if self._lockout.wait(address):
                log.warning("too many wrong tokens from %a: it is locked out", address)
            if self._bootstrap is None and not known["any"]:
                raise HTTPException(403, CLOSED)
            _refuse("The bearer token is wrong.")
        bearer = _valid(found)
        if scope == "write" and bearer.scope != "write":
            raise HTTPException(403, MAY_ONLY_READ.format(bearer.name))
        return bearer.name

    def again(self, hashed: str) -> Bearer:
        """Whoever was admitted with the token of this hash before, as it stands now. At most one call of the buffer.

        Raises HTTPException 401 when it is no longer valid; BufferError when the buffer cannot be asked.
        """
        if self._bootstrap is not None and hmac.compare_digest(hashed, self._bootstrap):
            return Bearer(BOOTSTRAP, "write")
        found = self._buffer.token_check(hashed)["token"]
        if found is None:
            _refuse("The bearer token is wrong.")
        return _valid(found)

    def _checked(self, hashed: str, wait: float) -> dict[str, Any]:
        """What the buffer says of the token; HTTPException 429 when it is asked about another unknown one just now."""
        if not wait or hashed in self._right:
            known = self._buffer.token_check(hashed)
        elif self._one_unknown.acquire(blocking=False):
            try:
                known = self._buffer.token_check(hashed)
            finally:
                self._one_unknown.release()
        else:
            _refuse_for(1)
        if known["token"] is not None:
            self._right[hashed] = None
            if len(self._right) > _REMEMBERED:
                self._right.popitem(last=False)
        return known


def _valid(found: dict[str, Any]) -> Bearer:
    if found["state"] != "valid":
        _refuse(f"The bearer token {found['name']} is {found['state']}.")
    return Bearer(str(found["name"]), found["scope"])


_bearer = HTTPBearer(auto_error=False, description="ESL_ADMIN_TOKEN, or from `esl-pipeline tokens add`")


def admitted(gate: Gate, scope: Scope) -> Any:
    """The dependency of a route for those whom the gate admits for this scope; its value is the token's name."""

    def admit(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> str:
        # Behind a proxy the server takes it from X-Forwarded-For; ESL_TRUSTED_PROXIES says from whom.
        address = request.client.host if request.client else ""
        return gate.admit(address, credentials.credentials if credentials else None, scope)

    return Depends(admit)


def _refuse_for(wait: float) -> None:
    if wait:
        raise HTTPException(
            429,
            "Too many wrong tokens came from this address; wait.",
            headers={"Retry-After": str(math.ceil(wait))},
        )


def _refuse(sentence: str) -> NoReturn:
    raise HTTPException(401, sentence, headers={"WWW-Authenticate": "Bearer"})
