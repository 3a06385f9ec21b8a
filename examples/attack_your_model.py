"""Attack a model that scores pictures: what is the most that small changes do to its scores?"""

from common import photographs, train

import veneer

images, scores = photographs(86)
model = train(images[:80], scores[:80])  # yours: any torch module from (N,3,H,W) to (N,)
pictures = images[80:]

victim = veneer.as_victim(model, low=0, high=10)  # probes it: shape, scale, gradient
for method in ("da3", "pgd"):
    result = veneer.attack(victim, pictures, method=method, min_psnr=35, steps=10)
    print(f"\n{method}: {result}")
    for i in range(len(pictures)):
        print(
            f"  picture {i}: {result.scores_clean[i]:5.2f} -> {result.scores[i]:5.2f} of 10 "
            f"at {result.psnr[i]:.1f} dB",
            f"by {' and '.join(result.top_filters()[i])}" if method == "da3" else "",
        )

robustness = veneer.evaluate(victim, pictures, result.images)
print("\nUnder the last attack:", {name: round(value, 2) for name, value in robustness.items()})
print("rasr: % of pictures whose score rose; msi: mean rise; basr: % of poor ones scored good")
