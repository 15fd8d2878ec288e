import ast
import base64
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esl_pipeline.sources import signature
from esl_pipeline.sources.signature import verify
from esl_pipeline_tests.shared_data import DATA

RAW = b'{"id":632910392,"title":"a"}'
KEY = b"shared secret"
GOOD = base64.b64encode(hmac.digest(KEY, RAW, "sha256")).decode()
WYCHEPROOF = DATA / "security" / "wycheproof_hmac_sha256_test.json"


def test_the_signature_of_the_raw_body_verifies() -> None:
    assert verify(RAW, GOOD, [KEY])


REWRITTEN = {
    "spaces": b'{"id": 632910392,"title":"a"}',
    "key order": b'{"title":"a","id":632910392}',
    "byte order mark": b"\xef\xbb\xbf" + RAW,
    "CRLF": RAW.replace(b",", b",\r\n"),
    "line break at the end": RAW + b"\n",
    "escape": RAW.replace(b'"a"', b'"\\u0061"'),
    "empty": b"",
}


@pytest.mark.parametrize("raw", REWRITTEN.values(), ids=REWRITTEN)
def test_s01_a_body_written_differently_does_not_verify(raw: bytes) -> None:
    assert raw != RAW
    assert not verify(raw, GOOD, [KEY])


def test_s04_every_secret_counts_wherever_it_stands() -> None:
    others = [b"older", b"oldest"]
    assert all(verify(RAW, GOOD, [*others[:place], KEY, *others[place:]]) for place in range(3))
    assert not verify(RAW, GOOD, others)
    assert not verify(RAW, GOOD, [])


def test_s04_all_secrets_are_compared_even_after_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((type(one), len(one), type(other), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert verify(RAW, GOOD, [KEY, b"older", b"oldest"])
    assert compared == [(bytes, 32, bytes, 32)] * 3


def test_s02_compare_digest_is_the_only_comparison_with_a_key() -> None:
    """No time is measured: what is compared with what, is read in the code."""
    tree = ast.parse(Path(signature.__file__).read_text(encoding="utf-8"))
    verifying = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "verify")
    compared = [ast.unparse(node) for node in ast.walk(verifying) if isinstance(node, ast.Compare)]
    # Both judge the header's own form; neither knows a key.
    assert compared == ["len(claimed) != 32", "base64.b64encode(claimed).decode() != header"]
    calls = [ast.unparse(node.func) for node in ast.walk(verifying) if isinstance(node, ast.Call)]
    assert calls.count("hmac.new") == 1
    assert "hmac.compare_digest(hmac.new(key, raw, 'sha256').digest(), claimed) for key in" in ast.unparse(
        verifying
    )


def test_s06_without_a_key_one_comparison_is_made_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(one) or one == other)
    assert not verify(RAW, GOOD, [])
    assert len(compared) == 1


TAG = hmac.digest(KEY, RAW, "sha256")
FORGED = {
    "empty": "",
    "bit flipped": base64.b64encode(bytes([TAG[0] ^ 1]) + TAG[1:]).decode(),
    "truncated": base64.b64encode(TAG[:16]).decode(),
    "lengthened": base64.b64encode(TAG + b"\0").decode(),
    "hex": TAG.hex(),
    "no padding": GOOD.rstrip("="),
    "padding twice": GOOD + "=",
    "padding and more": GOOD + "AAAA",
    "leading blank": " " + GOOD,
    "line break at the end": GOOD + "\n",
    "line break inside": GOOD[:10] + "\n" + GOOD[10:],
    "junk inside": GOOD[:10] + "!!" + GOOD[10:],
    "not ASCII": "\xff\xfe" + GOOD[2:],
    "unused bits set": GOOD[:-2] + chr(ord(GOOD[-2]) + 1) + "=",
    "scheme before it": "sha256=" + GOOD,
    "two in one": f"{GOOD},{GOOD}",
}


@pytest.mark.parametrize("header", FORGED.values(), ids=FORGED)
def test_s03_only_the_canonical_text_verifies(header: str) -> None:
    assert header != GOOD
    assert not verify(RAW, header, [KEY])


def test_s03_the_url_safe_alphabet_does_not_verify() -> None:
    raw = next(
        raw
        for raw in (str(n).encode() for n in range(1000))
        if {"+", "/"} & set(base64.b64encode(hmac.digest(KEY, raw, "sha256")).decode())
    )
    tag = hmac.digest(KEY, raw, "sha256")
    assert verify(raw, base64.b64encode(tag).decode(), [KEY])
    assert not verify(raw, base64.urlsafe_b64encode(tag).decode(), [KEY])


@given(st.text(max_size=100))
def test_s02_no_header_text_raises(header: str) -> None:
    assert not verify(RAW, header, [KEY]) or header == GOOD


@pytest.mark.shared_data("data/security/wycheproof_hmac_sha256_test.json")
def test_f24_wycheproof_vectors_and_truncated_tags_are_refused() -> None:
    groups = json.loads(WYCHEPROOF.read_text())["testGroups"]
    seen = {"taken": 0, "truncated": 0, "forged": 0}
    for group in groups:
        for case in group["tests"]:
            tag = bytes.fromhex(case["tag"])
            whole = group["tagSize"] == 256
            expected = case["result"] == "valid" and whole
            found = verify(
                bytes.fromhex(case["msg"]), base64.b64encode(tag).decode(), [bytes.fromhex(case["key"])]
            )
            assert found is expected, case["tcId"]
            kind = "forged" if case["result"] == "invalid" else "taken" if whole else "truncated"
            seen[kind] += 1
    assert seen == {"taken": 33, "truncated": 33, "forged": 108}
