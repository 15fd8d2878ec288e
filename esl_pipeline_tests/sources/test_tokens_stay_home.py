"""A token opens the shops of its own source, and is sent to no other address: every address listens for all of them."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from esl_pipeline.settings import load_settings
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.sources.source import SourceError

SHOPIFYS, OTHERS = "corner.myshopify.com", "other.myshopify.com"
TOKENS = {
    "shopify": ("shpat_canary_all", "canary_client", "canary_secret"),
    "woocommerce": ("ck_canary00000001", "cs_canary00000001"),
}


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """An address that answers nothing of use, and all that it was sent."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            basic = (self.headers.get("Authorization") or "").removeprefix("Basic ")
            with suppress(ValueError):  # a key and its secret, as they are sent
                basic = base64.b64decode(basic, validate=True).decode()
            heard.append(f"{self.path} {self.headers} {basic} {body.decode()}")
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_no_token_leaves_its_source(tmp_path: Path) -> None:
    with listening() as (shopify, to_shopify), listening() as (woocommerce, to_woocommerce):
        site = woocommerce.removeprefix("http://")
        settings = load_settings(
            shopify_admin_url=shopify,
            shopify_admin_token=f"{SHOPIFYS}={TOKENS['shopify'][0]}",
            shopify_api_key=TOKENS["shopify"][1],
            shopify_api_secret=TOKENS["shopify"][2],
            woocommerce_url=woocommerce,
            woocommerce_keys=f"{site}={':'.join(TOKENS['woocommerce'])}",
            files_folders=f"corner={tmp_path}",
        )
        shops = (SHOPIFYS, OTHERS, site, "shop.example.com", "corner", shopify.removeprefix("http://"))
        for source in settings.sources.values():
            for shop in shops:
                with suppress(SourceError), source.reader(shop, patient=False) as reader:
                    reader.shop()
                with suppress(SourceError), source.reader(shop, patient=False) as reader:
                    reader.product("1")
    assert any(TOKENS["shopify"][0] in said for said in to_shopify)
    assert any(TOKENS["woocommerce"][0] in said for said in to_woocommerce)
    for own, heard in {"shopify": to_shopify, "woocommerce": to_woocommerce}.items():
        foreign = [token for system, tokens in TOKENS.items() if system != own for token in tokens]
        assert not [token for token in foreign for said in heard if token in said]
    assert SOURCES.keys() - TOKENS.keys() == {"files"}, "a new source's tokens belong here"
