"""Orders to erase a shop that has left: they have no time that is signed, so each is judged before it is obeyed."""

from collections.abc import Callable
from typing import Any

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import Shop

# Whether the shop takes our Admin token; None when that cannot be told now.
TokenWorks = Callable[[Shop], bool | None]


def judge_redactions(buffer: Buffer, token_works: TokenWorks) -> dict[str, Any]:
    """Confirm orders that nothing speaks against; Buffer.housekeep then carries them out.

    token_works: False where there is no token. An order whose answer is None waits for the next time. Returns
    confirmed, void, undecided (counts).
    """
    told = dict.fromkeys(("confirmed", "void", "undecided"), 0)
    for order in buffer.redaction_list():
        works = token_works({key: order[key] for key in ("source_system", "source_store_id")})
        if works is None:
            told["undecided"] += 1
            continue
        confirmed = buffer.redaction_decide(order["id"], token_works=works)["confirmed"]
        told["confirmed" if confirmed else "void"] += 1
    return told
