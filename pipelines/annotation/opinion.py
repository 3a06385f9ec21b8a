"""From votes to opinion scores: means, who to trust, and how far people agree.

Votes are arrays of equal length: `image` and `annotator` (integers from 0) and `score`. Not every
annotator needs to have seen every image; nobody has more than one vote on an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

Measure = Callable[["Votes", "np.ndarray | None"], float]
PANEL = 6  # votes on an image below which the screening of ITU-R BT.500 cannot reject anybody
FEW = 10  # images shared with others below which a correlation says nothing


@dataclass(frozen=True)
class Votes:
    """Who gave which image which score: three arrays, (N,), a vote in each place.

    Args:
        image: Numbers of the images, from 0.
        annotator: Numbers of the annotators, from 0.
        score: Scores.
    """

    image: np.ndarray
    annotator: np.ndarray
    score: np.ndarray

    def filter(self, mask: np.ndarray) -> "Votes":
        """Votes of a mask; images and annotators keep their numbers.

        Args:
            mask: (N,) booleans.

        Returns:
            The votes where it is True.
        """
        return Votes(self.image[mask], self.annotator[mask], self.score[mask])

    @property
    def images(self) -> int:
        """Largest image number plus one."""
        return int(self.image.max(initial=-1)) + 1

    @property
    def annotators(self) -> int:
        """Largest annotator number plus one."""
        return int(self.annotator.max(initial=-1)) + 1

    def others(self) -> np.ndarray:
        """For each vote the mean of the other votes on its image; NaN where there is none."""
        n = np.bincount(self.image)[self.image]
        total = np.bincount(self.image, self.score)[self.image]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((total - self.score) / (n - 1))


@dataclass(frozen=True)
class Opinions:
    """Opinion scores by image number, (images,); NaN where undefined.

    Args:
        mean: Mean of the votes; undefined for none.
        std: Standard deviation (n - 1); undefined for one vote.
        n: Number of votes.
        half: Half of the 95 % interval of the mean.
    """

    mean: np.ndarray
    std: np.ndarray
    n: np.ndarray
    half: np.ndarray


def mean_opinions(votes: Votes, images: int | None = None) -> Opinions:
    """Mean opinion score of each image, with Student's interval: mean ± t(n-1) std / sqrt(n).

    Args:
        votes: The votes.
        images: Number of images; by default as many as have votes.

    Returns:
        The scores, (images,) each.
    """
    images = votes.images if images is None else images
    n = np.bincount(votes.image, minlength=images)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(votes.image, votes.score, minlength=images) / n
        square = (votes.score - mean[votes.image]) ** 2
        variance = np.bincount(votes.image, square, minlength=images) / (n - 1)
        std = np.sqrt(np.where(n > 1, variance, np.nan))
        half = student.ppf(0.975, np.maximum(n - 1, 1)) * std / np.sqrt(n)
    return Opinions(mean, std, n, half)


def bt500_outliers(votes: Votes) -> np.ndarray:
    """Find annotators that the screening of ITU-R BT.500 (annex 1, 2.3.1) rejects.

    Per image the votes are taken for normal when their kurtosis is in [2, 4], and a vote is far
    off when it is 2 (else sqrt 20) standard deviations from the mean. Rejected is who is far off
    in more than 5 % of their votes, and about as often above as below (|P - Q| < 0.3 (P + Q)):
    unreliable, not merely strict. With fewer than PANEL votes on an image no vote can be that far
    off, so that the rule needs panels; for few votes per image see `low_correlation`.

    Args:
        votes: The votes.

    Returns:
        (annotators,) booleans, True for who is rejected.
    """
    seen = mean_opinions(votes)
    away = votes.score - seen.mean[votes.image]
    n = np.maximum(seen.n, 1)
    second = np.bincount(votes.image, away**2, minlength=votes.images) / n
    fourth = np.bincount(votes.image, away**4, minlength=votes.images) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        kurtosis = fourth / second**2
    limit = np.where((kurtosis >= 2) & (kurtosis <= 4), 2.0, np.sqrt(20)) * seen.std
    # One vote, or votes all alike: nobody is far off.
    usable = np.isfinite(limit[votes.image]) & (limit[votes.image] > 0)
    above = usable & (away >= limit[votes.image])
    below = usable & (away <= -limit[votes.image])
    p = np.bincount(votes.annotator, above, minlength=votes.annotators)
    q = np.bincount(votes.annotator, below, minlength=votes.annotators)
    given = np.bincount(votes.annotator, minlength=votes.annotators)
    return np.asarray((p + q > 0.05 * given) & (np.abs(p - q) < 0.3 * (p + q)))


def correlations(votes: Votes) -> np.ndarray:
    """Pearson correlation of each annotator with the mean of the others on the same images.

    Args:
        votes: The votes.

    Returns:
        (annotators,) in [-1, 1]; NaN with fewer than FEW shared images, or where either side
        never varies.
    """
    others = votes.others()
    out = np.full(votes.annotators, np.nan)
    for who in range(votes.annotators):
        usable = (votes.annotator == who) & np.isfinite(others)
        if usable.sum() >= FEW and votes.score[usable].std() > 0 and others[usable].std() > 0:
            out[who] = np.corrcoef(votes.score[usable], others[usable])[0, 1]
    return out


def low_correlation(votes: Votes, minimum: float) -> np.ndarray:
    """Find annotators whose correlation with the others is below `minimum`.

    Args:
        votes: The votes.
        minimum: Least correlation, in [-1, 1].

    Returns:
        (annotators,) booleans; False where the correlation is undefined.
    """
    found = correlations(votes)
    return np.asarray(np.isfinite(found) & (found < minimum))


def biases(votes: Votes) -> np.ndarray:
    """Mean difference between each annotator's scores and those of the others on the same images.

    Args:
        votes: The votes.

    Returns:
        (annotators,) in units of the score, positive for a generous annotator; NaN for one who
        shares no image.
    """
    away = votes.score - votes.others()
    shared = np.isfinite(away)
    n = np.bincount(votes.annotator, shared, minlength=votes.annotators)
    total = np.bincount(votes.annotator, np.where(shared, away, 0.0), minlength=votes.annotators)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / n)


def icc_2k(votes: Votes, weights: np.ndarray | None = None) -> float:
    """ICC(2,k) of Shrout and Fleiss 1979: reliability of the mean of k random annotators.

    Variance of images over itself plus that of annotators and of error divided by k, the mean
    number of votes per image. The components are estimated by Henderson's first method, which
    for a full table is the usual analysis of variance and needs none.

    Args:
        votes: The votes.
        weights: Copies of each image (bootstrap), (images,); one of each by default.

    Returns:
        The coefficient, mostly in [0, 1]; NaN when there are too few votes to tell, or when the
        estimated variance is not positive.
    """
    copies = np.ones(votes.images) if weights is None else weights
    w = copies[votes.image]
    n_image = np.bincount(votes.image, minlength=votes.images)
    n_person = np.bincount(votes.annotator, w, minlength=votes.annotators)
    total = w.sum()
    seen, active = copies[n_image > 0].sum(), np.count_nonzero(n_person)
    if total <= seen or active < 2 or seen < 2:
        return float("nan")
    score = votes.score - np.average(votes.score, weights=w)  # sums of squares without cancelling
    by_image = np.bincount(votes.image, score, minlength=votes.images)
    by_person = np.bincount(votes.annotator, w * score, minlength=votes.annotators)
    t_image = (copies * by_image**2 / np.maximum(n_image, 1)).sum()
    t_person = (by_person[n_person > 0] ** 2 / n_person[n_person > 0]).sum()
    t_all = (w * score**2).sum()
    images, people = (copies * n_image**2).sum() / total, (n_person**2).sum() / total
    # Expected sums of squares less that of the mean, for the variances (image, person, error).
    expected = np.array(
        [
            [total - images, seen - people, seen - 1],
            [active - images, total - people, active - 1],
            [total - images, total - people, total - 1],
        ]
    )
    try:
        image, person, error = np.linalg.solve(expected, [t_image, t_person, t_all])
    except np.linalg.LinAlgError:
        return float("nan")
    spread = image + (person + error) / (total / seen)
    return float(image / spread) if spread > 0 else float("nan")


def krippendorff_alpha(votes: Votes, weights: np.ndarray | None = None) -> float:
    """Krippendorff's alpha for interval data: 1 - observed over expected disagreement.

    Images with one vote do not count.

    Args:
        votes: The votes.
        weights: Copies of each image (bootstrap), (images,); one of each by default.

    Returns:
        Alpha, at most 1; NaN when no image has two votes or all votes are equal.
    """
    n = np.bincount(votes.image, minlength=votes.images)
    copies = np.ones(votes.images) if weights is None else weights
    paired = n[votes.image] > 1
    w = copies[votes.image[paired]]
    if w.sum() < 2:
        return float("nan")
    score = votes.score[paired] - np.average(votes.score[paired], weights=w)
    image = votes.image[paired]
    linear = np.bincount(image, score, minlength=votes.images)
    square = np.bincount(image, score**2, minlength=votes.images)
    pairs = 2 * (n * square - linear**2)  # squared differences over ordered pairs of an image
    observed = (copies * pairs / np.maximum(n - 1, 1)).sum() / w.sum()
    every = 2 * (w.sum() * (w * score**2).sum() - (w * score).sum() ** 2)
    expected = every / (w.sum() * (w.sum() - 1))
    return float(1 - observed / expected) if expected > 0 else float("nan")


def bootstrap_interval(
    measure: Measure, votes: Votes, *, resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of a measure, over images drawn with replacement.

    Args:
        measure: `icc_2k` or `krippendorff_alpha`.
        votes: The votes.
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        Lower and upper end; NaN where undefined.
    """
    present = np.unique(votes.image)
    if not len(present) or resamples < 1:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        copies = np.zeros(votes.images)
        np.add.at(copies, rng.choice(present, len(present)), 1)
        found.append(measure(votes, copies))
    finite = np.array(found)[np.isfinite(found)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
