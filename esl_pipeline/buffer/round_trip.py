"""Statements that go to the server together, and one wait for what comes of them.

psycopg's own pipeline sends each statement by itself, and asks the system between any two whether it may: six times for
two statements. Each time the interpreter's lock is given away, and comes back from a thread that has much to do only
after the switch interval; so a call took twice as long in a receiver at work as in one that rests.
"""

from typing import TYPE_CHECKING

from psycopg import OperationalError
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult


def in_one_transaction(connection: "Connection", *statements: tuple[bytes, bytes]) -> list[bytes | None]:
    """The first field of each statement's first row, as text; a statement is SQL with $1, and that.

    The connection is idle before, and afterwards too, unless it is of no more use. Raises psycopg.Error.
    """
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    for query, parameter in statements:
        pgconn.send_query_params(query, [parameter])
    pgconn.pipeline_sync()
    results = connection.wait(_results(pgconn, len(statements) + 1))
    if len(results) > len(statements):
        pgconn.exit_pipeline_mode()
    for result in results[: len(statements)]:
        if result.status != ExecStatus.TUPLES_OK:
            raise error_from_result(result)
    if len(results) <= len(statements):
        raise OperationalError("the connection ended before the answer")
    return [result.get_value(0, 0) for result in results[:-1]]


def _results(pgconn: "PGconn", number: int) -> "PQGen[list[PGresult]]":
    """One of each statement and one of the end; none after one that failed, where the connection did not outlive it."""
    results = list["PGresult"]()
    yield from send(pgconn)
    for _ in range(number):
        try:
            results += yield from fetch_many(pgconn)
        except OperationalError:
            if not any(result.status == ExecStatus.FATAL_ERROR for result in results):
                raise
            break
    return results
