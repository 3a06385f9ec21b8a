"""DA3Attacker: 14 filters, steered by the ADT and coordinated into one adversarial example."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attackers.da3.adt import ADT, ADTConfig
from attackers.da3.coordinator import Coordinator
from attackers.da3.filters import FILTERS, clamp_through, scaled_sigmoid
from attackers.objectives import Objective
from attackers.projections import inference_chunk_size, project_to_min_psnr, quantize
from victims.base import Victim

MAX_REFINE = 1 + len(FILTERS)
# Weight of a filter alone: its whole strength oversteps, a small share is lost in the rounding.
SINGLE_FILTER_WEIGHT = 0.15


@dataclass(frozen=True)
class Plan:
    """What to do to N pictures: weights (N,14) that sum to 1, strengths (N,14) in (-1,1)."""

    weights: Tensor
    strengths: Tensor


@dataclass(frozen=True)
class Examples:
    """Finished adversarial examples, as they will be stored.

    images: (N,3,H,W) on the 8-bit grid. plan: what made them. scores_clean, scores: (N,) of the
    victim on the clean images and on `images`. line: (N,) fraction of the way from x to what the
    plan makes that was kept. queries: victim calls per image.
    """

    images: Tensor
    plan: Plan
    scores_clean: Tensor
    scores: Tensor
    line: Tensor
    queries: int


def combine(images: Tensor, plan: Plan) -> Tensor:
    """Formula 4: y = Σ w_i F_i(x; s_i), clamped. images: (N,3,H,W) of any size."""
    few = inference_chunk_size(images)
    if len(images) > few and not torch.is_grad_enabled():
        parts = zip(
            images.split(few), plan.weights.split(few), plan.strengths.split(few), strict=True
        )
        return torch.cat([combine(x, Plan(w, s)) for x, w, s in parts])
    total = torch.zeros_like(images)
    acting = [True] * len(FILTERS)
    if not torch.is_grad_enabled():  # a filter without strength is the identity to the bit
        acting = plan.strengths.ne(0).any(0).tolist()
    for i, apply in enumerate(FILTERS.values()):
        y = apply(images, plan.strengths[:, i]) if acting[i] else images
        total = torch.addcmul(total, y, plan.weights[:, i].view(-1, 1, 1, 1))
    return clamp_through(total)


def single_filter_plan(plan: Plan, rank: int) -> Plan:
    """One filter of each picture's plan, with weight ALONE: that with the rank-th largest share.

    A filter's share of the change is its weight times its strength; rank 0 is the largest.
    """
    order = (plan.weights * plan.strengths.abs()).argsort(dim=1, descending=True, stable=True)
    chosen = order[:, rank : rank + 1]
    strengths = torch.zeros_like(plan.strengths)
    rest = (1 - SINGLE_FILTER_WEIGHT) / (plan.weights.shape[1] - 1)  # of filters that do nothing
    return Plan(
        torch.full_like(plan.weights, rest).scatter(1, chosen, SINGLE_FILTER_WEIGHT),
        strengths.scatter(1, chosen, plan.strengths.gather(1, chosen)),
    )


class DA3Attacker(nn.Module):
    """Plans and makes adversarial examples for one victim.

    The reverse process keeps one strength per filter and refines it over T steps: at step t the
    latent space sees F_i(x; p_i) and proposes a change of p_i. Strengths add where repeated
    filtering would lose what each step clamps; so a record's 14 weights and 14 strengths say
    all, and at full resolution each filter acts once.

    The first stage learns to restore, the second to deceive: it starts from a tenth of the
    restoring strength (`strength_scale`) and learns what this victim likes in every picture
    (`strength_bias`).
    Strong filters from the first step lead it to where scores change without order.
    """

    def __init__(self, config: ADTConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.adt = ADT(config, seed=seed)
        self.coordinator = Coordinator(seed=seed)
        self.strength_scale = nn.Parameter(torch.full((len(FILTERS),), 0.1))
        self.strength_bias = nn.Parameter(torch.zeros(len(FILTERS)))

    def small(self, images: Tensor) -> Tensor:
        """The images at the size at which strengths are regressed."""
        size = (self.adt.config.size,) * 2
        if images.shape[-2:] == size:
            return images
        # clamp: antialiasing may overshoot by a rounding
        return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)

    def reverse(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """T reverse steps of each filter from small images.

        images: (N,3,S,S). Returns: strengths (14,N) and the 14 results y_i (N,3,S,S).
        """
        p = images.new_zeros(len(FILTERS), len(images))
        results: list[Tensor] = []
        for t in range(self.adt.config.steps, 0, -1):
            p = scaled_sigmoid(p + self.adt(results or images, t), -1, 1)
            results = [f(images, p[i]) for i, f in enumerate(FILTERS.values())]
        return p, results

    def forward(self, images: Tensor) -> tuple[Tensor, Plan]:
        """Free example and plan, differentiable: for training.

        images: (N,3,H,W). Strengths and weights are found at the small size and act at H×W.
        Returns: y (N,3,H,W) and the plan.
        """
        small = self.small(images)
        p, results = self.reverse(small)
        weights = self.coordinator(small, torch.stack(results), p)
        plan = Plan(weights, scaled_sigmoid(self.strength_scale * p.T + self.strength_bias, -1, 1))
        return combine(images, plan), plan


@torch.no_grad()
def generate(
    attacker: DA3Attacker,
    victim: Victim,
    images: Tensor,
    *,
    objective: Objective,
    refine: int = 0,
) -> Examples:
    """Make the adversarial examples of a batch at its own resolution.

    images: (N,3,H,W) in [0,1] on the 8-bit grid. refine: 0, or k ≤ 15: of y and what the k-1
    filters with the largest shares in it do alone (`single_filter_plan`), keep what the victim
    scores best; k
    queries per image. The design takes k points between x and y; where y fails they mostly fail as
    well, as the score falls along all of the line, while some filter alone still raises it.
    """
    if not 0 <= refine <= MAX_REFINE:
        raise ValueError(f"refine must be in [0, {MAX_REFINE}], got {refine}")
    free, plan = attacker(images)
    end, kept = _finish(images, free, objective)
    clean, best = victim(images), victim(end)
    sign = 1 if objective.direction == "raise" else -1
    weights, strengths = plan.weights, plan.strengths
    for rank in range(refine - 1):
        other = single_filter_plan(plan, rank)
        point, fraction = _finish(images, combine(images, other), objective)
        score = victim(point)
        better = sign * score > sign * best
        best = torch.where(better, score, best)
        kept = torch.where(better, fraction, kept)
        end = torch.where(better.view(-1, 1, 1, 1), point, end)
        weights = torch.where(better.view(-1, 1), other.weights, weights)
        strengths = torch.where(better.view(-1, 1), other.strengths, strengths)
    return Examples(end, Plan(weights, strengths), clean, best, kept, max(1, refine))


def _finish(images: Tensor, free: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """The example as it may be stored, and the kept fraction (N,) of the line from x to `free`."""
    if objective.min_psnr is None:
        return quantize(free), images.new_ones(len(images))
    return project_to_min_psnr(images, free, objective.min_psnr)
