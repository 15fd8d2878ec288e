"""What waits in the applications that a test makes."""

from typing import Any

import pytest

from esl_pipeline.receiver.groups import Groups


@pytest.fixture
def made_groups(monkeypatch: pytest.MonkeyPatch) -> list[Groups]:
    """The groups of each application that is made from here on."""
    made, make = list[Groups](), Groups.__init__

    def remember(self: Groups, *given: Any) -> None:
        make(self, *given)
        made.append(self)

    monkeypatch.setattr(Groups, "__init__", remember)
    return made
