"""Attack Diffusion Transformer: 14 latent spaces, one per filter, behind one call (Fig. 3b)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attackers.da3.filters import FILTER_NAMES, scaled_sigmoid
from attackers.da3.priors import prior, prior_size, shared_features
from victims.checks import check_seed, check_whole_number

PATCH = 32


@dataclass(frozen=True)
class ADTConfig:
    """Shape of the ADT and its ablation switches (Tables V, VI, VIII).

    Args:
        size: Side in pixels at which strengths are regressed, a multiple of 32.
        steps: T of the reverse process, ≥ 1.
        width: Width of the tokens, a multiple of 4 and of 2·heads.
        depth: Transformer blocks, ≥ 1.
        heads: Attention heads, ≥ 1.
        mlp_ratio: Width of the MLPs over that of the tokens, ≥ 1.
        shift: Whether the condition regresses the shift of the adaptive layer norm.
        scale: Whether it regresses the scale of the adaptive layer norm.
        gate: Whether it regresses the gate before the decoder.
        condition: False cuts off time and prior; shift, scale and gate become constants of the
            filter.

    Raises:
        ValueError: If a value is out of its range.
    """

    size: int = 224
    steps: int = 3
    width: int = 256
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 2
    shift: bool = True
    scale: bool = True
    gate: bool = True
    condition: bool = True

    def __post_init__(self) -> None:
        check_whole_number("size", self.size, PATCH)
        for name in ("steps", "width", "depth", "heads", "mlp_ratio"):
            check_whole_number(name, getattr(self, name), 1)
        if self.size % PATCH:
            raise ValueError(f"size must be a multiple of {PATCH}, got {self.size}")
        if self.width % (2 * self.heads) or self.width % 4:
            raise ValueError(f"width must be a multiple of 2·heads and 4, got {self.width}")

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.size // PATCH


def positions(grid: int, width: int) -> Tensor:
    """Sine-cosine position embedding of a square grid of tokens.

    Args:
        grid: Tokens along one side.
        width: Width of the tokens, a multiple of 4.

    Returns:
        (grid², width).
    """
    rates = torch.exp(-math.log(10000) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid).unsqueeze(1) * rates
    table = torch.cat([angles.sin(), angles.cos()], 1)
    rows = table.repeat_interleave(grid, 0)
    return torch.cat([rows, table.repeat(grid, 1)], 1)


def patches(images: Tensor) -> Tensor:
    """Cut images into tokens of 32×32×3 values centred on 0.

    Args:
        images: (N,3,S,S) in [0,1], S a multiple of 32.

    Returns:
        (N, (S/32)², 3072).
    """
    n, c, h, w = images.shape
    x = images.sub(0.5).view(n, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // PATCH) * (w // PATCH), -1)


class ADT(nn.Module):
    """Regresses one strength per filter from an image, the time step and the filter's prior.

    Every weight has a leading dimension of 14: a latent space per filter.

    Args:
        config: Shape of the network, ADTConfig() unless given.
        seed: Seed of the initial weights.

    Attributes:
        run: How the latent spaces are evaluated: "loop" over filters, "stacked" in batched
            products, or "auto", the faster of both on the kind of device according to
            benchmarks/adt.py (loop on a CPU, stacked on a GPU).
        precision: torch.bfloat16 computes the latent spaces in mixed precision, None in float32.
    """

    def __init__(self, config: ADTConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.config = c = ADTConfig() if config is None else config
        if not isinstance(c, ADTConfig):
            raise ValueError(f"config must be an ADTConfig, got {type(config).__name__}")
        self.positions: Tensor
        self.run: Literal["auto", "loop", "stacked"] = "auto"
        self.precision: torch.dtype | None = None
        check_seed(seed)
        shapes = _shapes(c)
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterDict(
            {k: nn.Parameter(_initial(k, shape, generator)) for k, shape in shapes.items()}
        )
        self.register_buffer("positions", positions(c.grid, c.width), persistent=False)

    def forward(
        self, images: Tensor | Sequence[Tensor], t: int, names: Sequence[str] = FILTER_NAMES
    ) -> Tensor:
        """Propose strengths, each filter from its own latent space.

        Args:
            images: (N,3,S,S) in [0,1], one batch for all filters, or one such batch per name.
            t: Time step in 1..steps.
            names: Filters to propose strengths for.

        Returns:
            (len(names), N) in (-1,1).

        Raises:
            ValueError: For a time step out of range or images of another size.
        """
        if not 1 <= t <= self.config.steps:
            raise ValueError(f"t must be in 1..{self.config.steps}, got {t}")
        indices = [FILTER_NAMES.index(name) for name in names]
        batches = [images] * len(indices) if isinstance(images, Tensor) else list(images)
        if any(b.shape[-2:] != (self.config.size,) * 2 for b in batches):
            raise ValueError(
                f"images must be {self.config.size}×{self.config.size}, "
                f"got {tuple(batches[0].shape)}"
            )
        priors = self._priors(images, batches, names)
        kind, precision = batches[0].device.type, self.precision or torch.bfloat16
        with torch.autocast(kind, precision, enabled=self.precision is not None):
            if batches[0].is_cuda if self.run == "auto" else self.run == "stacked":
                return self._stacked(images, batches, priors, t, indices).float()
            return self._looped(images, batches, priors, t, indices).float()

    def _looped(
        self,
        images: Tensor | Sequence[Tensor],
        batches: list[Tensor],
        priors: list[Tensor],
        t: int,
        indices: list[int],
    ) -> Tensor:
        weights = {k: w.unbind(0) for k, w in self.weights.items()}
        shared = patches(images) if isinstance(images, Tensor) else None
        rows = []
        for i, batch, batch_prior in zip(indices, batches, priors, strict=True):
            filter_weights = {k: w[i] for k, w in weights.items()}
            tokens = patches(batch) if shared is None else shared
            rows.append(self._latent(filter_weights, tokens, batch_prior, t))
        return torch.stack(rows)

    def _stacked(
        self,
        images: Tensor | Sequence[Tensor],
        batches: list[Tensor],
        priors: list[Tensor],
        t: int,
        indices: list[int],
    ) -> Tensor:
        all_filters = indices == list(range(len(FILTER_NAMES)))
        weights = {k: w if all_filters else w[indices] for k, w in self.weights.items()}
        if isinstance(images, Tensor):
            tokens = patches(images).expand(len(indices), -1, -1, -1)
        else:
            tokens = patches(torch.cat(batches)).unflatten(0, (len(indices), -1))
        return self._latent(weights, tokens, torch.stack(priors), t)

    def _priors(
        self, images: Tensor | Sequence[Tensor], batches: list[Tensor], names: Sequence[str]
    ) -> list[Tensor]:
        if not self.config.condition:
            empty = batches[0].new_zeros(len(batches[0]), prior_size(self.config.grid))
            return [empty] * len(batches)
        shared = shared_features(images) if isinstance(images, Tensor) else None
        return [
            prior(name, batch, self.config.grid, shared)
            for name, batch in zip(names, batches, strict=True)
        ]

    def _latent(self, w: dict[str, Tensor], tokens: Tensor, priors: Tensor, t: int) -> Tensor:
        """Evaluate one latent space, or several where all arguments carry a leading dimension.

        Args:
            w: Weights by name.
            tokens: (…,N,L,3072).
            priors: (…,N,K).
            t: Time step in 1..steps.

        Returns:
            (…,N) in (-1,1).
        """
        c = self.config
        x = _linear(w, "embed", tokens) + self.positions.to(tokens)
        cond = F.silu(_linear(w, "prior", priors))
        cond = _linear(w, "mix", cond) + w["time"][..., t - 1 : t, :]
        if not c.condition:
            cond = cond * 0 + w["constant"]
        cond = F.silu(cond)
        for block in range(c.depth):
            nu, mu, nu2, mu2 = _linear(w, f"adapt{block}", cond).unsqueeze(-2).chunk(4, dim=-1)
            h = self._norm(x, nu, mu)
            qkv = _linear(w, f"qkv{block}", h).unflatten(-1, (3, c.heads, -1))
            q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))
            # No fused attention: with so few tokens its kernels cost more than they save.
            scores = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
            h = (scores @ v).transpose(-3, -2).flatten(-2)
            x = x + _linear(w, f"out{block}", h)
            h = F.gelu(_linear(w, f"up{block}", self._norm(x, nu2, mu2)), approximate="tanh")
            x = x + _linear(w, f"down{block}", h)
        if c.gate:
            gate = _linear(w, "gate", cond)
            token, feature = gate.split([c.grid**2, c.width], dim=-1)
            # An L×D matrix in (0,2) around 1 that weights areas and features.
            x = x * scaled_sigmoid(1 + token.unsqueeze(-1) + feature.unsqueeze(-2), 0, 2)
        nu, mu = _linear(w, "adapt_out", cond).unsqueeze(-2).chunk(2, dim=-1)
        x = self._norm(x, nu, mu).mean(-2)
        return scaled_sigmoid(_linear(w, "decode", x).squeeze(-1), -1, 1)

    def _norm(self, x: Tensor, nu: Tensor, mu: Tensor) -> Tensor:
        """Adaptive layer norm: scale ν and shift μ regressed from the condition."""
        x = F.layer_norm(x, x.shape[-1:])
        if self.config.scale:
            x = x * (1 + nu)
        return x + mu if self.config.shift else x


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Linear layer x W + b, where W may carry the leading dimension of filters."""
    weight, bias = w[f"{name}_weight"], w[f"{name}_bias"]
    if weight.ndim == 2:
        return torch.addmm(bias, x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    flat = x.flatten(1, -2)
    return torch.baddbmm(bias.unsqueeze(1), flat, weight).unflatten(1, x.shape[1:-1])


def _shapes(c: ADTConfig) -> dict[str, tuple[int, ...]]:
    d = c.width
    layers = {
        "embed": (3 * PATCH * PATCH, d),
        "prior": (prior_size(c.grid), d),
        "mix": (d, d),
        "gate": (d, c.grid * c.grid + d),
        "adapt_out": (d, 2 * d),
        "decode": (d, 1),
    }
    for block in range(c.depth):
        layers |= {
            f"adapt{block}": (d, 4 * d),
            f"qkv{block}": (d, 3 * d),
            f"out{block}": (d, d),
            f"up{block}": (d, c.mlp_ratio * d),
            f"down{block}": (c.mlp_ratio * d, d),
        }
    n = len(FILTER_NAMES)
    shapes: dict[str, tuple[int, ...]] = {"time": (n, c.steps, d), "constant": (n, 1, d)}
    for name, (rows, columns) in layers.items():
        shapes[f"{name}_weight"] = (n, rows, columns)
        shapes[f"{name}_bias"] = (n, columns)
    return shapes


def _initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Initial weights by fan-in; small for modulation and decoder, zero (open) for the gate."""
    if name.endswith("_bias") or name.startswith("gate"):
        return torch.zeros(shape)
    if name in ("time", "constant"):
        return torch.randn(shape, generator=generator) * 0.02
    scale = 0.1 if name.startswith(("decode", "adapt")) else 1.0
    return torch.randn(shape, generator=generator) * scale / math.sqrt(shape[-2])
