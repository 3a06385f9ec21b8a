"""The 14 filters forward and backward, beside the kornia functions of the same kind.

Both get the same pictures with values and strengths as in training. Where kornia has no
parameter, ours has one all the same. `forward` is without a gradient, `both` is forward and
backward towards the images and, for ours, the strength; kornia's equalize has no gradient.
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

from attackers.da3.filters import FILTERS

STRENGTH = 0.3
Apply = Callable[[Tensor], Tensor]


def kernel(images: Tensor, sigma: float) -> tuple[tuple[int, int], tuple[float, float]]:
    """Size and sigma of the Gaussian that our filter uses at this resolution."""
    sigma = sigma * min(images.shape[-2:]) / 224
    size = 2 * math.ceil(2 * sigma) + 1
    return (size, size), (sigma, sigma)


KORNIA: dict[str, Apply] = {
    "bright": lambda x: enhance.adjust_brightness(x, STRENGTH / 2),
    "contrast": lambda x: enhance.adjust_contrast(x, 3**STRENGTH),
    "hue": lambda x: enhance.adjust_hue(x, math.pi * STRENGTH),
    "saturation": lambda x: enhance.adjust_saturation(x, 3**STRENGTH),
    "gamma": lambda x: enhance.adjust_gamma(x, 3**STRENGTH),
    "sobel": spatial.sobel,
    "blur": lambda x: spatial.gaussian_blur2d(x, *kernel(x, 1.5)),
    "sharp": lambda x: spatial.unsharp_mask(x, *kernel(x, 0.75)),
    "equalize": enhance.equalize,
    "rgb2hsv": color.rgb_to_hsv,
    "rgb2ycbcr": color.rgb_to_ycbcr,
    "rgb2bgr": color.rgb_to_bgr,
    "rgb2hls": color.rgb_to_hls,
    "rgb2yuv": color.rgb_to_yuv,
}


def forward(apply: Apply, images: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def work() -> None:
        apply(images)

    return work


def both_ways(apply: Apply, images: Tensor) -> Callable[[], None]:
    def work() -> None:
        apply(images.detach().requires_grad_()).sum().backward()

    return work


def ours(name: str, with_strength: bool) -> Apply:
    def apply(images: Tensor) -> Tensor:
        p = images.new_full((len(images),), STRENGTH).requires_grad_(with_strength)
        return FILTERS[name](images, p)

    return apply


def has_gradient(apply: Apply, images: Tensor) -> bool:
    return apply(images[:1].detach().requires_grad_()).requires_grad


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
                works = {"veneer": way(ours(name, way is both_ways), images)}
                if way is forward or has_gradient(KORNIA[name], images):
                    works["kornia"] = way(KORNIA[name], images)
                spent = best_of(works, rounds)
                other = spent.get("kornia")
                cells.append(f"{batch / spent['veneer']:.0f}")
                cells.append("no gradient" if other is None else f"{batch / other:.0f}")
                cells.append("" if other is None else f"{other / spent['veneer']:.2f}")
            table.add_row(*cells)
        Console().print(table)


if __name__ == "__main__":
    main()
