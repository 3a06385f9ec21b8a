import pytest
import torch

from attackers.baselines.pgd import pgd
from victims.base import ScoreOnly, ScoreScale
from victims.nima import Nima
from victims.toy import BrightnessVictim, LinearVictim

SCALE = ScoreScale.of(0, 10)
EPS = 8 / 255


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(
    "victim",
    [LinearVictim(SCALE), BrightnessVictim(SCALE), BrightnessVictim(SCALE, peak=0.51)],
    ids=["linear", "brightness", "brightness within reach"],
)
def test_reaches_the_optimum(victim, direction, seed, images):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    adversarial = pgd(victim, images, objective=direction, eps=EPS, steps=10, generator=generator)
    optimum = victim.optimum(images, EPS, direction)
    clean = victim(images)
    reached, possible = victim(adversarial) - clean, optimum - clean
    # Within 1.25 times of the solution, or a ten-thousandth of the scale. Lowering the score of a
    # victim at its very peak, the gradient may choose the nearer of the two ends.
    if victim.name == "toy-linear":
        torch.testing.assert_close(reached, possible, rtol=1e-4, atol=1e-5)
    assert (reached.abs() * 1.25 >= possible.abs() - 1e-3).all()


def test_stays_in_the_ball_and_leaves_its_input_alone(images):
    images[0], images[1] = 0, 1
    before = images.clone()
    for eps in (EPS, 1):
        for objective in ("raise", "lower"):
            adversarial = pgd(
                LinearVictim(SCALE),
                images,
                objective=objective,
                eps=eps,
                steps=3,
                generator=torch.Generator().manual_seed(0),
            )
            assert ((adversarial >= 0) & (adversarial <= 1)).all()
            assert (adversarial - images).abs().max() <= eps + 1e-6
            assert not adversarial.requires_grad
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_fools_a_network_more_than_noise_does(images):
    torch.manual_seed(0)
    victim = Nima(SCALE, "test_efficientnet", input_size=32)
    clean = victim(images)
    noise = EPS * torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).sign()
    raised = victim(pgd(victim, images, objective="raise", eps=EPS, steps=5))
    lowered = victim(pgd(victim, images, objective="lower", eps=EPS, steps=5))
    by_noise = (victim((images + noise).clamp(0, 1)) - clean).abs()
    assert (raised - clean > 2 * by_noise).all()
    assert (clean - lowered > 2 * by_noise).all()


@pytest.mark.parametrize("seed", [None, 1])
def test_an_image_does_not_depend_on_its_batch(images, seed):
    def attack(batch):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return pgd(
            LinearVictim(SCALE), batch, objective="raise", eps=EPS, steps=2, generator=generator
        )

    alone = torch.cat([attack(image[None]) for image in images])
    torch.testing.assert_close(attack(images), alone)


def test_objective_may_be_a_function(images):
    """Ends at the clean score plus one, which neither end of the ball has."""

    def one_more(scores, clean):
        return -(scores - clean - 1).abs()

    victim = LinearVictim(SCALE)
    adversarial = pgd(victim, images, objective=one_more, eps=0.3, steps=60, step_size=0.005)
    torch.testing.assert_close(victim(adversarial), victim(images) + 1, rtol=0, atol=10 * 0.005)


def test_never_returns_worse_than_the_start(images):
    victim = BrightnessVictim(SCALE, peak=0.5)
    adversarial = pgd(victim, images, objective="raise", eps=1, steps=1, step_size=1)
    assert (victim(adversarial) >= victim(images)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 8}, r"eps must be in \(0, 1\], got 8 \(did you mean 8/255\?\)"),
        ({"eps": 0}, r"eps must be in \(0, 1\], got 0$"),
        ({"eps": float("nan")}, r"eps must be in \(0, 1\], got nan$"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0}, r"step_size must be in \(0, 1\], got 0"),
        ({"objective": "up"}, "objective must be 'raise', 'lower' or a function, got 'up'"),
    ],
)
def test_bad_arguments_raise(images, arguments, message):
    good = {"objective": "raise", "eps": EPS, "steps": 1}
    with pytest.raises(ValueError, match=message):
        pgd(LinearVictim(SCALE), images, **(good | arguments))


def test_score_only_victim_raises(images):
    with pytest.raises(ValueError, match="victim must be differentiable for pgd, got toy-linear"):
        pgd(ScoreOnly(LinearVictim(SCALE)), images, objective="raise", eps=EPS, steps=1)
