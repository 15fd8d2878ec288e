"""Label servers as configuration: a file of tables, each with the rules of the single variables; signs apart."""

from pathlib import Path
from typing import Any

import pytest

from esl_pipeline.connections import connections_of_run
from esl_pipeline.label_servers import PUBLIC_SIGN
from esl_pipeline.settings import SettingsError, load_settings
from esl_pipeline.stages.drain import connections

CANARY = "canary-sign"
FULL = """
[north]
base_url = "https://north.example.com/"
client_id = "own"
rate_limit_per_second = 2.5
concurrency = 8
batch_size = 50

[south-2]
base_url = "https://south.example.com"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.toml"


def load(file: Path, text: str, **settings: Any) -> Any:
    file.write_text(text)
    return load_settings(hipoink_servers_file=str(file), **settings)


def problems(file: Path, text: str, **settings: Any) -> list[str]:
    """What is wrong, without the file's place in each sentence."""
    with pytest.raises(SettingsError) as caught:
        load(file, text, **settings)
    return [problem.replace(f"{file} ", "") for problem in caught.value.problems]


def test_a_file_names_further_servers_and_leaves_what_it_does_not_say_at_the_defaults(file: Path) -> None:
    settings = load(
        file, FULL, hipoink_api_base_url="https://labels.example.com", HIPOINK_API_SECRET__NORTH=CANARY
    )
    servers = settings.label_servers
    assert list(servers) == ["default", "north", "south-2"]
    north, south = servers["north"], servers["south-2"]
    assert (north.base_url, north.client_id) == ("https://north.example.com", "own")
    assert (north.rate_limit_per_second, north.concurrency, north.batch_size) == (2.5, 8, 50)
    assert north.sign.get_secret_value() == CANARY
    assert (south.client_id, south.rate_limit_per_second, south.concurrency) == ("default", 10, 4)
    assert (south.batch_size, south.ca_file, south.sign.get_secret_value()) == (100, None, PUBLIC_SIGN)


def test_without_anything_there_is_none_and_with_the_single_variables_one() -> None:
    assert load_settings().label_servers == {}
    (name,) = load_settings(hipoink_api_base_url="https://x.example", hipoink_batch_size=7).label_servers
    assert name == "default"


def test_a_name_that_nobody_set_is_said_with_what_to_set(file: Path) -> None:
    settings = load(file, FULL)
    for name, says in (
        ("nort", "no label server is called nort: there is north, south-2; add a table [nort]"),
        ("default", "no label server is called default: HIPOINK_API_BASE_URL is not set"),
    ):
        with pytest.raises(SettingsError, match=says.replace("[", r"\[")):
            settings.label_server(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base_url = 'https://x.example'", "base_url: stands in no table"),
        ("[North]", "[North]: is no name for a label server"),
        ("[a_b]", "[a_b]: is no name for a label server"),
        ("['']", "[]: is no name for a label server"),
        (f"[{'n' * 33}]", "is no name for a label server"),
        ("[n]", "[n] base_url: is missing"),
        ("[n]\nbase_url = ''", "[n] base_url: is not a web address"),
        ("[n]\nbase_url = 'labels'", "[n] base_url: is not a web address"),
        ("[n]\nbase_url = 'https://u:p@x.example'", "[n] base_url: has a user name or password in it"),
        ("[n]\nbase_url = 'http://labels.example'", "[n] base_url: is http:// to another machine"),
        ("[n]\nbase_url = 7", "[n] base_url: is not text"),
        ("[n]\nbase_url = 'https://x\u200b.example'", "[n] base_url: holds a character that cannot be printed"),
        ("[n]\nclient_id = 'a/b'", "[n] client_id: cannot stand in the path"),
        ("[n]\nrate_limit_per_second = 0", "[n] rate_limit_per_second: is not a number from 0.01 to 1000"),
        ("[n]\nrate_limit_per_second = nan", "[n] rate_limit_per_second: is not a number"),
        ("[n]\nconcurrency = 33", "[n] concurrency: is not a whole number from 1 to 32"),
        ("[n]\nbatch_size = true", "[n] batch_size: is neither a number nor a text"),
        ("[n]\nbatch_size = 1001", "[n] batch_size: is not a whole number from 1 to 1000"),
        ("[n]\nca_file = '/no/such.pem'", "[n] ca_file: cannot be read as certificates"),
        ("[n]\nbach_size = 5", "[n] bach_size: is no setting of a label server: did you mean batch_size?"),
        ("[n]\nshelves = 5", "[n] shelves: is no setting of a label server; remove it"),
        ("[n.deep]\nbase_url = 'https://x.example'", "[n] deep: is no setting of a label server"),
        ("[my-shop]\napi_secret = 'canary'", "[my-shop] api_secret: no secret may stand in this file; set "
         "HIPOINK_API_SECRET__MY_SHOP"),
        ("[default]\nsign = 'canary'", "[default] sign: no secret may stand in this file; set HIPOINK_API_SECRET"),
        ("[n", "HIPOINK_SERVERS_FILE: is not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_table_and_key(file: Path, text: str, says: str) -> None:
    found = problems(file, text)
    assert any(problem.startswith(says) or says in problem for problem in found), found
    assert "canary" not in "".join(found)


def test_all_of_it_is_said_at_once_beside_the_problems_of_the_variables(file: Path) -> None:
    text = "x = 1\n[n]\nbatch_size = 0\nconcurrency = 0\n[m]\nbase_url = 'x'\n[M]\n"
    found = problems(file, text, log_level="x", hipoink_batch_size=0)
    assert [problem.split(": ")[0] for problem in found] == [
        *("HIPOINK_BATCH_SIZE", "LOG_LEVEL", "x", "[M]", "[n] batch_size", "[n] concurrency", "[m] base_url"),
    ]


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"_FILE: .* cannot be read \(FileNotFoundError\)"):
        load_settings(hipoink_servers_file=str(file))
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"cannot be read \(UnicodeDecodeError\)"):
        load_settings(hipoink_servers_file=str(file))


def test_the_default_may_stand_in_the_file_but_not_in_both_places(file: Path) -> None:
    text = "[default]\nbase_url = 'https://x.example'\n"
    servers = load(
        file, f"[n]\nbase_url = 'https://n.example'\n{text}", hipoink_api_secret="own"
    ).label_servers
    assert list(servers) == ["default", "n"], "the default comes first wherever it stands"
    assert servers["default"].sign.get_secret_value() == "own"
    (says,) = problems(file, text, hipoink_api_base_url="https://y.example")
    assert says == "[default]: is set by HIPOINK_API_BASE_URL as well; remove one of the two"


def test_s22_plain_http_needs_the_clear_word_and_a_private_address_and_is_warned_of(file: Path) -> None:
    text = "[n]\nbase_url = 'http://{}'\n"
    allowed = {"allow_insecure_label_server": "true", "HIPOINK_API_SECRET__N": "own"}
    assert "not private" in problems(file, text.format("labels.lan"), **allowed)[0]
    said = load(file, text.format("192.168.1.5"), **allowed).warnings()
    assert said[0].startswith("HIPOINK_SERVERS_FILE: base_url of n is http:// to another machine")
    assert load(file, text.format("127.0.0.1:9"), HIPOINK_API_SECRET__N="own").label_servers


def test_the_public_sign_is_warned_of_for_each_server(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("hipoink_api_secret__north", " own ")
    settings = load(file, FULL, HIPOINK_API_SECRET__SOUTH_2=PUBLIC_SIGN)
    assert settings.label_servers["north"].sign.get_secret_value() == "own"
    about = [said.split()[0] for said in settings.warnings() if "public default sign" in said]
    assert about == ["HIPOINK_API_SECRET__SOUTH_2"], "there is no single server, so nothing of its sign"


def test_signs_come_from_the_env_file_too_and_an_override_takes_one_away(file: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"HIPOINK_API_SECRET__NORTH={CANARY}\n")
    assert load(file, FULL).label_servers["north"].sign.get_secret_value() == CANARY
    assert load(file, FULL, hipoink_api_secret__north=None).label_servers["north"].uses_public_sign


@pytest.mark.parametrize("sign", ["canary\u200b", "can\x07ary"])
def test_a_sign_that_cannot_be_typed_is_refused_by_its_variable(file: Path, sign: str) -> None:
    (says,) = problems(file, FULL, HIPOINK_API_SECRET__NORTH=sign)
    assert says.startswith("HIPOINK_API_SECRET__NORTH: holds a character") and "can" + "ary" not in says


def test_a_sign_of_no_server_is_said_with_the_nearest_name(file: Path) -> None:
    says = load(file, FULL, HIPOINK_API_SECRET__NORHT="canary").warnings()[0]
    assert says == (
        f"HIPOINK_API_SECRET__NORHT is the sign of no label server: {file} has no such server: did you mean "
        "HIPOINK_API_SECRET__NORTH?"
    )
    (says, *_) = load_settings(HIPOINK_API_SECRET__NORTH="canary").warnings()
    assert says.endswith("HIPOINK_SERVERS_FILE is not set")


def test_no_sign_shows_in_any_form(file: Path) -> None:
    settings = load(file, FULL, HIPOINK_API_SECRET__NORTH=CANARY)
    shown = [repr(settings), str(settings.model_dump()), repr(settings.label_servers), str(vars(settings))]
    shown += [str(settings.warnings()), str(dict(settings.label_servers)["north"])]
    assert CANARY not in "".join(shown)
    with pytest.raises(AttributeError):
        settings.label_servers["north"].base_url = "https://evil.example"


def test_a_run_has_connections_for_the_calls_of_every_server(file: Path) -> None:
    table = '[{}]\nbase_url = "https://{}.example.com"\nconcurrency = {}\n'
    settings = load(file, table.format("north", "n", 32) + table.format("south", "s", 1))
    assert connections_of_run(settings) == connections(32) + connections(1) > connections(4)
