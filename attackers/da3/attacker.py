"""DA3Attacker: 14 filters with strengths from the ADT and weights from the coordinator."""

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
# At full weight a single filter overshoots, at a small one its change is lost in the rounding.
SINGLE_FILTER_WEIGHT = 0.15


@dataclass(frozen=True)
class Plan:
    """Weights and strengths of the filters for N images.

    Attributes:
        weights: (N,14), each row sums to 1.
        strengths: (N,14) in (-1,1).
    """

    weights: Tensor
    strengths: Tensor


@dataclass(frozen=True)
class Examples:
    """Finished adversarial examples, as they will be stored.

    Attributes:
        images: (N,3,H,W) on the 8-bit grid.
        plan: Weights and strengths that the images were computed with.
        scores_clean: (N,) scores of the clean images, in the victim's unit.
        scores: (N,) scores of `images`, in the victim's unit.
        fraction: (N,) in [0,1], how far from the clean image towards the output of the plan
            the example lies.
        queries: Victim calls per image.
    """

    images: Tensor
    plan: Plan
    scores_clean: Tensor
    scores: Tensor
    fraction: Tensor
    queries: int


def combine(images: Tensor, plan: Plan) -> Tensor:
    """Apply a plan: y = Σ w_i F_i(x; s_i), clamped (formula 4).

    Args:
        images: Clean images x, (N,3,H,W) in [0,1], of any size.
        plan: Weights and strengths of the N images.

    Returns:
        (N,3,H,W) in [0,1].
    """
    size = inference_chunk_size(images)
    if len(images) > size and not torch.is_grad_enabled():
        tensors = (images, plan.weights, plan.strengths)
        chunks = zip(*(tensor.split(size) for tensor in tensors), strict=True)
        return torch.cat([combine(x, Plan(w, s)) for x, w, s in chunks])
    total = torch.zeros_like(images)
    active = [True] * len(FILTERS)
    if not torch.is_grad_enabled():  # a filter without strength is the identity to the bit
        active = plan.strengths.ne(0).any(0).tolist()
    for i, apply in enumerate(FILTERS.values()):
        y = apply(images, plan.strengths[:, i]) if active[i] else images
        total = torch.addcmul(total, y, plan.weights[:, i].view(-1, 1, 1, 1))
    return clamp_through(total)


def single_filter_plan(plan: Plan, rank: int) -> Plan:
    """Reduce the plan of each image to one filter, with SINGLE_FILTER_WEIGHT.

    Args:
        plan: Weights and strengths of N images.
        rank: Which filter, in descending order of weight times absolute strength; from 0.

    Returns:
        A plan in which all other filters have strength 0 and share the remaining weight.
    """
    order = (plan.weights * plan.strengths.abs()).argsort(dim=1, descending=True, stable=True)
    chosen = order[:, rank : rank + 1]
    strengths = torch.zeros_like(plan.strengths)
    idle_weight = (1 - SINGLE_FILTER_WEIGHT) / (plan.weights.shape[1] - 1)
    return Plan(
        torch.full_like(plan.weights, idle_weight).scatter(1, chosen, SINGLE_FILTER_WEIGHT),
        strengths.scatter(1, chosen, plan.strengths.gather(1, chosen)),
    )


class DA3Attacker(nn.Module):
    """Computes plans of adversarial examples against one victim.

    The reverse process keeps one strength per filter and refines it over T steps: at step t the
    latent space sees F_i(x; p_i) and proposes a change of p_i. Strengths are added up, as repeated
    filtering would lose what each step clamps; so 14 weights and 14 strengths describe an example
    completely, and at full resolution each filter is applied once.

    The first stage learns to restore, the second to deceive. The second starts from a tenth of the
    restoring strength (`strength_scale`), since with strong filters from the first step on it ends
    where scores change erratically, and learns an offset that raises the scores of all images
    (`strength_bias`).

    Args:
        config: Shape of the ADT, ADTConfig() unless given.
        seed: Seed of the initial weights.
    """

    def __init__(self, config: ADTConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.adt = ADT(config, seed=seed)
        self.coordinator = Coordinator(seed=seed)
        self.strength_scale = nn.Parameter(torch.full((len(FILTERS),), 0.1))
        self.strength_bias = nn.Parameter(torch.zeros(len(FILTERS)))

    def downscale(self, images: Tensor) -> Tensor:
        """Resize images to the size at which strengths are regressed.

        Args:
            images: (N,3,H,W) in [0,1].

        Returns:
            (N,3,S,S) in [0,1].
        """
        size = (self.adt.config.size,) * 2
        if images.shape[-2:] == size:
            return images
        # clamp: antialiasing may overshoot by a rounding
        return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)

    def reverse(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the T reverse steps of each filter.

        Args:
            images: (N,3,S,S) in [0,1].

        Returns:
            Strengths (14,N) and the 14 filtered images y_i (N,3,S,S).
        """
        p = images.new_zeros(len(FILTERS), len(images))
        results: list[Tensor] = []
        for t in range(self.adt.config.steps, 0, -1):
            p = scaled_sigmoid(p + self.adt(results or images, t), -1, 1)
            results = [f(images, p[i]) for i, f in enumerate(FILTERS.values())]
        return p, results

    def forward(self, images: Tensor) -> tuple[Tensor, Plan]:
        """Compute unconstrained examples and their plan, differentiably.

        Strengths and weights are regressed at the ADT's size and applied at H×W.

        Args:
            images: (N,3,H,W) in [0,1].

        Returns:
            Examples (N,3,H,W) and the plan.
        """
        small = self.downscale(images)
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
    """Generate the adversarial examples of a batch at its own resolution.

    With refine = k the victim scores k candidates per image, the example y and those of the k-1
    filters with the largest shares in it alone (`single_filter_plan`), and the best one is taken.
    Candidates between x and y would not help: where y fails they mostly fail as well, as the score
    falls all the way from x to y, while a single filter may still raise it.

    Args:
        attacker: Trained against this victim.
        victim: Model under attack.
        images: (N,3,H,W) in [0,1] on the 8-bit grid.
        objective: Direction of the attack and bound of the PSNR.
        refine: Candidates k per image, at most 15; 0 takes y without a choice.

    Returns:
        The examples, with max(1, refine) queries per image.

    Raises:
        ValueError: If refine is out of range.
    """
    if not 0 <= refine <= MAX_REFINE:
        raise ValueError(f"refine must be in [0, {MAX_REFINE}], got {refine}")
    unconstrained, plan = attacker(images)
    examples, fraction = _project(images, unconstrained, objective)
    clean, best = victim(images), victim(examples)
    sign = 1 if objective.direction == "raise" else -1
    weights, strengths = plan.weights, plan.strengths
    for rank in range(refine - 1):
        single = single_filter_plan(plan, rank)
        candidate, candidate_fraction = _project(images, combine(images, single), objective)
        score = victim(candidate)
        better = sign * score > sign * best
        best = torch.where(better, score, best)
        fraction = torch.where(better, candidate_fraction, fraction)
        examples = torch.where(better.view(-1, 1, 1, 1), candidate, examples)
        weights = torch.where(better.view(-1, 1), single.weights, weights)
        strengths = torch.where(better.view(-1, 1), single.strengths, strengths)
    return Examples(examples, Plan(weights, strengths), clean, best, fraction, max(1, refine))


def _project(images: Tensor, examples: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Examples on the 8-bit grid within the objective's PSNR, and their fractions (N,)."""
    if objective.min_psnr is None:
        return quantize(examples), images.new_ones(len(images))
    return project_to_min_psnr(images, examples, objective.min_psnr)
