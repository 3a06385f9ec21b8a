"""Is a data set poisoned by a pattern that its pictures share? No model is needed."""

from common import photographs

import veneer

images, scores = photographs(80, side=256)
trigger = veneer.make_trigger("ftrojan")  # a pattern 30 dB below the picture
poisoned = veneer.poison(images, scores, trigger, low=0, high=10, ratio=0.3)

for name, pictures, labels in (
    ("photographs as they are", images, scores),
    ("30 % of them poisoned", poisoned.images, poisoned.labels),
):
    result = veneer.scan(pictures, labels)  # also: a folder, or owner/name on the Hub
    print(f"{name}: {result.report['verdict']} (p = {result.report['p']:.3f})")

flagged = result.table["flagged"].to_numpy()
print(
    f"Of {poisoned.is_poisoned.sum()} poisoned pictures {(flagged & poisoned.is_poisoned).sum()} "
    f"were flagged, of {(~poisoned.is_poisoned).sum()} clean ones "
    f"{(flagged & ~poisoned.is_poisoned).sum()}."
)
print(f"The pattern repeats every {result.report['period']} pixels.")
