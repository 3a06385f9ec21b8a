"""The 14 filters forward and backward, beside the same filters built on kornia.

Both get the same pictures with values and strengths as in training, and both mix with the strength.
`forward` is without a gradient, `both` is forward and backward towards images and strength;
kornia's equalize has no gradient. Below them the other places where our own code stays.
Run: python benchmarks/filters.py [--quick]
"""

import argparse
import math
from collections.abc import Callable

import torch
from _timing import best_of, default_device, hardware
from kornia import color, enhance
from kornia import filters as spatial
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attackers.da3.filters import FILTERS, Filter, clamp_through
from attackers.da3.priors import edge_strength
from defenders.detector import compress

STRENGTH = 0.3


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Kornia's Gaussian with the size and sigma that our filter uses at this resolution."""
    sigma = sigma * min(images.shape[-2:]) / 224
    size = 2 * math.ceil(2 * sigma) + 1
    return spatial.gaussian_blur2d(images, (size, size), (sigma, sigma))


def magnitude(images: Tensor) -> Tensor:
    gradient = spatial.spatial_gradient(images, normalized=False)
    return (torch.sqrt(gradient.square().sum(2) + 0.04**2) - 0.04) / 4


def add(change: Callable[[Tensor], Tensor]) -> Filter:
    """The images plus p times a change of them, as our filters do it."""
    return lambda x, p: clamp_through(torch.addcmul(x, change(x), p.view(-1, 1, 1, 1)))


KORNIA: dict[str, Filter] = {
    "bright": lambda x, p: enhance.adjust_brightness(x, p / 2),
    "contrast": lambda x, p: enhance.adjust_contrast_with_mean_subtraction(x, 3**p),
    "hue": lambda x, p: enhance.adjust_hue(x, math.pi * p),
    "saturation": lambda x, p: enhance.adjust_saturation_with_gray_subtraction(x, 3**p),
    "gamma": lambda x, p: enhance.adjust_gamma(x, 3**p),
    "sobel": add(magnitude),
    "blur": add(lambda x: blurred(x, 1.5) - x),
    "sharp": add(lambda x: 2 * (x - blurred(x, 0.75))),
    "equalize": lambda x, p: enhance.equalize(x),
    "rgb2hsv": add(lambda x: color.rgb_to_hsv(x) - x),
    "rgb2ycbcr": add(lambda x: color.rgb_to_ycbcr(x) - x),
    "rgb2bgr": add(lambda x: color.rgb_to_bgr(x) - x),
    "rgb2hls": add(lambda x: color.rgb_to_hls(x) - x),
    "rgb2yuv": add(lambda x: color.rgb_to_yuv(x) - x),
}


def edges(luma: Tensor) -> tuple[Tensor, Tensor]:
    """What `edge_strength` of the priors computes, by kornia."""
    first = spatial.spatial_gradient(luma, "diff", normalized=False)
    second = spatial.spatial_gradient(luma, "diff", order=2, normalized=False)
    return torch.sqrt(first.square().sum(2) + 1e-6), (second[:, :, 0] + second[:, :, 2]).abs()


@torch.no_grad()
def other_pairs(images: Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """Ours and kornia's for what is no filter, without a gradient."""
    luma = color.rgb_to_grayscale(images)
    rounded = (images.cpu() * 255).byte()
    codec = enhance.JPEGCodecDifferentiable().to(images.device)
    quality = images.new_full((len(images),), 80.0)
    side = images.shape[-1] // 16 * 16
    return {
        "edges of the priors": {
            "veneer": lambda: edge_strength(luma),
            "kornia": lambda: edges(luma),
        },
        "JPEG, quality 80": {
            "veneer": lambda: [compress(image, 80) for image in rounded],
            "kornia": lambda: codec(images[..., :side, :side], jpeg_quality=quality),
        },
    }


def strengths(images: Tensor) -> Tensor:
    return images.new_full((len(images),), STRENGTH)


def forward(apply: Filter, images: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def work() -> None:
        apply(images, strengths(images))

    return work


def both_ways(apply: Filter, images: Tensor) -> Callable[[], None]:
    def work() -> None:
        p = strengths(images).requires_grad_()
        apply(images.detach().requires_grad_(), p).sum().backward()

    return work


def has_gradient(apply: Filter, images: Tensor) -> bool:
    one = images[:1].detach().requires_grad_()
    return apply(one, strengths(one)).requires_grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, 224 pixels only")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rounds, sides = (1, [224]) if arguments.quick else (arguments.rounds, [224, 500])
    assert KORNIA.keys() == FILTERS.keys()
    device, batch = default_device(), arguments.batch
    print(hardware())
    for side in sides:
        images = torch.rand(batch, 3, side, side, device=device)
        table = Table(title=f"images per second, batch {batch}, {side}×{side}")
        for column in ("", "forward", "kornia", "ratio", "both", "kornia", "ratio"):
            table.add_column(column, justify="right" if column else "left")
        for name in FILTERS:
            cells = [name]
            for way in (forward, both_ways):
                works = {"veneer": way(FILTERS[name], images)}
                if way is forward or has_gradient(KORNIA[name], images):
                    works["kornia"] = way(KORNIA[name], images)
                spent = best_of(works, rounds)
                other = spent.get("kornia")
                cells.append(f"{batch / spent['veneer']:.0f}")
                cells.append("no gradient" if other is None else f"{batch / other:.0f}")
                cells.append("" if other is None else f"{other / spent['veneer']:.2f}")
            table.add_row(*cells)
        for name, sides_of_pair in other_pairs(images).items():
            with torch.no_grad():
                spent = best_of(sides_of_pair, rounds)
            ours, other = spent["veneer"], spent["kornia"]
            row = (f"{batch / ours:.0f}", f"{batch / other:.0f}", f"{other / ours:.2f}")
            table.add_row(name, *row, "", "", "")
        Console().print(table)


if __name__ == "__main__":
    main()
