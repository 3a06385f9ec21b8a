"""The AE detector on one CPU thread: inference, and the augmentation of its training.

    python benchmarks/detector.py [--model models/detector]

Prints the latency of torch and ONNX Runtime at three sizes, the largest difference in probability
between the two, and our augmentation beside kornia's. Without a trained detector it measures one
with random weights: the time is the same.
"""

import argparse
import tempfile
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import onnxruntime
import torch
from _timing import best_of
from kornia.enhance import JPEGCodecDifferentiable
from skimage import data
from torch import Tensor

from defenders.detector import Detector, compress, crop_and_flip
from pipelines.audit.detect import INPUT, export_onnx, load_detector

CROP, QUALITY = 96, 85


def compare_augmentation(rounds: int) -> None:
    """Milliseconds an image of our augmentation and of kornia's, each on the type that it takes."""
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1).contiguous()
    batch = image[None].float() / 255
    rng = np.random.default_rng(0)
    flips = K.RandomHorizontalFlip(0.5), K.RandomVerticalFlip(0.5)
    windows = K.AugmentationSequential(K.RandomCrop((CROP, CROP)), *flips, data_keys=["input"])
    codec, quality = JPEGCodecDifferentiable(), torch.tensor([float(QUALITY)])

    def with_kornia() -> Tensor:
        with torch.inference_mode():
            result: Tensor = codec(batch, quality)
        return result

    cases = {
        f"window of {CROP}, mirrored": (
            lambda: crop_and_flip(image, CROP, rng),
            lambda: windows(batch),
        ),
        f"JPEG {QUALITY}": (lambda: compress(image, QUALITY), with_kornia),
    }
    print("| augmentation, 512×512 | ours ms | kornia ms | kornia / ours |")
    print("| --- | --: | --: | --: |")
    for name, (ours, theirs) in cases.items():
        best = best_of({"ours": ours, "kornia": theirs}, rounds)
        times = f"{1e3 * best['ours']:.2f} | {1e3 * best['kornia']:.2f}"
        print(f"| {name} | {times} | {best['kornia'] / best['ours']:.1f} |")
    difference = (with_kornia()[0] * 255 - compress(image, QUALITY).float()).abs().mean()
    print(f"mean difference of the two JPEG: {difference:.2f} of 255 levels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/detector"))
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained = (arguments.model / "config.json").exists()
    detector = load_detector(arguments.model) if trained else Detector().eval()
    count = sum(p.numel() for p in detector.parameters())
    print(f"{'trained' if trained else 'random'} weights, {count:,} parameters, one thread")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "detector.onnx")
        print(f"largest difference in probability: {export_onnx(detector, path):.1e}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        print("| size | torch ms | ONNX ms |\n| --- | --: | --: |")
        for side in (224, 500, 1024):
            images = torch.rand(1, 3, side, side)
            array = images.numpy()

            def with_torch(images: torch.Tensor = images) -> None:
                with torch.inference_mode():
                    detector(images)

            def with_onnx(array: object = array) -> None:
                session.run(None, {INPUT: array})

            best = best_of({"torch": with_torch, "onnx": with_onnx}, arguments.rounds)
            print(f"| {side} | {1e3 * best['torch']:.1f} | {1e3 * best['onnx']:.1f} |")
    compare_augmentation(arguments.rounds)


if __name__ == "__main__":
    main()
