"""Images of an epoch in batches, from memory by index or from a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class ImageStream(Protocol):
    """Images that are read one after the other, each once per epoch, in an order of their own."""

    def __len__(self) -> int:
        """Count the images of an epoch."""

    def batches(
        self, seed: int | None, batch_size: int
    ) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        """Give each image once.

        Args:
            seed: Decides the order; None: the stream's own order, the same in each epoch.
            batch_size: Images in a batch, at least 1; the last one may hold fewer.

        Yields:
            The indices (n,) of a batch and its images, uint8 (3, H, W) each.
        """


def read_batches(
    images: Sequence[Tensor] | Tensor | ImageStream,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
    """Give each image once.

    Args:
        images: uint8 (3, H, W) each: a sequence, a tensor (N, 3, H, W), or a stream.
        batch_size: Images in a batch, at least 1; the last one may hold fewer.
        generator: Draws the order; None: as the images are.

    Returns:
        The indices (n,) of a batch, for what belongs to the images, and the images themselves.
    """
    if isinstance(images, ImageStream):
        drawn = None if generator is None else torch.randint(2**62, (), generator=generator)
        yield from images.batches(None if drawn is None else int(drawn), batch_size)
        return
    count = len(images)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for indices in order.split(batch_size):
        if isinstance(images, Tensor):
            yield indices, list(images[indices])
        else:
            yield indices, [images[i] for i in indices.tolist()]


def read_stacked(
    images: Tensor | ImageStream, batch_size: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give each image once, as `read_batches`, but the images of a batch as one tensor.

    Args:
        images: uint8, all of one size: a tensor (N, 3, H, W), or a stream.
        batch_size: Images in a batch, at least 1; the last one may hold fewer.
        generator: Draws the order; None: as the images are.

    Yields:
        The indices (n,) of a batch, and its images (n, 3, H, W).
    """
    for indices, batch in read_batches(images, batch_size, generator):
        yield indices, torch.stack(list(batch))
