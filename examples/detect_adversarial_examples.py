"""Train a small detector of adversarial examples, and try it on pictures it never saw."""

from common import photographs, train

import veneer
from defenders.detector import auc

images, scores = photographs(105)
model = train(images[:30], scores[:30])
examples = veneer.attack(model, images, method="pgd", eps=8 / 255, steps=2).images

# The ten photographs take turns, so both parts show all of them: a real test must not.
detector = veneer.train_detector(images[:75], examples[:75], epochs=14, crop=64)
clean, attacked = veneer.detect(images[75:], detector), veneer.detect(examples[75:], detector)

print("On 30 photographs and their adversarial examples, none of them trained on:")
print(f"  AUC {auc([*clean, *attacked], [False] * 30 + [True] * 30):.3f}")
print(f"  {(attacked > 0.5).sum()} of 30 examples found, {(clean > 0.5).sum()} of 30 false alarms")
