"""Sections of what defends: the detector and adversarial fine-tuning."""

from pydantic import Field

from pipelines.params.attack import Mode
from pipelines.params.section import Section


class DetectorParams(Section):
    """Detector of adversarial examples; arguments of defenders.detector.train_detector.

    Attributes:
        epochs: Of training.
        crop: Side of a training crop, pixels.
        batch_size: Crops per step.
        lr: Learning rate.
        robust: Keep the detector that also trained with JPEG and half-size copies; its twin without
            is measured beside it, or the other way round.
        leave_one_out: Also train once without each victim.
        onnx: Also write detector.onnx (extra `onnx`).
    """

    epochs: int = Field(20, ge=1)
    crop: int = Field(96, ge=32)
    batch_size: int = Field(32, ge=2)
    lr: float = Field(3e-3, gt=0)
    robust: bool = True
    leave_one_out: bool = True
    onnx: bool = True


class FinetuneParams(Section):
    """Adversarial fine-tuning; arguments of defenders.finetuning.finetune.

    Attributes:
        victims: Each is a DVC stage.
        size: Pixels that the fine-tuned victim sees in place of its input size; nearer to those of
            the pictures shows more of what an attack leaves. Null keeps the input size.
        epochs: Of each run.
        batch_size: Pictures per step.
        lr: Learning rate.
        clean_share: Share of photographs in a batch; the rest are examples of 3AE.
        distillation_weight: Weight of keeping the scores of random views of the clean training
            photographs.
        soup: Runs, of one seed after another, the mean of whose weights is taken (Wortsman et al.,
            Model soups, 2022).
        blend: Share of these weights in the final ones, the rest are those before: photographs keep
            more of their scores, and less of an attack is seen through; the report shows both on
            validation along the way.
        retrain: Modes of which a new attacker is trained against the fine-tuned victim, and
            measured on all clean test photographs that 3AE did not train on, whatever attack.limit.
    """

    victims: list[str] = []
    size: int | None = Field(None, ge=32)
    epochs: int = Field(5, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-4, gt=0)
    clean_share: float = Field(0.5, gt=0, lt=1)
    distillation_weight: float = Field(0.0, ge=0)
    soup: int = Field(1, ge=1)
    blend: float = Field(1.0, gt=0, le=1)
    retrain: list[Mode] = ["unrestricted"]
