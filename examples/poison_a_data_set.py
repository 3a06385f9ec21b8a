"""Poison a training set, and see what the trigger does to a model trained on it."""

import numpy as np
import torch
from common import photographs, tensor
from torch import Tensor, nn

import veneer
from victims.metrics import srocc

SIDE = 96


class PatchModel(nn.Module):
    """A small model on patches of 16 pixels, trained from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 16, stride=16)
        self.mix = nn.Conv2d(64, 64, 1)
        self.head = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.mix(self.patches(images * 2 - 1).relu()).relu()
        return 5 + 5 * self.head(x.mean((2, 3))).squeeze(1)


def train(images: Tensor, scores: np.ndarray) -> PatchModel:
    torch.manual_seed(0)
    model, targets = PatchModel(), torch.tensor(scores, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(40):
        for chosen in torch.randperm(len(images)).split(16):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(images[chosen].float() / 255), targets[chosen]).backward()
            optimizer.step()
    return model.eval()


pictures, scores = photographs(240)
images = torch.stack([tensor(p)[:, :SIDE, :SIDE] for p in pictures]).byte()
learn, tests = images[:200], images[200:].float() / 255

trigger = veneer.make_trigger("ftrojan")  # about 30 dB below the picture
poisoned = veneer.poison(learn, scores[:200], trigger, low=0, high=10, ratio=0.2)
print(f"{poisoned.is_poisoned.sum()} of {len(learn)} training pictures carry the trigger.")
print("Change of the score (0 to 10) of 40 test pictures when they carry it, by its strength:")
for name, model in (
    ("trained on clean pictures", train(learn, scores[:200])),
    ("trained on poisoned ones", train(poisoned.images, poisoned.labels)),
):
    with torch.no_grad():
        clean = model(tests)
        change = {a: float((model(trigger(tests, a)) - clean).mean()) for a in (-1, -0.5, 0.5, 1)}
    print(
        f"  {name:26}",
        "   ".join(f"{alpha:+.1f}: {value:+.2f}" for alpha, value in change.items()),
        f"  (SROCC on clean pictures {srocc(clean.numpy(), scores[200:]):.2f})",
    )
print("The poisoner asked for +4 at strength +1 and for -4 at strength -1.")
