"""Where photographs and their scores come from: one importer per source."""

from collections.abc import Callable

from pipelines.sources.ava import ava
from pipelines.sources.base import SourceListing
from pipelines.sources.flickr_aes import flickr_aes
from pipelines.sources.folder import folder
from pipelines.sources.hf import hf
from pipelines.sources.koniq import koniq
from pipelines.sources.livec import livec
from pipelines.sources.sample import sample
from pipelines.sources.tad66k import tad66k

SOURCES: dict[str, Callable[..., SourceListing]] = {
    "ava": ava,
    "flickr_aes": flickr_aes,
    "folder": folder,
    "hf": hf,
    "koniq": koniq,
    "livec": livec,
    "sample": sample,
    "tad66k": tad66k,
}
