import pytest
import torch

from attackers.da3.coordinator import Coordinator
from attackers.da3.filters import FILTERS


def inputs(n=3, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, side, side, generator=generator)
    strengths = torch.rand(14, n, generator=generator) * 2 - 1
    results = [f(images, p) for f, p in zip(FILTERS.values(), strengths, strict=True)]
    return images, torch.stack(results), strengths


def woken(seed=0):
    coordinator = Coordinator(hidden=8, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for weight in coordinator.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    return coordinator


def test_starts_at_uniform_weights():
    weights = Coordinator()(*inputs())
    torch.testing.assert_close(weights, torch.full((3, 14), 1 / 14))


@pytest.mark.parametrize("side", [4, 16, 33])
def test_weights_are_a_distribution(side):
    weights = woken()(*inputs(side=side))
    assert weights.shape == (3, 14)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert not torch.allclose(weights[0], weights[1])


def test_an_image_does_not_depend_on_its_batch():
    coordinator = woken()
    images, results, strengths = inputs()
    together = coordinator(images, results, strengths)
    for i in range(3):
        one = slice(i, i + 1)
        alone = coordinator(images[one], results[:, one], strengths[:, one])
        torch.testing.assert_close(alone[0], together[i])


def test_images_results_and_strengths_all_count():
    images, results, strengths = (x.requires_grad_() for x in inputs())
    weights = woken()(images, results, strengths)
    gradients = torch.autograd.grad(weights[:, 0].sum(), (images, results, strengths))
    assert (gradients[0].flatten(1).abs().amax(1) > 0).all()
    assert (gradients[1].flatten(2).abs().amax(2) > 0).all(), "each filter's result"
    assert (gradients[2] != 0).all()


def test_seeds_reproduce_and_leave_the_global_state_alone():
    before = torch.random.get_rng_state()
    first, again, other = (Coordinator(seed=s).each.weight for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
