import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import veneer
from attackers.attack import MAX_BATCH, batch_limit


class Model(nn.Module):
    """A user's module: batch norm, dropout, no scale, no name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 1)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.conv(images)).relu().mean((2, 3)))).squeeze(1)


def tensors(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


FORMS = {
    "pil": lambda p: [Image.fromarray(image) for image in p],
    "numpy uint8": lambda p: p,
    "numpy planes": lambda p: p.transpose(0, 3, 1, 2),
    "numpy float32": lambda p: (p / 255).astype(np.float32),
    "torch uint8": tensors,
    "torch float": lambda p: tensors(p) / 255,
    "torch half": lambda p: (tensors(p) / 255).half(),
    "torch last": torch.from_numpy,
}


@pytest.mark.parametrize("method", ["da3", "pgd"])
@pytest.mark.parametrize("form", FORMS)
def test_examples_come_in_the_form_of_the_pictures(victim, pixels, to_levels, method, form):
    clean = pixels(2)
    given = FORMS[form](clean)
    result = veneer.attack(victim, given, method=method, min_psnr=35, steps=2)
    assert type(result.images) is type(given)
    if not isinstance(given, list):
        assert (result.images.dtype, result.images.shape) == (given.dtype, given.shape)
    for image, example, psnr in zip(clean, to_levels(result.images), result.psnr, strict=True):
        mse = ((example - image.astype(int)) ** 2).mean()
        exact = 100.0 if mse == 0 else 10 * math.log10(255**2 / mse)
        assert exact >= 35
        assert psnr == pytest.approx(exact, abs=1e-3)
    floats = torch.stack([torch.tensor(e) for e in to_levels(result.images)]).permute(0, 3, 1, 2)
    assert np.allclose(victim(floats.float() / 255), result.scores, atol=1e-5)
    assert (result.gain > 0).all()


def test_pictures_of_mixed_sizes_and_kinds_stay_in_their_order(victim, pixels, to_levels):
    given = [
        Image.fromarray(pixels(1, 32, 40, seed=1)[0]),
        pixels(1, 48, 33, seed=2)[0],
        torch.from_numpy(pixels(1, 32, 40, seed=3)[0]).permute(2, 0, 1),
        pixels(1, 17, 19, seed=4)[0] / 255,
    ]
    result = veneer.attack(victim, given, steps=3)
    assert [type(image) for image in result.images] == [type(image) for image in given]
    for index, image in enumerate(given):
        alone = veneer.attack(victim, image, steps=3)
        assert type(alone.images) is type(image)
        (one,), (other,) = to_levels([alone.images]), to_levels([result.images[index]])
        assert np.abs(one - other).max() <= 1
        assert result.scores[index] == pytest.approx(alone.scores[0], abs=1e-2)


def test_a_result_tells_scores_plans_and_distances(victim, pixels):
    result = veneer.attack(victim, pixels(3), steps=3)
    assert result.weights.shape == result.strengths.shape == (3, 14)
    assert np.allclose(result.weights.sum(1), 1)
    for name in ("scores", "scores_clean", "psnr", "ssim", "linf", "queries", "gain"):
        assert getattr(result, name).shape == (3,)
    assert len(result.top_filters()) == 3
    assert "3 images: mean score" in str(result)
    without = veneer.attack(victim, pixels(3), method="pgd", steps=3)
    assert without.weights is None
    with pytest.raises(ValueError, match="method must be da3 for a plan"):
        without.top_filters()


def test_the_model_stays_as_it_was(pixels):
    model = Model().train()
    model.conv.eval()
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for method in ("da3", "pgd"):
        result = veneer.attack(model, pixels(2), method=method, steps=2)
        assert (result.gain >= 0).all()
    assert [module.training for module in model.modules()] == modes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["head.weight"]


def test_pictures_are_not_changed(victim, pixels):
    floats = tensors(pixels(2)) / 255
    copy = floats.clone()
    veneer.attack(victim, floats, steps=2)
    assert torch.equal(floats, copy)


@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("method", ["da3", "pgd"])
def test_both_directions(victim, pixels, method, direction):
    result = veneer.attack(victim, pixels(2), method=method, direction=direction, steps=3)
    change = result.scores - result.scores_clean
    assert (change > 0).all() if direction == "raise" else (change < 0).all()
    assert (result.gain > 0).all()


def test_pgd_reaches_the_optimum_of_a_linear_victim(victim, pixels, to_levels):
    clean = pixels(2)
    result = veneer.attack(victim, clean, method="pgd", eps=4.9 / 255, steps=5)
    change = np.abs(np.stack(to_levels(result.images)) - clean.astype(int))
    assert change.max() == 4  # 4.9 levels down to the grid
    best = victim.optimum(tensors(clean) / 255, 4 / 255)
    assert np.allclose(result.scores, best, atol=1e-4)
    assert np.allclose(result.linf, 4 / 255)


def test_a_function_is_attacked_through_its_scores(pixels):
    calls = []

    def score(image):
        calls.append(image.size)
        return float(np.asarray(image).mean())

    model = veneer.as_victim(score, 0, 255, takes="pil")
    calls.clear()
    result = veneer.attack(model, pixels(2), steps=3, queries=2, seed=1)
    assert (result.gain > 0).all()
    assert result.queries.sum() == len(calls)
    again = veneer.attack(model, pixels(2), steps=3, queries=2, seed=1)
    assert np.array_equal(again.images, result.images)
    other = veneer.attack(model, pixels(2), steps=3, queries=2, seed=2)
    assert not np.array_equal(other.images, result.images)
    with pytest.raises(ValueError, match="victim must be differentiable for pgd"):
        veneer.attack(model, pixels(2), method="pgd")


def test_queries_are_those_made(victim, pixels):
    counted = 0

    def model(images):
        nonlocal counted
        counted += len(images)
        return victim(images)

    wrapped = veneer.as_victim(model, 0, 10)
    for method in ("da3", "pgd"):
        counted = 0
        result = veneer.attack(wrapped, pixels(3), method=method, steps=4)
        assert result.queries.tolist() == [counted / 3] * 3


def test_memory_that_runs_out_halves_the_batch(victim, pixels):
    def model(images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("too many")
        return victim(images)

    class Small:
        name, scale, differentiable = "small", victim.scale, True

        def __call__(self, images):
            # The probe scores three small ones.
            return victim(images) if images.shape[2] == 224 else model(images)

    result = veneer.attack(Small(), pixels(5), steps=2)
    whole = veneer.attack(victim, pixels(5), steps=2)
    assert np.allclose(result.scores, whole.scores, atol=1e-3)


def test_batches_fit_the_memory():
    cpu = torch.device("cpu")
    assert batch_limit((3, 20_000, 20_000), cpu) == 1
    assert 1 <= batch_limit((3, 500, 500), cpu) <= MAX_BATCH
    assert batch_limit((3, 64, 64), cpu) >= batch_limit((3, 500, 500), cpu)


def test_a_trained_attacker_plans_in_one_pass(victim, pixels):
    config = veneer.ADTConfig(size=32, width=16, heads=2, depth=1, steps=2)
    rows = []
    attacker = veneer.train_attacker(
        victim, pixels(6), config=config, epochs=2, lr=1e-2, seed=1, report=rows.append
    )
    assert isinstance(attacker, veneer.DA3Attacker)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert not any(p.requires_grad for p in attacker.parameters())
    one_pass = veneer.attack(victim, pixels(3, seed=9), attacker=attacker, min_psnr=30)
    assert one_pass.queries.tolist() == [2, 2, 2]
    assert (one_pass.psnr >= 30).all()
    assert (one_pass.gain >= 0).all()
    refined = veneer.attack(victim, pixels(3, seed=9), attacker=attacker, min_psnr=30, steps=4)
    assert (refined.scores >= one_pass.scores).all()
    assert refined.gain.mean() > one_pass.gain.mean()


def test_evaluate(victim, pixels):
    clean = pixels(4)
    result = veneer.attack(victim, clean, method="pgd", min_psnr=36, steps=3)
    row = veneer.evaluate(victim, clean, result.images)
    assert row["n"] == 4
    assert row["rasr"] == 100
    assert row["msi"] == pytest.approx(result.gain.mean(), abs=1e-4)
    assert row["psnr_min"] == pytest.approx(result.psnr.min(), abs=1e-3)
    assert row["score"] == pytest.approx(result.scores.mean(), abs=1e-4)
    same = veneer.evaluate(victim, clean, clean)
    assert (same["rasr"], same["msi"], same["psnr"]) == (0, 0, 100)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "fgsm"}, "method must be one of da3, pgd, got 'fgsm'"),
        ({"direction": "up"}, "direction must be raise or lower"),
        ({"min_psnr": 0}, "min_psnr must be between 0 and 100"),
        ({"eps": 8 / 255}, "eps must be given for method pgd only"),
        ({"method": "pgd", "eps": 8}, r"eps must be in \[1/255, 1\], got 8 \(did you mean 8/255"),
        ({"method": "pgd", "eps": 0.001}, r"eps must be in \[1/255, 1\]"),
        ({"method": "pgd", "steps": 0}, "steps must be at least 1"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"attacker": 1}, "attacker must be a DA3Attacker, got int"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"model": "resnet"}, "model must be a Victim, a torch module or a function, got str"),
        ({"model": lambda x: x}, r"must return scores of shape \(N,\)"),
        ({"images": []}, "images must be at least one"),
        ({"images": np.zeros((8, 8), np.uint8)}, "must be RGB of shape"),
    ],
)
def test_wrong_input_is_one_sentence(victim, pixels, options, sentence):
    arguments = {"model": victim, "images": pixels(1), **options}
    with pytest.raises(ValueError, match=sentence) as error:
        veneer.attack(arguments.pop("model"), arguments.pop("images"), **arguments)
    assert "\n" not in str(error.value)


def test_wrong_input_of_evaluate_and_train(victim, pixels):
    with pytest.raises(ValueError, match="must be as many, got 2 and 1"):
        veneer.evaluate(victim, pixels(2), pixels(1))
    with pytest.raises(ValueError, match=r"adversarial\[0\] must have the size of its picture"):
        veneer.evaluate(victim, pixels(1), pixels(1, 20))
    with pytest.raises(ValueError, match="must have a scale"):
        veneer.evaluate(lambda x: x.mean((1, 2, 3)), pixels(1), pixels(1))
    with pytest.raises(ValueError, match="must have a scale"):
        veneer.train_attacker(lambda x: x.mean((1, 2, 3)), pixels(4))
    with pytest.raises(ValueError, match="images must be at least 2"):
        veneer.train_attacker(victim, pixels(1))
