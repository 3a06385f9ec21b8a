"""The AE detector on one CPU thread: torch and ONNX Runtime, milliseconds per image.

    python benchmarks/detector.py [--model models/detector]

Prints latency at three sizes and the largest difference in probability between the two. Without a
trained detector it measures one with random weights: the time is the same.
"""

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch
from _timing import best_of

from defenders.detector import Detector
from pipelines.audit.detect import INPUT, export_onnx, load_detector


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


if __name__ == "__main__":
    main()
