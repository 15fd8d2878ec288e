"""CSV files as a source: what the rest of the pipeline knows of it. No webhooks: its folders are looked into."""

from collections.abc import Iterator, Sequence

from esl_pipeline.model.check import Check
from esl_pipeline.sources.files.folder import Folder
from esl_pipeline.sources.files.names import SHOP, shop_id
from esl_pipeline.sources.files.reader import FilesReader
from esl_pipeline.sources.files.settings import FilesSettings
from esl_pipeline.sources.source import Source, SourceError


class FilesSource(Source[FilesSettings]):
    """Products in CSV files; a shop's id is the short name that FILES_FOLDERS gives it."""

    system = "files"
    name = "Files"
    settings_class = FilesSettings
    example_shop = "corner"
    shop_pattern = SHOP.pattern
    how_to_read = "set FILES_FOLDERS to shop=address of its folder"
    opens_others = "FILES_FOLDERS names the folders of other shops only"
    is_polled = True

    @classmethod
    def products_asset(cls) -> str:
        """In the singular, as the names of people's tables are."""
        return "file_products"

    @classmethod
    def shop_id(cls, text: str) -> str | None:
        """The short name in small letters."""
        return shop_id(text)

    @property
    def is_set_up(self) -> bool:
        """Whether there is any folder; the other settings alone mean nothing."""
        return bool(self.settings.folders)

    @property
    def reads_any(self) -> bool:
        """Whether there is any folder."""
        return bool(self.settings.folders)

    def opens(self, shop: str) -> bool:
        """Whether there is a folder for the shop."""
        return shop in self.settings.folders

    def reader(self, shop: str, *, patient: bool = True) -> FilesReader:  # noqa: ARG002
        """Of the shop's folder."""
        if not self.opens(shop):
            raise SourceError(f"there is no folder for {shop}: {self.how_to_read}")
        folder = Folder(shop, self.settings.folders[shop])
        return FilesReader(
            folder,
            shop,
            smallest_share=self.settings.files_smallest_share_pct,
            settle_seconds=self.settings.files_settle_seconds,
        )

    def checks(self, mapped: Sequence[str], active: Sequence[str]) -> Iterator[Check]:
        """Whether each shop's folder can be listed, and each folder feeds a store."""
        for shop in sorted(self.settings.folders.keys() - set(mapped)):
            yield Check(
                f"shop {shop}",
                "warning",
                "has a folder in FILES_FOLDERS, but feeds no store: is it misspelt?",
            )
        for shop in active:
            if self.opens(shop):
                yield self._folder_check(shop)

    def _folder_check(self, shop: str) -> Check:
        try:
            files = Folder(shop, self.settings.folders[shop]).files()
        except SourceError as error:
            return Check(f"shop {shop}", "wrong", str(error))
        newest = (
            f"; the newest is {files[-1].name} of {files[-1].modified_at:%Y-%m-%d %H:%M}Z" if files else ""
        )
        return Check(
            f"shop {shop}", "ok" if files else "warning", f"{len(files)} lists in its folder{newest}"
        )
