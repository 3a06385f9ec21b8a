"""The AE detector as files: its folder, ONNX, and what it says of files, folders and data sets."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save

from defenders.detector import MIN_SIDE, Detector
from pipelines.errors import InputError, StageError
from pipelines.readers.rows import ImageRow, open_dataset
from pipelines.storage.checkpoints import CONFIG, WEIGHTS, read_model
from pipelines.storage.files import atomic_file, write_bytes, write_json
from pipelines.storage.images import RejectedImage, decode_image, to_tensor
from victims.base import stored_state

ONNX = "detector.onnx"
INPUT, OUTPUT = "images", "logits"
PARITY = 1e-4  # largest difference of the probabilities of ONNX and torch


def save_detector(detector: Detector, folder: Path, about: dict[str, Any]) -> None:
    """Write a detector as model.safetensors and config.json.

    Args:
        detector: The model.
        folder: Folder to write.
        about: Further fields of config.json.

    Raises:
        StageError: Where the folder cannot be written.
    """
    config = {"kind": "ae-detector", "width": detector.width, **about}
    try:
        write_bytes(folder / WEIGHTS, save(stored_state(detector)))
        write_json(folder / CONFIG, config, sort_keys=True)
    except OSError as error:
        raise StageError(f"model folder {folder} cannot be written ({error.strerror})") from error


def load_detector(folder: Path | str) -> Detector:
    """A trained detector, ready to score.

    Args:
        folder: What `save_detector` wrote.

    Returns:
        The detector in eval mode, without gradients.

    Raises:
        InputError: For other than a path, or where files are missing, damaged or do not match.
    """
    if not isinstance(folder, (str, Path)):
        raise InputError(f"folder must be a path, got {type(folder).__name__}")
    folder = Path(folder)
    config, state = read_model(folder, "train_detector")
    if not isinstance(config, dict) or config.get("kind") != "ae-detector":
        raise InputError(f"{folder / CONFIG} must be that of an AE detector, got another model's")
    try:
        detector = Detector(config["width"])
        detector.load_state_dict(state)
    except (KeyError, RuntimeError):
        raise InputError(
            f"weights must match the config in {folder}, got others than those of "
            f"width {config.get('width')!r}"
        ) from None
    return detector.eval().requires_grad_(False)


def export_onnx(detector: Detector, path: Path) -> float:
    """Write a detector as ONNX and compare it with torch on images of three sizes.

    Args:
        detector: The model; `images` (N,3,H,W) in [0,1] to `logits` (N,), all sizes free.
        path: File to write.

    Returns:
        Largest difference between ONNX and torch, in probability.

    Raises:
        StageError: For a difference above 1e-4.
        InputError: Without the extra `onnx`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs `pip install veneer[onnx]`, got no module {error.name}"
        ) from None
    detector = detector.cpu().eval()
    axes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=MIN_SIDE)}
    axes[3] = torch.export.Dim("width", min=MIN_SIDE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        temporary = Path(scratch, path.name)
        torch.onnx.export(
            detector,
            (torch.rand(2, 3, 96, 128),),
            temporary,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(axes,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        worst = 0.0
        generator = torch.Generator().manual_seed(0)
        for shape in ((1, 3, 64, 64), (3, 3, 97, 130), (2, 3, 224, 200)):
            images = torch.rand(shape, generator=generator)
            logits = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
            with torch.no_grad():
                here = detector(images).sigmoid()
            worst = max(worst, float((logits.sigmoid() - here).abs().max()))
        if not worst <= PARITY:
            raise StageError(f"ONNX must agree with torch to {PARITY:g}, got {worst:.2g}")
        temporary.replace(path)
    return worst


def detect(
    places: Sequence[str], detector: Detector, *, threshold: float = 0.5, split: str | None = None
) -> pd.DataFrame:
    """Score image files, folders and data sets.

    Args:
        places: Image files, folders, or ids of data sets on the Hub.
        detector: The model.
        threshold: Probability above which a picture counts as adversarial, in (0, 1).
        split: Only the rows of this split.

    Returns:
        A row per picture: id, place, probability, adversarial, problem.

    Raises:
        InputError: For a threshold out of range or a place without pictures.
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold must be in (0, 1), got {threshold}")
    lines = []
    for place in places:
        for row in _rows(place, split):
            value, problem = np.nan, None
            try:
                image = decode_image(row.load(), min_side=MIN_SIDE)
                with torch.no_grad():
                    value = float(detector(to_tensor(image)[None]).sigmoid())
            except RejectedImage as error:
                problem = error.reason
            lines.append(
                {
                    "id": row.id,
                    "place": place,
                    "probability": value,
                    "adversarial": value > threshold,
                    "problem": problem,
                }
            )
    return pd.DataFrame(lines)


def write_detections(table: pd.DataFrame, out: Path) -> None:
    """Write detections as .json (a list of rows) or .parquet.

    Args:
        table: What `detect` returned.
        out: File to write.

    Raises:
        StageError: Where it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            if out.suffix == ".json":
                file.write((table.to_json(orient="records", indent=2) + "\n").encode())
            else:
                table.to_parquet(file, index=False)
    except OSError as error:
        raise StageError(f"{out} cannot be written ({error.strerror})") from error


def _rows(place: str, split: str | None) -> Sequence[ImageRow]:
    path = Path(place)
    if path.is_file():
        return [ImageRow(path.name, None, None, path.read_bytes)]
    return open_dataset(place, split=split).rows
