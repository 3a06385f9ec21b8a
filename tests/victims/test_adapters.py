import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from victims.adapters.images import read_images
from victims.adapters.model import CallableVictim, as_victim, device_of, frozen
from victims.base import ScoreOnly, ScoreScale, Victim
from victims.toy import LinearVictim


class Mean(nn.Module):
    """10 · mean pixel, with a parameter, a dropout and a batch norm that must stay as they are."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        return self.gain * self.drop(self.norm(images).mean((1, 2, 3)))


def brightness(images):
    return 10 * images.mean((1, 2, 3))


def test_a_module_becomes_a_victim_with_a_gradient():
    victim = as_victim(Mean(), 0, 10)
    assert isinstance(victim, Victim)
    assert (victim.name, victim.differentiable) == ("Mean", True)
    assert victim.scale == ScoreScale.of(0, 10)


def test_each_call_leaves_the_module_in_its_mode():
    module = Mean().train()
    module.drop.eval()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    victim = as_victim(module, 0, 10)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    victim(images).sum().backward()
    assert images.grad is not None
    assert (module.training, module.norm.training, module.drop.training) == (True, True, False)
    assert module.gain.requires_grad
    assert module.gain.grad is None
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def test_frozen_gives_back_what_it_took_when_the_body_fails():
    module = Mean()
    module.gain.requires_grad_(False)

    def body():
        with frozen(module):
            assert not module.training
            assert not any(p.requires_grad for p in module.parameters())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        body()
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == [False, True, True]


def test_pictures_reach_numpy_and_pil_functions_as_they_are():
    images = torch.rand(2, 3, 8, 12)
    levels = images.mul(255).round()

    def of_array(array):
        assert array.dtype == np.uint8
        assert array.shape[2] == 3
        return array.mean()

    def of_pil(image):
        assert image.mode == "RGB"
        return np.asarray(image).mean()

    for takes, function in (("numpy", of_array), ("pil", of_pil)):
        victim = as_victim(function, 0, 255, takes=takes)
        assert not victim.differentiable
        assert torch.allclose(victim(images), levels.mean((1, 2, 3)))


def test_lower_is_better_turns_the_scale():
    victim = as_victim(brightness, 0, 10, lower_is_better=True)
    images = torch.rand(2, 3, 8, 8)
    assert torch.allclose(victim(images), 10 - brightness(images))


def test_input_size_and_batch_limit_reach_the_model():
    seen = []

    def model(images):
        seen.append(tuple(images.shape))
        return brightness(images)

    victim = as_victim(model, 0, 10, input_size=16, max_batch=2)
    seen.clear()
    victim(torch.rand(5, 3, 20, 30))
    assert seen == [(2, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)]


def test_scores_of_one_column_are_taken():
    assert as_victim(lambda x: brightness(x)[:, None], 0, 10)(torch.rand(4, 3, 8, 8)).shape == (4,)


def test_a_victim_is_returned_as_it_is():
    victim = LinearVictim(ScoreScale.of(0, 10))
    assert as_victim(victim) is victim
    wrapped = as_victim(brightness, 0, 10)
    assert as_victim(wrapped) is wrapped
    with pytest.raises(ValueError, match="options must be none"):
        as_victim(victim, 0, 10)


def test_without_low_and_high_there_is_no_scale():
    victim = as_victim(brightness)
    with pytest.raises(ValueError, match="must have a scale"):
        _ = victim.scale


def test_a_function_without_gradient_is_score_only():
    victim = as_victim(lambda x: brightness(x.detach()), 0, 10)
    assert not victim.differentiable
    # Steps of which no gradient comes: rounding has one of zero.
    assert not as_victim(lambda x: brightness(x.round()), 0, 10).differentiable


class Claims(ScoreOnly):
    differentiable = True


def _random(images):
    return brightness(images) + torch.rand(len(images))


def _fails(images):
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (3, {}, "model must be a Victim, a torch module or a function, got int"),
        (lambda x: brightness(x)[:1], {}, r"shape \(N,\), got \(1,\) for 3 images"),
        (lambda x: x.mean(), {}, r"shape \(N,\), got \(\) for 3 images"),
        (lambda x: [1.0] * len(x), {}, "floating point tensor of scores, got list"),
        (lambda x: brightness(x) / 0, {}, "must be finite"),
        (lambda x: 100 * brightness(x), {}, "must be on the scale of 0 to 10"),
        (lambda x: brightness(x - x.mean()) + 5 * x.mean(), {}, "must not depend on the other"),
        (_random, {}, "must give one image one score"),
        (_fails, {}, "must score RGB images .* got KeyError"),
        (Claims(LinearVictim(ScoreScale.of(0, 10))), None, "must pass a gradient to the pixels"),
        (lambda x: brightness(x.round()), {"differentiable": True}, "must pass a gradient"),
        (lambda x: "good", {"takes": "pil"}, "must return one number for one picture, got str"),
        (brightness, {"takes": "jax"}, "takes must be one of torch, numpy, pil"),
        (brightness, {"takes": "pil", "differentiable": True}, "differentiable must not be True"),
        (brightness, {"input_size": 0}, "input_size must be at least 1"),
        (brightness, {"high": None}, "low and high must be given together"),
        (brightness, {"low": 10, "high": 0}, "low must be below high, got 10 and 0"),
        (brightness, {"low": None, "high": None, "lower_is_better": True}, "must come with low"),
    ],
)
def test_a_broken_promise_is_one_sentence(model, options, sentence):
    arguments = {} if options is None else {"low": 0, "high": 10, **options}
    with pytest.raises(ValueError, match=sentence) as error:
        as_victim(model, **arguments)
    assert "\n" not in str(error.value)


def test_device_of():
    assert device_of(Mean()) == torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(CallableVictim(brightness, None, name="b")) == torch.device("cpu")
    assert device_of(brightness) == torch.device("cpu")


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
PLANES = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())

FORMS = {
    "pil": Image.fromarray(PIXELS),
    "pil list": [Image.fromarray(PIXELS)] * 2,
    "array": PIXELS,
    "array planes": PLANES.numpy(),
    "array batch": np.stack([PIXELS, PIXELS]),
    "array float32": (PIXELS / 255).astype(np.float32),
    "array float64": PIXELS / 255,
    "tensor": PLANES,
    "tensor last": torch.from_numpy(PIXELS),
    "tensor batch": torch.stack([PLANES, PLANES]),
    "tensor half": (PLANES.double() / 255).half(),
    "tensor float": PLANES.float() / 255,
    "mixed": [Image.fromarray(PIXELS), PLANES, PIXELS / 255],
}


@pytest.mark.parametrize("form", FORMS)
def test_images_come_back_in_the_form_they_came_in(form):
    given = FORMS[form]
    read = read_images(given)
    assert all(torch.equal(image, PLANES) for image in read.tensors)
    back = read.restore(read.tensors)
    assert type(back) is type(given)
    pairs = zip(back, given, strict=True) if isinstance(given, list) else [(back, given)]
    for new, old in pairs:
        assert type(new) is type(old)
        if isinstance(old, Image.Image):
            assert np.array_equal(np.asarray(new), np.asarray(old))
        else:
            assert new.dtype == old.dtype
            assert np.array_equal(np.asarray(new), np.asarray(old))


def test_where_both_ends_are_three_each_library_has_its_way():
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(read_images(cube).tensors[0], cube.transpose(2, 0, 1))
    assert torch.equal(read_images(torch.from_numpy(cube)).tensors[0], torch.from_numpy(cube))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "images must be at least one"),
        (np.zeros((0, 4, 4, 3), np.uint8), "images must be at least one"),
        ("photo.png", "must be PIL images, numpy arrays or torch tensors, got str"),
        ([None], r"images\[0\] must be a PIL image, a numpy array or a torch tensor, got NoneType"),
        (Image.new("L", (4, 4)), "must be of mode RGB, got L"),
        ([Image.new("RGBA", (4, 4))], r"images\[0\] must be of mode RGB, got RGBA"),
        (np.zeros((4, 4), np.uint8), r"must be RGB of shape .* got \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), "must be RGB of shape"),
        (np.zeros((4, 4, 3), np.int64), r"must be uint8 or float in \[0, 1\], got int64"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "must be uint8 or float"),
        (np.full((4, 4, 3), 200.0), r"must be in \[0, 1\], got 200 to 200 \(divide by 255"),
        (torch.full((3, 4, 4), torch.nan), r"must be in \[0, 1\], got nan"),
        (np.full((4, 4, 3), -0.1), r"must be in \[0, 1\], got -0.1"),
    ],
)
def test_wrong_images_are_one_sentence(images, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_images(images)
