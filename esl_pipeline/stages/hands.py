"""What a person does to physical labels: binds, replaces, finds them. Each call is noted with who, before and after."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.hipoink.answers import Answer
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.devices import Binding, Devices, is_not_known
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.stages.devices import device_of
from esl_pipeline.stages.outcomes import not_accepted

_LOOKS, _BETWEEN_SECONDS = 4, 0.5


@dataclass(frozen=True)
class Hanging:
    """A label as its server lists it now; product_code: None: it shows nothing."""

    esl_code: str
    product_code: str | None
    model: str | None
    online: bool | None


class NotBoundError(Exception):
    """The label server accepted a binding, and lists another one; the message is for the reader."""


class Hands:
    """Somebody at the labels of one store. All methods raise the leaves of HipoinkError, and BufferError."""

    def __init__(self, buffer: Buffer, client: HipoinkClient, *, store: str, by: str) -> None:
        self._buffer, self._store, self._by = buffer, store, by
        self._devices = Devices(client)

    def find(self, esl_code: str) -> Hanging | None:
        """What the server says of a label; None: the store has none of this code, or the server cannot say."""
        found = self.find_all([esl_code])
        return found[0] if found else None

    def find_all(self, esl_codes: Sequence[str]) -> list[Hanging] | None:
        """What the server says of labels, of those that it has; None: it cannot say."""
        try:
            rows = self._devices.query_status(self._store, esl_codes)
        except HipoinkError as error:
            if is_not_known(error):
                return None
            raise
        devices = [device for row in rows if (device := device_of(row, None)[0]) is not None]
        return [
            Hanging(device["esl_code"], device["product_code"], device["model"], device["online"])
            for device in devices
            if device["esl_code"] in esl_codes
        ]

    def bind(self, label: Hanging, code: str) -> bool:
        """Bind a label to a product, whatever it showed, with the default template of its model -> whether the server
        lists it so already. Raises NotBoundError when it lists another binding."""
        template = template_of(self._devices, self._store, label.model)
        binding = Binding(label.esl_code, code, template)
        self._do("bind", lambda: self._devices.bind(self._store, binding), label.esl_code, code)
        return self._is_bound(label.esl_code, code)

    def replace(self, old: Hanging, new: Hanging) -> None:
        """Let another label take over what one shows: the new one is bound, and seen to be, before the old one goes.

        Said again after it was cut off, it goes on where it stopped.
        """
        code = old.product_code
        if code is None:
            raise ValueError(f"{old.esl_code} shows nothing")
        if new.product_code != code and not self.bind(new, code):
            raise NotBoundError(
                f"the label server does not say yet that {new.esl_code} shows {code}, so {old.esl_code} stays bound to "
                "it: say it again"
            )
        self._do("unbind", lambda: self._devices.unbind(self._store, old.esl_code), old.esl_code, code)

    def flash(self, esl_codes: Sequence[str], code: str | None = None) -> None:
        """Let the lights of labels flash."""
        named = esl_codes[0] if len(esl_codes) == 1 else None
        self._do("flash", lambda: self._devices.flash(self._store, esl_codes), named, code)

    def _is_bound(self, esl_code: str, code: str) -> bool:
        """Whether the server's own list has the binding. It may take a moment, or not be able to say."""
        found = None
        for look in range(_LOOKS):
            if look:
                time.sleep(_BETWEEN_SECONDS)
            with suppress(HipoinkError):
                found = self.find(esl_code)
            if found and found.product_code == code:
                return True
        if found and found.product_code is not None:
            raise NotBoundError(
                f"the label server accepted that {esl_code} shows {code}, and lists {found.product_code} for it"
            )
        return False

    def _do(self, action: str, call: Callable[[], Answer], esl_code: str | None, code: str | None) -> None:
        action_id = str(uuid4())

        def note(outcome: str, answer: str | None = None) -> None:
            self._buffer.hands_note(
                action_id=action_id,
                by=self._by,
                store=self._store,
                action=action,
                outcome=outcome,
                esl_code=esl_code,
                code=code,
                answer=answer,
            )

        note("begun")
        started = time.monotonic()
        try:
            answer = call()
        except HipoinkError as error:
            outcome = not_accepted(error, started)
            note(outcome.outcome, outcome.answer or outcome.message)
            raise
        note("accepted", answer.body)


def template_of(devices: Devices, store: str, model: str | None) -> str | int | None:
    """The template that a label of this model is bound with: the model's default, or its only one; None: the server's
    own choice. Raises HipoinkError."""
    try:
        rows = [row for row in devices.templates(store) if model and row.get("esltype_code") == model]
    except HipoinkError as error:
        if is_not_known(error):
            return None
        raise
    defaults = [row for row in rows if str(row.get("esltemplate_default")).lower() in ("1", "true")]
    chosen = (defaults or (rows if len(rows) == 1 else []))[:1]
    found = chosen[0].get("id") if chosen else None
    return found if isinstance(found, str | int) else None
