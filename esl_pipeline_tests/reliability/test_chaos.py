"""Each toxic of the proxy over a real connection: a proxy that does no harm would prove nothing."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from esl_pipeline_tests.reliability.chaos import (
    Bandwidth,
    ChaosProxy,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
)


def _echo(listener: socket.socket) -> None:
    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                pass  # reset, as told

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


@pytest.fixture
def proxy() -> Iterator[ChaosProxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        with ChaosProxy(listener.getsockname()[:2]) as found:
            yield found
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def client(proxy: ChaosProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection:
        assert echoed(connection, b"hello") == b"hello"
        yield connection


def echoed(connection: socket.socket, data: bytes) -> bytes:
    """What comes back of what is sent, until all of it has or the connection ends."""
    connection.sendall(data)
    received = b""
    while len(received) < len(data) and (part := connection.recv(65_536)):
        received += part
    return received


def seconds_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_latency_with_jitter(proxy: ChaosProxy, client: socket.socket) -> None:
    proxy.toxics = (Latency(0.1, jitter=0.05, way="up"),)
    took = [seconds_of(lambda: echoed(client, b"x")) for _ in range(4)]
    assert min(took) >= 0.05 and max(took) - min(took) > 0.001
    proxy.toxics = ()
    assert seconds_of(lambda: echoed(client, b"x")) < 0.05


def test_bandwidth(proxy: ChaosProxy, client: socket.socket) -> None:
    proxy.toxics = (Bandwidth(20_000, way="down"),)
    assert seconds_of(lambda: echoed(client, b"x" * 5_000)) >= 0.2


def test_slow_close(proxy: ChaosProxy, client: socket.socket) -> None:
    proxy.toxics = (SlowClose(0.2, way="up"),)
    assert echoed(client, b"x") == b"x"
    client.shutdown(socket.SHUT_WR)
    assert seconds_of(lambda: client.recv(1)) >= 0.2


def test_a_black_hole_swallows_and_closes_at_last(proxy: ChaosProxy, client: socket.socket) -> None:
    proxy.toxics = (Timeout(),)
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        echoed(client, b"lost")
    proxy.toxics = (Timeout(0.1),)
    client.settimeout(5)
    assert echoed(client, b"lost") == b"", "what was swallowed does not come later"


def test_a_reset_is_no_orderly_end(proxy: ChaosProxy, client: socket.socket) -> None:
    proxy.toxics = (ResetPeer(0.05),)
    with pytest.raises(ConnectionResetError):
        echoed(client, b"x")


def test_slices_with_pauses(proxy: ChaosProxy, client: socket.socket) -> None:
    proxy.toxics = (Slicer(2, pause=0.05, way="down"),)
    client.sendall(b"abcdef")
    assert [client.recv(100) for _ in range(3)] == [b"ab", b"cd", b"ef"]


def test_limited_data(proxy: ChaosProxy, client: socket.socket) -> None:
    proxy.toxics = (LimitData(len(b"hello") + 3, way="down"),)
    assert echoed(client, b"abcdef") == b"abc"


def test_down_breaks_and_refuses_until_it_is_up_again(proxy: ChaosProxy, client: socket.socket) -> None:
    port = proxy.port
    proxy.down()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    proxy.up()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as again:
        assert echoed(again, b"back") == b"back"


@pytest.mark.parametrize("hold", ["request", "answer"])
def test_a_trap_holds_one_message_and_lets_others_pass(
    proxy: ChaosProxy, client: socket.socket, hold: str
) -> None:
    trap = proxy.trap(b"secret", hold)  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert echoed(client, b"nothing") == b"nothing" and not trap.sprung.is_set()
        client.sendall(b"a secret")
        assert trap.sprung.wait(5)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert echoed(other, b"a secret of another") == b"a secret of another"
        client.settimeout(5)
        trap.release()
        assert client.recv(100) == b"a secret"
