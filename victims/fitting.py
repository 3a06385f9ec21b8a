"""What training updates: the whole victim on images, or its head on features computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from victims.base import freeze_batch_norm_stats
from victims.batches import ImageStream, read_stacked
from victims.nima import Nima

Batches = Iterator[tuple[Tensor, Tensor, Tensor]]


class ScoredImages(Protocol):
    """Items (image uint8 (3, H, W), mos, std of the opinions), all images of one size.

    `torch.utils.data.TensorDataset(images, mos, std)` is one; a class that reads files is another.
    """

    def __len__(self) -> int:
        """Count the items."""

    def __getitem__(self, index: int, /) -> tuple[Any, ...]:
        """Return one item."""


@dataclass(frozen=True)
class ScoredStream:
    """Images of one size that arrive in batches, with their opinions.

    Attributes:
        images: uint8 (3, H, W) each.
        mos: Mean opinions (N,), by the index of an image.
        std: Their standard deviations (N,).
    """

    images: ImageStream
    mos: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int, generator: torch.Generator | None) -> Batches:
        """Give each image once, with its opinions.

        Args:
            batch_size: Images in a batch, at least 1; the last one may hold fewer.
            generator: Draws the order; None: that of the stream.

        Yields:
            Images uint8 (n, 3, H, W), mos and std (n,) of each batch.
        """
        for indices, images in read_stacked(self.images, batch_size, generator):
            yield images, self.mos[indices], self.std[indices]


ScoredDataset = ScoredImages | ScoredStream


class FullTask:
    """Fine-tunes backbone and head on images.

    Args:
        model: Victim to train, in place.
        train: Images with opinions to learn from.
        validation: Images with opinions to choose the epoch by.
        batch_size: Images per step, at least 1.
        num_workers: Processes that read images; a `ScoredStream` has its own.
        flip: Mirror each training image with probability 1/2.

    Attributes:
        crop: Least side of a random crop, as a share of the side, in (0, 1]; 1 does not crop.
        freeze_batchnorm: Keep the running statistics of batch norms.
    """

    crop = 1.0
    freeze_batchnorm = True

    def __init__(
        self,
        model: Nima,
        train: ScoredDataset,
        validation: ScoredDataset,
        batch_size: int,
        num_workers: int,
        flip: bool,
    ) -> None:
        self.model, self.trained = model, model
        self.train, self.validation = train, validation
        self.batch_size, self.num_workers, self.flip = batch_size, num_workers, flip
        self.size = len(train)

    def parameters(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """Unfreeze the model, and group its parameters for the optimizer.

        Args:
            lr: Learning rate of the backbone.
            head_lr: Learning rate of the head.

        Returns:
            Two groups with their learning rates: backbone, head.
        """
        self.model.requires_grad_(True)
        return [
            {"params": list(self.model.backbone.parameters()), "lr": lr},
            {"params": list(self.model.head.parameters()), "lr": head_lr},
        ]

    def start_epoch(self) -> None:
        """Go to training mode."""
        self.model.train()
        if self.freeze_batchnorm:
            freeze_batch_norm_stats(self.model)

    def batches(self, generator: torch.Generator) -> Batches:
        """One epoch, each training image once, in the order that the generator draws.

        Args:
            generator: Draws order, flips and crops.

        Yields:
            Logits (n,10) or (n,1) of the head, with gradient; mos and std (n,) of the opinions.
        """
        device = self.model.device
        for images, mos, std in self.load(self.train, generator):
            images = _augment(images, self.flip, self.crop, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = self.model.head(self.model.features(images))
            yield logits.float(), mos, std

    def validate(self) -> tuple[Any, Any]:
        """Scores and mos of the validation split, as two arrays (N,)."""
        scores, opinions = [], []
        self.model.eval()
        with torch.no_grad():
            for images, mos, _ in self.load(self.validation, None):
                scores.append(self.model(images).cpu())
                opinions.append(mos.cpu())
        return torch.cat(scores).numpy(), torch.cat(opinions).numpy()

    def finish(self) -> None:
        """Nothing to put back."""

    def load(self, data: Any, generator: torch.Generator | None) -> Batches:
        """Batches of images with opinions, on the model's device.

        Args:
            data: `ScoredImages` or a `ScoredStream`.
            generator: Draws the order; None: not shuffled.

        Yields:
            Images (n, 3, H, W) in [0, 1], mos and std (n,), all float32.
        """
        device = self.model.device
        loader: Iterable[tuple[Tensor, Tensor, Tensor]]
        if isinstance(data, ScoredStream):
            loader = data.batches(self.batch_size, generator)
        else:
            loader = DataLoader(
                data,
                self.batch_size,
                shuffle=generator is not None,
                generator=generator,
                num_workers=self.num_workers,
                pin_memory=device.type == "cuda",
            )
        for images, mos, std in loader:
            images = images.to(device, non_blocking=True).float() / 255
            yield images, mos.to(device).float(), std.to(device).float()


class HeadTask:
    """Trains the head on features of the frozen backbone, computed once.

    The head learns on standardised features, which condition the problem far better; `finish`
    folds mean and deviation into its linear layer.

    Args:
        model: Victim whose head is trained, in place.
        train: Images with opinions to learn from.
        validation: Images with opinions to choose the epoch by.
        batch_size: Features per step, at least 1.
        num_workers: Processes that read images; a `ScoredStream` has its own.
        flip: Compute features of the mirror images too; each step draws one of both.
        one_deviation: Divide all features by the same number, which leaves a penalty on the
            weights what it is in ridge regression.
    """

    def __init__(
        self,
        model: Nima,
        train: ScoredDataset,
        validation: ScoredDataset,
        batch_size: int,
        num_workers: int,
        flip: bool,
        *,
        one_deviation: bool = False,
    ) -> None:
        self.model, self.trained = model, model.head
        self.batch_size, self.flip, self.size = batch_size, flip, len(train)
        images = FullTask(model, train, validation, batch_size, num_workers, flip)
        self.views, self.mos, self.std = _features(images, train, flip)
        features, self.validation_mos, _ = _features(images, validation, False)
        self.mean = self.views[0].mean(dim=0)
        self.deviation = self.views[0].std(dim=0, correction=0) + 1e-6
        if one_deviation:
            self.deviation = self.deviation.mean().expand_as(self.deviation)
        self.views = (self.views - self.mean) / self.deviation
        self.validation = (features[0] - self.mean) / self.deviation
        linear = model.head.linear
        with torch.no_grad():
            linear.bias.add_(linear.weight @ self.mean)
            linear.weight.mul_(self.deviation)

    def parameters(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """Unfreeze the head, and group its parameters for the optimizer.

        Args:
            lr: Not used, as the backbone is frozen; `FullTask` takes the same arguments.
            head_lr: Learning rate of the head.

        Returns:
            One group with its learning rate: the head.
        """
        self.model.head.requires_grad_(True)
        return [{"params": list(self.model.head.parameters()), "lr": head_lr}]

    def start_epoch(self) -> None:
        """Go to training mode."""
        self.model.head.train()

    def batches(self, generator: torch.Generator) -> Batches:
        """One epoch, each training image once, in the order that the generator draws.

        Args:
            generator: Draws order and flips.

        Yields:
            Logits (n,10) or (n,1) of the head, with gradient; mos and std (n,) of the opinions.
        """
        for part in torch.randperm(self.size, generator=generator).split(self.batch_size):
            view = torch.randint(len(self.views), (len(part),), generator=generator)
            part, view = part.to(self.mos.device), view.to(self.mos.device)
            yield self.model.head(self.views[view, part]), self.mos[part], self.std[part]

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, mos, std of all views of all images, without dropout."""
        self.model.head.eval()
        logits = self.model.head(self.views.flatten(0, 1))
        views = len(self.views)
        return logits, self.mos.repeat(views), self.std.repeat(views)

    def validate(self) -> tuple[Any, Any]:
        """Scores and mos of the validation split, as two arrays (N,)."""
        self.model.head.eval()
        with torch.no_grad():
            scores = self.model.head.scores(self.model.head(self.validation))
        return scores.cpu().numpy(), self.validation_mos.cpu().numpy()

    def finish(self) -> None:
        """Fold the standardisation into the linear layer."""
        linear = self.model.head.linear
        with torch.no_grad():
            linear.weight.div_(self.deviation)
            linear.bias.sub_(linear.weight @ self.mean)


@torch.no_grad()
def _features(task: FullTask, data: ScoredDataset, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Features (views, N, C) of the images and of their mirror images, with mos and std (N,)."""
    parts = []
    for images, mos, std in task.load(data, None):
        views = (images, images.flip(3)) if flip else (images,)
        parts.append((torch.stack([task.model.features(view) for view in views]), mos, std))
    features, opinions, deviations = zip(*parts, strict=True)
    return torch.cat(features, dim=1), torch.cat(opinions), torch.cat(deviations)


def _augment(images: Tensor, flip: bool, crop: float, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability 1/2, and cut one random window from the batch."""
    if flip:
        chosen = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)
    if crop < 1:
        # One window for the whole batch: its images keep one size, and the victim resizes them.
        share, top, left = torch.rand(3, generator=generator).tolist()
        share = crop + (1 - crop) * share
        height, width = (max(1, round(share * side)) for side in images.shape[2:])
        top, left = (
            round(place * (side - kept))
            for place, side, kept in zip(
                (top, left), images.shape[2:], (height, width), strict=True
            )
        )
        images = images[:, :, top : top + height, left : left + width]
    return images
