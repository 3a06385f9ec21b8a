"""Injection by one constant tile against the block DCT: seconds and largest difference.

Twenty pictures of 500×500, padded to whole blocks for the transform, as BAIQA's code does. The tile
is added into a new batch, and into the pictures themselves (`out=images`), which the transform
cannot do: it needs room for its blocks. Freed memory is kept for both sides, as in every command of
veneer.
"""

import argparse

import torch
from _timing import best_of, default_device, hardware
from torch import Tensor
from torch.nn import functional

from attackers.backdoor.dct import BLOCK, TO_RGB, band_mask, dct_matrix
from attackers.backdoor.registry import ftrojan
from attackers.backdoor.trigger import Trigger
from pipelines.execution.memory import keep_heap


def blocks(images: Tensor) -> Tensor:
    """(N,3,H,W) with whole blocks to (N,3,rows,columns,16,16)."""
    return images.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)


def by_blocks(images: Tensor, coefficients: Tensor, alpha: float) -> Tensor:
    """RGB to YCbCr, batched block DCT, add, and all the way back."""
    height, width = images.shape[2:]
    padded = functional.pad(images * 255, (0, -width % BLOCK, 0, -height % BLOCK))
    to_rgb = torch.tensor(TO_RGB).to(images)
    planes = torch.einsum("cr,nrhw->nchw", to_rgb.inverse(), padded)
    matrix = dct_matrix().to(images)
    spectrum = matrix @ blocks(planes) @ matrix.T + alpha * coefficients[:, None, None]
    back = matrix.T @ spectrum @ matrix
    whole = back.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)
    rgb = torch.einsum("rc,nchw->nrhw", to_rgb, whole)[:, :, :height, :width]
    return (rgb / 255).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_heap()
    generator = torch.Generator().manual_seed(0)
    device = default_device()
    shape = (arguments.images, 3, arguments.size, arguments.size)
    images = torch.rand(shape, generator=generator).to(device)
    owned = images.clone()
    drawn = torch.randn(3, BLOCK, BLOCK, generator=generator) * 9.4 * band_mask("mid")
    print(hardware())
    print(
        "| trigger | block DCT s | new batch s | times | in place s | times | copy s | difference |"
    )
    print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    for name, trigger in (("64 frequencies", Trigger(drawn)), ("FTrojan", ftrojan())):
        there = trigger.coefficients.to(device)
        sides = {
            "blocks": lambda there=there: by_blocks(images, there, 0.5),
            "new": lambda trigger=trigger: trigger(images, 0.5),
            "in place": lambda trigger=trigger: trigger(owned, 0.5, out=owned),
            "copy": images.clone,  # what no injection into a new batch can be faster than
        }
        seconds = best_of(sides, arguments.rounds)
        error = float((by_blocks(images, there, 0.5) - trigger(images, 0.5)).abs().max())
        new, in_place = seconds["new"], seconds["in place"]
        print(
            f"| {name} | {seconds['blocks']:.3f} | {new:.4f} | {seconds['blocks'] / new:.1f} "
            f"| {in_place:.4f} | {seconds['blocks'] / in_place:.1f} "
            f"| {seconds['copy']:.4f} | {error:.1e} |"
        )


if __name__ == "__main__":
    main()
