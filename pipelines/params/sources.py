"""Sections of photographs, of what runs the shards, and of victims."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.params.section import Section, number


class Source(Section):
    """Which photographs.

    Attributes:
        name: A source of pipelines.sources.registry.
        options: Arguments of its importer.
    """

    name: str
    options: dict[str, Any] = {}

    @field_validator("name", mode="after")
    @classmethod
    def _no_path_in_the_name(cls, value: str) -> str:
        # dvc.yaml names the module of the source by it.
        if value.startswith("hf:"):
            path = value.removeprefix("hf:")
            raise ValueError(f"must be hf, with options.path: {path}")
        return value


class Splits(Section):
    """Shares of the photographs in each split; their sum is 1."""

    train: float = Field(0.7, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        return self


class Import(Section):
    """How photographs are stored.

    Attributes:
        splits: Shares, where the source prescribes no splits.
        shard_size: Photographs per shard.
        min_side: Pixels; photographs with a smaller side are rejected.
        max_side: Pixels; photographs with a longer side are reduced to it, null keeps their size.
    """

    splits: Splits = Splits()
    shard_size: int = Field(64, ge=1)
    min_side: int = Field(32, ge=16)
    max_side: int | None = Field(None, ge=16)

    @model_validator(mode="after")
    def _sides_in_order(self) -> Self:
        if self.max_side is not None and self.max_side < self.min_side:
            raise ValueError(
                f"max_side must be at least min_side {self.min_side}, got {self.max_side}"
            )
        return self


class Engine(Section):
    """What runs the stages; only `threads` and `dtype` change a byte of what they make.

    Attributes:
        kind: What runs the workers that make shards: this process, processes of this machine, or a
            Ray cluster (extra `ray`).
        workers: Their number.
        max_retries: Of a shard whose worker died.
        memory: MiB of a worker.
        address: Of a running Ray cluster; null starts one on this machine.
        gpus: Of a Ray worker; null shares those of the cluster.
        loader_workers: Processes that read and decode pictures for a training; 0: the training
            itself does.
        threads: Torch threads of a training. They change the order of sums, so they are a parameter
            and not the number of cores at hand.
        dtype: Of the latent spaces; auto takes bfloat16 where the processor multiplies it, about
            twice as fast.
    """

    kind: Literal["inline", "processes", "ray"] = "processes"
    workers: int = Field(2, ge=1)
    max_retries: int = Field(2, ge=0)
    memory: int | None = Field(None, ge=64)
    address: str | None = None
    gpus: float | None = Field(None, ge=0)
    loader_workers: int = Field(2, ge=0)
    threads: int = Field(2, ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @property
    def shards(self) -> dict[str, Any]:
        """Arguments of pipelines.execution.engine.map_shards."""
        names = {"workers", "max_retries", "memory", "address", "gpus"}
        return {"engine": self.kind, **self.model_dump(include=names)}


class VictimParams(Section):
    """One victim.

    Attributes:
        model: What builds it: `kind`, and arguments of its class.
        training: How it is trained: arguments of victims.training.train_victim.
    """

    model: dict[str, Any]
    training: dict[str, Any] = {}

    @field_validator("training", mode="after")
    @classmethod
    def _text_is_a_number(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {k: number(v) if isinstance(v, str) else v for k, v in values.items()}
