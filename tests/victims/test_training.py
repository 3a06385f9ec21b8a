import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.utils.data import TensorDataset

from victims.base import ScoreScale
from victims.heads import d10_targets
from victims.metrics import srocc
from victims.nima import Nima
from victims.registry import build_victim
from victims.training import train_victim


def victim(seed=0, **arguments):
    config = {"kind": "nima", "backbone": "test_efficientnet", "input_size": 32, "dropout": 0.2}
    scale = {"scale": {"low": 0, "high": 10}}
    return build_victim(config | scale | arguments, seed)


def split(count, seed):
    """Noisy grey images whose opinion is their brightness: anything that learns, learns this."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(count, generator=generator)
    noise = 0.1 * torch.randn(count, 3, 32, 32, generator=generator)
    images = ((level[:, None, None, None] + noise).clamp(0, 1) * 255).byte()
    return TensorDataset(images, 1 + 8 * level, torch.full((count,), 1.0))


TRAIN, VALIDATION = split(48, 0), split(24, 1)


def scores_of(model, data):
    with torch.no_grad():
        return model(data.tensors[0] / 255).numpy()


@pytest.mark.parametrize("loss", ["emd", "l1", "mse"])
@pytest.mark.parametrize("freeze", [True, False])
def test_learns_and_keeps_the_best_epoch(loss, freeze):
    model = victim()
    backbone = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    rows = []
    result = train_victim(
        model,
        TRAIN,
        VALIDATION,
        loss=loss,
        epochs=12 if freeze else 6,
        lr=1e-3,
        head_lr=1e-2,
        freeze_backbone=freeze,
        report=rows.append,
    )
    assert result.best["srocc"] > 0.8
    assert result.history == rows
    assert [row["epoch"] for row in rows] == list(range(len(rows)))
    assert result.best["srocc"] == max(row["srocc"] for row in rows)
    # The model holds the weights of that epoch: its scores give the same numbers again.
    scores = scores_of(model, VALIDATION)
    assert srocc(scores, VALIDATION.tensors[1]) == pytest.approx(result.best["srocc"], abs=5e-3)
    assert rows[-1]["loss"] < rows[1]["loss"]
    same = all(torch.equal(backbone[k], v) for k, v in model.backbone.state_dict().items())
    assert same == freeze
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("freeze", [True, False])
def test_the_same_seed_gives_the_same_weights(freeze):
    def weights(seed, noise):
        torch.manual_seed(noise)
        model = victim()
        train_victim(
            model, TRAIN, VALIDATION, epochs=2, seed=seed, freeze_backbone=freeze, crop=0.8
        )
        after = torch.rand(1)
        torch.manual_seed(noise)
        assert torch.equal(after, torch.rand(1)), "the global random state moved"
        return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])

    first = weights(1, 10)
    assert torch.equal(first, weights(1, 20))
    assert not torch.equal(first, weights(2, 10))


@pytest.mark.parametrize(
    "how",
    [
        {"crop": 0.8},
        {"freeze_backbone": True},
        {"freeze_backbone": True, "solver": "lbfgs", "weight_decay": 1.0},
    ],
)
def test_stopped_and_resumed_ends_in_the_same_weights(how):
    states = []
    whole = victim()
    end = train_victim(
        whole, TRAIN, VALIDATION, epochs=3, save=lambda s: states.append(copy.deepcopy(s)), **how
    )
    assert len(states) == 4
    for state in states:
        model = victim()
        again = train_victim(model, TRAIN, VALIDATION, epochs=3, resume=state, **how)
        assert again.best_epoch == end.best_epoch
        assert again.history[1:] == end.history[1:]
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), name


def test_zero_epochs_and_a_hopeless_lr_keep_the_weights_as_they_came():
    model = victim()
    before = scores_of(model, VALIDATION)
    result = train_victim(model, TRAIN, VALIDATION, epochs=0, freeze_backbone=True)
    assert result.best_epoch == 0
    assert math.isnan(result.best["loss"])
    # Standardising the features and folding it back changes nothing but rounding.
    np.testing.assert_allclose(scores_of(model, VALIDATION), before, atol=1e-3)


def test_batchnorm_statistics_move_only_when_asked():
    def moved(freeze_batchnorm):
        model = victim()
        before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        train_victim(model, TRAIN, VALIDATION, epochs=3, lr=1e-3, freeze_batchnorm=freeze_batchnorm)
        return any(not torch.equal(before[k], model.state_dict()[k]) for k in before)

    assert not moved(True)
    assert moved(False)


def test_items_may_be_read_lazily():
    class Lazy:
        def __len__(self):
            return len(TRAIN)

        def __getitem__(self, index):
            if index >= len(self):
                raise IndexError
            image, mos, std = TRAIN[index]
            return image, float(mos), float(std)

    models = [victim(), victim()]
    for model, data in zip(models, (TRAIN, Lazy()), strict=True):
        train_victim(model, data, VALIDATION, epochs=1)
    assert np.array_equal(*(scores_of(model, VALIDATION) for model in models))


def test_diverged_training_raises_one_sentence():
    model = victim(head="scalar")
    with torch.no_grad():
        model.head.linear.weight.fill_(math.nan)
    with pytest.raises(RuntimeError, match="must be finite, got "):
        train_victim(model, TRAIN, VALIDATION, loss="mse", epochs=1)
    model = victim()
    with pytest.raises(RuntimeError, match="must be finite, got "):
        train_victim(model, TRAIN, VALIDATION, epochs=3, lr=1e30, head_lr=1e30)
    assert not model.training


@pytest.mark.parametrize(("head", "loss"), [("scalar", "mse"), ("d10", "emd")])
def test_each_epoch_of_lbfgs_is_the_optimum_for_its_penalty(head, loss):
    """The gradient vanishes there, by the definition written out again; mse also against scipy."""
    found = []
    model = victim(head=head, dropout=0.5)

    def report(row):
        linear = model.head.linear
        weights = linear.weight.detach().clone(), linear.bias.detach().clone()
        found.append((row.get("penalty"), *weights))

    arguments = {"loss": loss, "solver": "lbfgs", "freeze_backbone": True, "flip": False}
    arguments |= {"epochs": 4, "weight_decay": 0.08}
    train_victim(model, TRAIN, VALIDATION, **arguments, report=report)
    assert [row[0] for row in found] == [None, 0.08, 0.04, 0.02, 0.01]
    with torch.no_grad():
        features = model.features(TRAIN.tensors[0] / 255).double()
    deviation = features.std(0, correction=0).mean() + 1e-6
    x, mos = (features - features.mean(0)) / deviation, TRAIN.tensors[1].double()
    targets = d10_targets(mos, TRAIN.tensors[2], model.scale).cumsum(1)

    def objective(w, bias, penalty):
        logits = x @ w.T + bias
        if head == "scalar":
            fit = (logits[:, 0].sigmoid() - mos / 10).square().mean()
        else:
            fit = (logits.softmax(1).cumsum(1) - targets).square().mean(1).sqrt().mean()
        return fit + penalty * w.square().sum()

    def slope(weight, bias, penalty):
        w = weight.double().requires_grad_(True)
        objective(w, bias.double(), penalty).backward()
        return w.grad.norm()

    for penalty, *weights in found[1:]:
        assert slope(*weights, penalty) < 0.02 * slope(*found[0][1:], penalty)

    def flat(values, penalty):
        both = torch.tensor(values, requires_grad=True)
        total = objective(both[None, 1:], both[:1], penalty)
        total.backward()
        return total.item(), both.grad.numpy()

    if head == "scalar":
        start = np.random.default_rng(0).normal(size=1 + x.shape[1])
        best = scipy.optimize.minimize(flat, start, 0.01, jac=True, tol=1e-12)
        assert found[-1][1][0].numpy() == pytest.approx(best.x[1:], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "sgd"}, "solver must be one of adamw, lbfgs, got 'sgd'"),
        ({"solver": "lbfgs"}, "solver must be adamw where freeze_backbone is false, got 'lbfgs'"),
        ({"loss": "huber"}, "loss must be one of emd, l1, mse, got 'huber'"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"crop": 1.5}, r"crop must be in \(0, 1\], got 1.5"),
        ({"train": split(0, 0)}, "train must have at least 1 image, got 0"),
        (
            {"validation": TensorDataset(torch.rand(2, 3, 8, 8), torch.ones(2), torch.ones(2))},
            r"validation must hold uint8 images \(3, H, W\), got torch.float32 \(3, 8, 8\)",
        ),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_victim(victim(), **({"train": TRAIN, "validation": VALIDATION} | arguments))
    if "loss" in arguments:
        with pytest.raises(ValueError, match="loss must be l1 or mse for a victim without a D10"):
            train_victim(victim(head="scalar"), TRAIN, VALIDATION, loss="emd")


LIVEC = Path(os.environ.get("VENEER_LIVEC") or Path(__file__).parents[2] / "../shared/livec")


@pytest.mark.livec
@pytest.mark.slow
@pytest.mark.skipif(
    not LIVEC.is_dir(), reason="no LIVE In the Wild: set VENEER_LIVEC to ChallengeDB_release"
)
def test_a_frozen_nima_learns_real_opinions():
    from PIL import Image
    from scipy.io import loadmat

    def column(name):
        return loadmat(LIVEC / "Data" / f"{name}_release.mat")[f"{name}_release"].ravel()

    names = [str(name[0]) for name in column("AllImages")]
    mos, std = column("AllMOS"), column("AllStdDev")
    # The first seven were shown to train the raters.
    kept = [i for i in range(7, len(names)) if (LIVEC / "Images" / names[i]).is_file()]
    kept = np.random.default_rng(0).permutation(kept)[:480]
    size = 320

    def read(indices):
        images = [
            np.asarray(Image.open(LIVEC / "Images" / names[i]).convert("RGB").resize((size, size)))
            for i in indices
        ]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return TensorDataset(pixels, *(torch.from_numpy(x[indices]).float() for x in (mos, std)))

    model = Nima(ScoreScale.of(0, 100), "tf_efficientnet_lite0", size, "package")
    result = train_victim(
        model,
        read(kept[:330]),
        read(kept[330:]),
        epochs=30,
        head_lr=1e-3,
        weight_decay=0.05,
        batch_size=32,
        freeze_backbone=True,
        flip=False,
    )
    assert result.best["srocc"] >= 0.6
