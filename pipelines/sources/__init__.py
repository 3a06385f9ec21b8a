"""Where photographs and their scores come from: one importer per source."""

from collections.abc import Callable

from pipelines.sources.base import SourceListing
from pipelines.sources.folder import folder
from pipelines.sources.livec import livec
from pipelines.sources.sample import sample

SOURCES: dict[str, Callable[..., SourceListing]] = {
    "folder": folder,
    "livec": livec,
    "sample": sample,
}
