"""The table of sources: a name and where its importer is.

Nothing is imported before it is asked for, so a new line changes no result: stage `import` depends
on the module of the source that the parameters name (`veneer code-deps`), and on no other.
"""

from collections.abc import Callable
from pkgutil import resolve_name

from pipelines.errors import InputError
from pipelines.sources.base import SourceListing

# Each in the module of its name, on which dvc.yaml depends.
SOURCES = {
    "ava": "pipelines.sources.ava:ava",
    "flickr_aes": "pipelines.sources.flickr_aes:flickr_aes",
    "folder": "pipelines.sources.folder:folder",
    "hf": "pipelines.sources.hf:hf",
    "koniq": "pipelines.sources.koniq:koniq",
    "livec": "pipelines.sources.livec:livec",
    "sample": "pipelines.sources.sample:sample",
    "tad66k": "pipelines.sources.tad66k:tad66k",
}


def importer(source: str) -> Callable[..., SourceListing]:
    """The function that lists the photographs of a source, imported now.

    Args:
        source: A key of SOURCES.

    Raises:
        InputError: For another source.
    """
    loaded: Callable[..., SourceListing] = resolve_name(_place(source))
    return loaded


def source_module(source: str) -> str:
    """Dotted name of the module of a source, which is not imported.

    Args:
        source: A key of SOURCES.

    Raises:
        InputError: For another source.
    """
    return _place(source).partition(":")[0]


def _place(source: str) -> str:
    if source not in SOURCES:
        raise InputError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    return SOURCES[source]
