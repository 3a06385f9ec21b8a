"""Stage `annotate`: the candidates with the opinions on them, from votes or from a stated model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.annotation.candidates import read_candidates
from pipelines.annotation.labels import (
    MODEL,
    STAGE,
    Fields,
    human_labels,
    mean,
    simulated_label,
    verdict_shares,
)
from pipelines.annotation.votes import read_votes
from pipelines.errors import InputError, StageError
from pipelines.params import Params
from pipelines.storage.files import write_csv, write_json, write_parquet
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import METADATA, Manifest, file_sha256, fingerprint, read_manifest
from pipelines.storage.records import AnnotatedSample
from pipelines.storage.rejects import Reject, write_rejects
from pipelines.storage.table_folder import begin_tables, finish_tables, table_schema

SCHEMA = table_schema(AnnotatedSample)


def run_annotate(params: Params, layout: Layout) -> dict[str, Any]:
    """Join candidates and votes; write annotations/labels and reports/annotation.json.

    Without any vote labels are simulated where `annotate.labels` says so.

    Args:
        params: All parameters.
        layout: Folders of the project.

    Returns:
        The report.

    Raises:
        InputError: There are no candidates, or votes are needed and there are none.
        StageError: No image has enough votes.
    """
    settings = params.annotate
    manifest = read_manifest(layout.candidates, "curate")
    rows = read_candidates(layout.candidates).to_pylist()
    votes = read_votes(layout.votes).to_pylist()
    if not votes and settings.labels == "human":
        raise InputError(
            f"{layout.votes} must hold votes, got none: run `veneer annotate pull`, or set "
            "annotate.labels to simulated"
        )
    if votes:
        labels, rejects, report = human_labels(rows, votes, settings, params.seed)
    else:
        labels, rejects = [simulated_label(row) for row in rows], []
        report = {"label_source": "simulated", "model": MODEL}
    report = {
        **report,
        "in": len(rows),
        "kept": len(labels),
        "rejected": len(rejects),
        "verdicts": verdict_shares(labels),
        "mos": {
            "clean": mean([row["mos_clean"] for row in labels]),
            "adversarial": mean([row["mos"] for row in labels]),
        },
    }
    if not labels:
        raise StageError(
            f"annotate must keep at least one image, got none of {len(rows)}: annotate.min_votes "
            f"is {settings.min_votes}, and {report.get('votes', {}).get('valid', 0)} votes count"
        )
    _write_reports(layout, report, labels)
    _write_labels(params, layout, manifest, labels, rejects)
    return report


def _write_reports(layout: Layout, report: dict[str, Any], labels: Sequence[Fields]) -> None:
    write_json(layout.reports / "annotation.json", report)
    edges = np.linspace(0, 1, 21)
    shares = {}
    for name, field in (("photographs", "mos_clean"), ("adversarial", "mos")):
        scaled = [
            (row[field] - row["score_low"]) / (row["score_high"] - row["score_low"])
            for row in labels
        ]
        shares[name] = np.histogram(scaled, edges)[0] / len(labels)
    middles = (edges[:-1] + edges[1:]) / 2
    histogram = [
        {"score": f"{middle:.3f}", **{name: f"{share[i]:.4f}" for name, share in shares.items()}}
        for i, middle in enumerate(middles)
    ]
    write_csv(layout.reports / "annotation_scores.csv", histogram)


def _write_labels(
    params: Params,
    layout: Layout,
    candidates: Manifest,
    labels: list[Fields],
    rejects: list[Reject],
) -> Manifest:
    out = layout.labels
    begin_tables(out)
    write_parquet(out / METADATA, pa.Table.from_pylist(labels, schema=SCHEMA))
    write_rejects(out, rejects, STAGE)
    votes = file_sha256(layout.votes) if layout.votes.exists() else fingerprint(votes=None)
    label_source = labels[0]["label_source"]
    return finish_tables(
        out,
        stage=STAGE,
        rejected=len(rejects),
        splits=dict(sorted(Counter(row["split"] for row in labels).items())),
        parameters={**params.annotate.model_dump(), "label_source": label_source},
        inputs={"candidates": candidates.content_sha256, "votes": votes},
        scale=candidates.scale.model_copy(update={"label_source": label_source}),
    )
