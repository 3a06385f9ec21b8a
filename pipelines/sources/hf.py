"""Any data set of the Hugging Face Hub, or a local folder that load_dataset opens."""

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

from pipelines.errors import InputError
from pipelines.sources.base import Photo, SourceItem, SourceListing, named
from pipelines.storage.manifest import ScaleInfo

if TYPE_CHECKING:
    import datasets


def hf(
    seed: int,
    *,
    path: str,
    score_low: float,
    score_high: float,
    config: str | None = None,
    revision: str | None = None,
    image: str = "image",
    mos: str = "mos",
    mos_std: str | None = None,
    n_votes: str | None = None,
    group: str | None = None,
    label_source: Literal["human", "simulated"] = "human",
    license: str = "not stated",
    attribution: str = "Not stated.",
) -> SourceListing:
    """The rows of `path` (an id of the Hub, or a folder), with its splits if it has several.

    Rows without a score on the scale are rejects. Needs memory for the table without pixels. In
    names of columns a dot reaches into a struct (`json.mos`).

    Args:
        seed: Unused: nothing is drawn.
        path: Id of the Hub, or a folder.
        score_low: Lowest score of the scale.
        score_high: Highest score of the scale.
        config: Configuration of the data set.
        revision: Commit or tag, best a commit: then the same data comes again.
        image: Column of the pictures.
        mos: Column of the scores.
        mos_std: Column of the standard deviations of the opinions.
        n_votes: Column of the numbers of opinions.
        group: Column that names the photograph.
        label_source: Who gave the scores.
        license: Name of the licence, or the terms in a few words.
        attribution: Whom to name, in full sentences.

    Raises:
        InputError: The data set cannot be opened, or a column is missing or of another kind.
    """
    if not score_low < score_high:
        raise InputError(f"score_low must be below score_high, got {score_low} and {score_high}")
    columns = {"image": image, "mos": mos, "mos_std": mos_std, "n_votes": n_votes, "group": group}
    scale = ScaleInfo(
        low=score_low,
        high=score_high,
        label_source=label_source,
        license=license,
        attribution=attribution,
    )
    items: list[SourceItem] = []
    rejects: list[tuple[str, str]] = []
    splits = _open(path, config, revision)
    for split, data in splits.items():
        _check_columns(data, columns)
        values = {
            name: _column(data, column)
            for name, column in columns.items()
            if column is not None and name != "image"
        }
        for row in range(len(data)):
            source_id = f"{split}/{row}"
            score, spread, votes = (
                _number(values[name][row]) if name in values else None
                for name in ("mos", "mos_std", "n_votes")
            )
            if score is None or not score_low <= score <= score_high:
                rejects.append((source_id, "no score on the scale"))
                continue
            count = None if votes is None else round(votes)
            place = (path, config, revision, str(split), image, row)
            items.append(
                SourceItem(
                    source_id=source_id,
                    group=str(values["group"][row]) if group else source_id,
                    load=partial(_photo, place, score, spread, count),
                    version=f"{data._fingerprint}:{score!r}:{spread!r}:{count!r}",
                    split=str(split) if len(splits) > 1 else None,
                )
            )
    return SourceListing(items, scale, rejects)


@cache
def _open(path: str, config: str | None, revision: str | None) -> "datasets.DatasetDict":
    """The data set with undecoded pictures, once per process."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        loaded = datasets.load_dataset(path, config, revision=revision)
    except DatasetNotFoundError:
        raise InputError(
            f"path must be a data set of the Hub that you may read, or a folder, got {path!r}"
        ) from None
    except (FileNotFoundError, ValueError) as error:  # no data in a folder, unknown config
        text = " ".join(str(error).split())
        raise InputError(
            f"path must be a data set that can be read, got {path!r}: {text}"
        ) from None
    return loaded


def _check_columns(data: "datasets.Dataset", columns: dict[str, str | None]) -> None:
    import datasets

    for name, column in columns.items():
        top = (column or "").partition(".")[0]
        if column is not None and top not in data.column_names:
            raise InputError(
                f"{name} must be a column of the data set, got {column!r} and not one of "
                f"{named(data.column_names)}"
            )
    picture = columns["image"]
    assert picture is not None
    if not isinstance(data.features[picture], datasets.Image):
        raise InputError(
            f"image must be a column of pictures, got {picture!r} of {data.features[picture]}"
        )


def _column(data: "datasets.Dataset", column: str) -> list[Any]:
    top, _, inner = column.partition(".")
    values = data.select_columns([top])[:][top]
    return [(value or {}).get(inner) for value in values] if inner else list(values)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _photo(
    place: tuple[str, str | None, str | None, str, str, int],
    mos: float,
    mos_std: float | None,
    n_votes: int | None,
) -> Photo:
    import datasets

    path, config, revision, split, column, row = place
    data = _open(path, config, revision)[split].cast_column(column, datasets.Image(decode=False))
    picture = data[row][column]
    if picture["bytes"] is None:
        with open(picture["path"], "rb") as file:
            return Photo(file.read(), mos, mos_std, n_votes)
    return Photo(picture["bytes"], mos, mos_std, n_votes)
