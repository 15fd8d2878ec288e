"""FILES_FOLDERS: which shop's files are where; what is wrong is said without the address, which may hold a password."""

from typing import Any

import pytest

from esl_pipeline.environment import SettingsError
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.files.folder import Folder
from esl_pipeline.sources.files.settings import FilesSettings
from esl_pipeline.sources.files.source import FilesSource
from esl_pipeline.sources.source import SourceError

CANARY = "sftp://canary-user:canary-word@10.255.255.1/out"


def folders(text: str) -> dict[str, str]:
    return dict(load_settings(files_folders=text).of(FilesSettings).folders)


def problem(**settings: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(**settings)
    (found,) = refused.value.problems
    return found


def test_each_shop_has_one_folder() -> None:
    assert folders(f" Corner = /srv/erp , north={CANARY},bucket=s3://b/out") == {
        "corner": "/srv/erp",
        "north": CANARY,
        "bucket": "s3://b/out",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (",", "only commas"),
        ("/srv/erp", "entry 1 does not begin with a shop's short name"),
        ("a=/x,-b=/y", "entry 2 does not begin with a shop's short name"),
        ("a=/x,A=/y", "entry 2 is a second folder of a"),
        ("a=relative/path", "entry 1 holds no address"),
        ("a=https://example.com/out", "cannot list"),
        ("a=simplecache::s3://b/out", "entry 1 holds no address"),
        ("a=nothing://here", "cannot list"),
    ],
)
def test_what_is_wrong_with_them_is_said(text: str, says: str) -> None:
    assert says in problem(files_folders=text)


def test_no_address_is_in_what_is_said() -> None:
    settings = load_settings(files_folders=f"north={CANARY}")
    source = settings.sources["files"]
    said = [repr(settings), repr(source.settings), str(source.settings.model_dump())]
    said += [repr(source), problem(files_folders=f"north={CANARY},bad={CANARY}::x")]
    with pytest.raises(SourceError) as unread:
        Folder("north", "abfs://canary-bucket/canary").files()  # its package is not installed here
    said.append(str(unread.value))
    with pytest.raises(SourceError) as missing:
        Folder("north", "/canary/out").files()
    said.append(str(missing.value))
    assert not [text for text in said if "canary" in text]
    assert "install it" in said[-2] and "is not there" in said[-1]


def test_an_unprotected_address_is_warned_of() -> None:
    assert any("ftp://" in text for text in load_settings(files_folders="a=ftp://host/x").warnings())
    assert not any("FILES" in text for text in load_settings(files_folders="a=sftp://host/x").warnings())


def test_a_shop_is_a_short_name() -> None:
    assert FilesSource.shop_id("Corner.1_a-b") == "corner.1_a-b"
    assert FilesSource.products_asset() == "file_products"
    for wrong in ("", "-a", "a/b", "a b", "../etc", "a" * 64, "file:///etc"):
        assert FilesSource.shop_id(wrong) is None
