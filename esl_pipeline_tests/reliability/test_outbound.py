"""What we call and what we believe of the answer: the label server's address, its certificate, its size; image URLs."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from esl_pipeline.connections import open_label_server
from esl_pipeline.hipoink.errors import HipoinkError, TransientError
from esl_pipeline.label_servers import PUBLIC_SIGN
from esl_pipeline.labels.build import image_is_allowed
from esl_pipeline.labels.policy import Policy
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.shopify.admin.errors import AdminTooLargeError
from esl_pipeline_tests.hipoink.servers import client_of
from esl_pipeline_tests.sources.shopify.admin.servers import Reply, in_turn, serving
from esl_pipeline_tests.sources.shopify.admin.servers import client_of as admin_client_of

PRODUCT = {"pc": "1", "pn": "Tea", "pp": "1.00"}


# --- S15: where labels go


def test_s15_the_label_servers_address_comes_from_the_settings_alone() -> None:
    settings = load_settings(hipoink_api_base_url="https://labels.example.com", hipoink_client_id="own")
    with open_label_server(settings, buffer=None) as client:  # type: ignore[arg-type]
        assert repr(client) == "HipoinkClient('https://labels.example.com', 'own')"


# --- S17: images


INSIDE = [
    "127.0.0.1",
    "[::1]",
    "[::ffff:7f00:1]",
    "1:2@[::1]",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "[fd00:ec2::254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "0x7f.1",
    "2130706433",
    "localhost",
    "127.0.0.1.nip.io",  # a name that means an inside address (DNS rebinding)
    "cdn.shopify.com.evil.example",
    "cdn.shopify.com@127.0.0.1",
    "cdn.shopify.com:x@127.0.0.1",
    "cdn.shopify.com\\@127.0.0.1",
    "127.0.0.1#@cdn.shopify.com",
    "127.0.0.1?@cdn.shopify.com",
    "cdn.shopify.com:8080",
    "cdn。shopify。com",
    "ⓒdn.shopify.com",
]


SHOPIFYS = Policy(send_images=True, image_hosts=("cdn.shopify.com",))


@pytest.mark.parametrize("host", INSIDE)
@pytest.mark.parametrize("scheme", ["https", "http", "HTTPS", "file", "gopher"])
def test_s17_no_image_address_leads_the_label_server_elsewhere(scheme: str, host: str) -> None:
    assert not image_is_allowed(f"{scheme}://{host}/a.png", SHOPIFYS)


def test_s17_only_names_of_public_hosts_can_be_allowed_and_nothing_is_sent_by_default() -> None:
    assert Policy().send_images is False
    own = Policy(image_hosts=("img.example",))
    assert image_is_allowed("https://img.example/a.png", own)
    assert not image_is_allowed("https://cdn.shopify.com/a.png", own)
    for text in ("https://img.example/a.png\r\nHost: x", "https://img.example/a b", "//img.example/a"):
        assert not image_is_allowed(text, own)


# --- S22: TLS


def certificate(
    folder: Path, name: str, issuer: tuple[x509.Certificate, Any] | None, *addresses: str
) -> tuple[x509.Certificate, Any]:
    """A certificate and its key, written to `name`.pem; its own issuer when there is none."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if addresses:
        names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.pem").write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return made, key


@contextmanager
def over_tls(pem: Path) -> Iterator[str]:
    """A label server that accepts everything, behind a certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"error_code":0,"error_msg":""}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_s22_only_a_trusted_certificate_gets_the_sign(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority", None)
    certificate(tmp_path, "server", authority, "127.0.0.1")
    certificate(tmp_path, "elsewhere", authority, "127.0.0.2")
    certificate(tmp_path, "stranger", None, "127.0.0.1")
    trusted, other = tmp_path / "authority.crt", tmp_path / "stranger.crt"
    for server, ca_file, says in [
        ("server", trusted, None),
        ("server", None, "CERTIFICATE_VERIFY_FAILED"),  # no public authority knows it
        ("server", other, "CERTIFICATE_VERIFY_FAILED"),
        ("stranger", trusted, "CERTIFICATE_VERIFY_FAILED"),
        ("elsewhere", trusted, "IP address mismatch"),
    ]:
        with (
            over_tls(tmp_path / f"{server}.pem") as url,
            client_of(url, retries=1, ca_file=ca_file) as client,
        ):
            if says is None:
                assert client.create("001", PRODUCT).error_code == 0
            else:
                with pytest.raises(TransientError, match="no connection") as refused:
                    client.create("001", PRODUCT)
                assert says in str(refused.value)
    settings = load_settings(hipoink_ca_file=str(trusted), hipoink_api_base_url="https://127.0.0.1:9")
    assert settings.hipoink_ca_file == trusted


def test_s23_the_public_sign_is_warned_of() -> None:
    for given in ({}, {"hipoink_api_secret": PUBLIC_SIGN}):
        assert "documented public default sign" in load_settings(**given).warnings()[0]
    assert "default sign" not in "".join(load_settings(hipoink_api_secret="own-sign").warnings())


# --- S24: answers


FIFTY_MB = 50_000_000


@contextmanager
def flooding() -> Iterator[tuple[str, list[int]]]:
    """A server that answers every request with 50 MB; how many bytes of each it got rid of."""
    sent: list[int] = []
    block = b'{"error_code":0,"error_msg":"' + b"x" * 65_000

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FIFTY_MB)
            sent.append(0)
            try:
                while sent[-1] < FIFTY_MB:
                    sent[-1] += connection.send(block)
            except OSError:
                pass  # the client has had enough

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", sent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def peak_memory(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_s24_an_answer_of_50_mb_takes_neither_memory_nor_time() -> None:
    with flooding() as (url, sent), client_of(url, retries=1) as client:
        for call in (
            lambda: client.create("001", PRODUCT),
            lambda: client.query("001", 1, 100),
            lambda: client.query_count("001"),
        ):

            def refused(call: Callable[[], object] = call) -> None:
                with pytest.raises(HipoinkError) as caught:
                    call()
                assert len(caught.value.answer or "") <= 2_000 and len(str(caught.value)) < 500

            began = time.monotonic()
            assert peak_memory(refused) < 5_000_000
            assert time.monotonic() - began < 10
    assert len(sent) == 3 and max(sent) < FIFTY_MB / 2


def test_s24_shopifys_answers_have_a_cap_and_cannot_steer_a_terminal() -> None:
    with flooding() as (url, sent):
        reply = Reply()
        with serving(in_turn(reply)) as server:
            server.url = url
            with admin_client_of(server, max_answer_bytes=1_000_000) as client:

                def refused() -> None:
                    with pytest.raises(AdminTooLargeError, match="longer than 1,000,000 bytes"):
                        client.execute("query Shop { shop { name } }")

                assert peak_memory(refused) < 5_000_000
    assert max(sent) < FIFTY_MB / 2
    evil = "\x1b]0;owned\x07 \x9b31m\u202egnihton\r\nINFO all is well <script>alert(1)</script>"
    for reply in (Reply(evil.encode(), status=400), Reply(evil.encode(), status=403)):
        with serving(in_turn(reply)) as server, admin_client_of(server) as client:
            with pytest.raises(Exception, match="all is well") as caught:
                client.execute("query Shop { shop { name } }")
            assert str(caught.value).isprintable()
