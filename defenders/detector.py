"""Tells adversarial examples from photographs: a small MobileNetV2 on pixels and their residue."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor, nn

from victims.checks import check_whole_number
from victims.loop import Hooks, Row, fit, take_steps

MAX_PARAMETERS = 600_000
MIN_SIDE = 32  # pixels, of a picture and of a crop
_RESIDUE = 8 / 255  # residues beyond eight grey levels are edges, not traces


# (expansion, channels, blocks, stride): MobileNetV2's table without its last stages, which on the
# crops that the detector learns from would see a single place.
_STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 3, 2), (4, 64, 3, 2))
_STEM, _LAST = 16, 256


def _conv(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after)]


class InvertedResidual(nn.Module):
    """Expand, depthwise 3×3, project; added to its input where the shape stays.

    Source: Sandler et al., MobileNetV2, 2018.

    Args:
        before: Input channels.
        after: Output channels.
        expansion: Hidden channels per input channel; 1 leaves out the expanding convolution.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, before: int, after: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = before * expansion
        layers = [*_conv(before, wide, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*_conv(wide, wide, 3, stride, wide), nn.ReLU6(), *_conv(wide, after, 1)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (N,before,H,W).

        Returns:
            (N,after,⌈H/stride⌉,⌈W/stride⌉).
        """
        return x + self.layers(x) if self.adds else self.layers(x)


class Detector(nn.Module):
    """Logit that an image is adversarial, from RGB in [0,1] of any size of at least 32 pixels.

    A short MobileNetV2 on six planes: the picture around grey, and its 3×3 residue clamped to
    eight grey levels, where the traces of filtering lie. Nothing is resized: that would erase
    them.

    Args:
        width: Multiplier of the channels; 1 has 0.14 M parameters.

    Raises:
        ValueError: For a width of more than MAX_PARAMETERS parameters.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width = width
        channels = max(8, round(_STEM * width))
        layers = [*_conv(6, channels, 3, 2), nn.ReLU6()]
        for expansion, after, blocks, stride in _STAGES:
            for i in range(blocks):
                now = max(8, round(after * width))
                layers.append(InvertedResidual(channels, now, expansion, stride if i == 0 else 1))
                channels = now
        self.features = nn.Sequential(*layers, *_conv(channels, _LAST, 1), nn.ReLU6())
        self.head = nn.Linear(_LAST, 1)
        count = sum(p.numel() for p in self.parameters())
        if count > MAX_PARAMETERS:
            raise ValueError(
                f"width must leave at most {MAX_PARAMETERS} parameters, got {count} ({width:g})"
            )
        kernel = torch.tensor([[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]]) / 4
        self.register_buffer("kernel", kernel.expand(3, 1, 3, 3).clone(), persistent=False)
        self.kernel: Tensor
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: (N,3,H,W) in [0,1].

        Returns:
            (N,) logits, positive for adversarial.
        """
        around = F.pad(images, (1, 1, 1, 1), mode="reflect")
        residue = F.conv2d(around, self.kernel, groups=3).clamp(-_RESIDUE, _RESIDUE) / _RESIDUE
        planes = torch.cat([images * 2 - 1, residue], dim=1)
        features = self.features(planes.contiguous(memory_format=torch.channels_last))
        return self.head(features.mean(dim=(2, 3))).squeeze(1)


class LabelledImages(Protocol):
    """Items (image uint8 (3,H,W), 1 if adversarial); `adversarial` lists the latter for all."""

    @property
    def adversarial(self) -> Sequence[bool]:
        """Label of each item."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, bool]: ...


def crop_and_flip(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random window of size × size, mirrored at random either way; smaller images are wrapped.

    Neither interpolates, so the trace stays as it is.

    Args:
        image: uint8 (3,H,W).
        size: Side of the window, in pixels.
        rng: Generator of the place and the flips.

    Returns:
        uint8 (3,size,size).
    """
    height, width = image.shape[1:]
    times = (1, -(-size // height), -(-size // width))
    if max(times) > 1:
        image = image.repeat(times)
    top, left = (int(rng.integers(0, side - size + 1)) for side in image.shape[1:])
    window = image[:, top : top + size, left : left + size]
    return window.flip([d for d in (1, 2) if rng.random() < 0.5])


def compress(image: Tensor, quality: int) -> Tensor:
    """Through JPEG and back.

    Args:
        image: uint8 (3,H,W).
        quality: JPEG quality of Pillow, 1 to 100.

    Returns:
        uint8 (3,H,W).
    """
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def half_size(image: Tensor) -> Tensor:
    """At half its size (antialiased bilinear).

    Args:
        image: uint8 (3,H,W), at least 64 pixels a side.

    Returns:
        uint8 (3,⌊H/2⌋,⌊W/2⌋).
    """
    small = F.interpolate(image[None].float(), scale_factor=0.5, mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).byte()


def augment(image: Tensor, rng: np.random.Generator) -> Tensor:
    """What happens to pictures on their way: half of them JPEG 70 to 98, a third half size.

    Args:
        image: uint8 (3,H,W); one below 64 pixels a side keeps its size.
        rng: Generator of the draws.

    Returns:
        uint8 (3,H,W) or (3,⌊H/2⌋,⌊W/2⌋).
    """
    if rng.random() < 1 / 3 and min(image.shape[1:]) >= 64:
        image = half_size(image)
    return compress(image, int(rng.integers(70, 99))) if rng.random() < 0.5 else image


def train_detector(
    detector: Detector,
    train: LabelledImages,
    validation: LabelledImages,
    *,
    epochs: int = 20,
    crop: int = 96,
    batch_size: int = 32,
    lr: float = 3e-3,
    robust: bool = False,
    seed: int = 0,
    **hooks: Unpack[Hooks],
) -> list[Row]:
    """Train in place with AdamW and a cosine schedule; the epoch of highest validation AUC stays.

    Both classes weigh the same in every batch: an epoch shows each adversarial example once and as
    many photographs, drawn again if they are fewer. Of equal epochs the last one stays.

    Args:
        detector: Detector to train.
        train: Images to learn from, of both classes.
        validation: Images to choose the epoch by, of both classes.
        epochs: Number of epochs, at least 1.
        crop: Side of the random windows, in pixels, at least 32.
        batch_size: Images per step, half of them of each class.
        lr: Learning rate of the first step.
        robust: `augment` before the crop.
        seed: Seed of what an epoch draws, together with its number.
        **hooks: Resumption, checkpoints and progress, see `victims.loop.Hooks`.

    Returns:
        A row per epoch: loss, auc and accuracy (%) on validation.

    Raises:
        ValueError: For bad arguments.
        RuntimeError: If the loss is not finite.
    """
    _check(train, validation, epochs, crop)
    groups = [np.flatnonzero(np.array(train.adversarial) == label) for label in (False, True)]
    half = max(1, batch_size // 2)
    steps = -(-max(map(len, groups)) // half)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    device = next(detector.parameters()).device

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng((seed, epoch))
        orders = [np.resize(rng.permutation(g), steps * half) for g in groups]
        for step in range(steps):
            places = [int(i) for o in orders for i in o[step * half : (step + 1) * half]]
            yield _windows(train, places, crop, robust, rng)

    def run_epoch(epoch: int) -> Row:
        detector.train()
        losses = (
            (_loss(detector, windows.to(device), labels.to(device)), len(labels))
            for windows, labels in batches(epoch)
        )
        return {"loss": take_steps(losses, optimizer, schedule)}

    def validate(_: int) -> Row:
        p = probabilities(detector, validation)
        labels = validation.adversarial
        return {"auc": auc(p, labels), "accuracy": accuracy(p, labels)}

    history = fit(
        detector,
        run_epoch,
        epochs=epochs,
        validate=validate,
        score=lambda row: row["auc"],
        prefer_later=True,
        state={"optimizer": optimizer, "schedule": schedule},
        **hooks,
    )
    detector.eval()
    return history


def _check(train: LabelledImages, validation: LabelledImages, epochs: int, crop: int) -> None:
    check_whole_number("epochs", epochs, 1)
    check_whole_number("crop", crop, MIN_SIDE)
    for name, data in (("train", train), ("validation", validation)):
        examples = sum(data.adversarial)
        if examples in (0, len(data)):
            raise ValueError(
                f"{name} must hold photographs and adversarial examples, got "
                f"{len(data) - examples} and {examples}"
            )


def _windows(
    data: LabelledImages,
    places: Sequence[int],
    crop: int,
    robust: bool,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Random windows, uint8 (N,3,crop,crop), and labels (N,) of the images at these places."""
    windows, labels = [], []
    for place in places:
        image, label = data[place]
        windows.append(crop_and_flip(augment(image, rng) if robust else image, crop, rng))
        labels.append(float(label))
    return torch.stack(windows), torch.tensor(labels)


def _loss(detector: Detector, windows: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(detector(windows.float() / 255), labels)


@torch.no_grad()
def probabilities(
    detector: Detector,
    data: LabelledImages,
    change: Callable[[Tensor], Tensor] | None = None,
) -> NDArray[np.float64]:
    """Probability of each image to be adversarial; images are seen whole, one at a time.

    Args:
        detector: Detector, put into evaluation mode.
        data: The n images; their labels are not used.
        change: Applied to each image, uint8 (3,H,W), before the detector; None: nothing is.

    Returns:
        (n,) in [0,1].
    """
    detector.eval()
    device = next(detector.parameters()).device
    out = []
    for index in range(len(data)):
        image = data[index][0]
        image = image if change is None else change(image)
        out.append(float(detector(image[None].to(device).float() / 255).sigmoid()))
    return np.array(out)


def accuracy(p: ArrayLike, adversarial: Sequence[bool], threshold: float = 0.5) -> float:
    """Mean of the accuracies on both classes (balanced accuracy).

    Args:
        p: (n,) probabilities.
        adversarial: (n,) labels, true for adversarial.
        threshold: A probability above it counts as adversarial.

    Returns:
        Accuracy in %; NaN where a class is missing.
    """
    scores, truth = np.asarray(p), np.asarray(adversarial, bool)
    if truth.all() or not truth.any():
        return math.nan
    hit = (scores > threshold) == truth
    return float(50 * (hit[truth].mean() + hit[~truth].mean()))


def auc(p: ArrayLike, adversarial: Sequence[bool]) -> float:
    """Chance that an adversarial example scores above a photograph, ties half (area under the ROC).

    Args:
        p: (n,) probabilities, or any scores that rise with them.
        adversarial: (n,) labels, true for adversarial.

    Returns:
        AUC in [0,1]; NaN where a class is missing.
    """
    scores, truth = np.asarray(p), np.asarray(adversarial, bool)
    if truth.all() or not truth.any():
        return math.nan
    examples, clean = scores[truth], np.sort(scores[~truth])
    below = np.searchsorted(clean, examples, "left") + np.searchsorted(clean, examples, "right")
    return float(below.mean() / (2 * len(clean)))


def tpr_at_fpr(p: ArrayLike, adversarial: Sequence[bool], fpr: float = 0.01) -> float:
    """Share of examples found at a threshold that at most `fpr` of the photographs pass.

    Args:
        p: (n,) probabilities, or any scores that rise with them.
        adversarial: (n,) labels, true for adversarial.
        fpr: False positive rate, in [0,1).

    Returns:
        True positive rate in %; NaN where a class is missing.
    """
    scores, truth = np.asarray(p), np.asarray(adversarial, bool)
    if truth.all() or not truth.any():
        return math.nan
    clean = np.sort(scores[~truth])[::-1]
    threshold = clean[min(int(fpr * len(clean)), len(clean) - 1)]
    return float(100 * (scores[truth] > threshold).mean())
