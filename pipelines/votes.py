"""One row per vote: what is read from Label Studio, checked, and kept in annotations/3ae.parquet.

A vote that does not count stays in the table with the reason. People are numbers, not addresses.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.shards import atomic_file

LOW, HIGH, STEP = 0.0, 10.0, 0.5  # of a score
VERDICTS = ("degraded", "unchanged", "enhanced")
KINDS = ("item", "gold", "repeat")
CURSOR = b"veneer.cursor"  # JSON in the table's metadata: server and project -> last change seen

SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),  # key and, but for items, the kind
        pa.field("key", pa.string(), nullable=False),  # of the adversarial example
        pa.field("kind", pa.string(), nullable=False),
        pa.field("expected", pa.string()),  # verdict of a gold item
        pa.field("left", pa.string(), nullable=False),  # original or changed
        pa.field("annotator", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("artefacts", pa.list_(pa.string()), nullable=False),
        pa.field("seconds", pa.float64()),
        pa.field("created_at", pa.string(), nullable=False),
        pa.field("server", pa.string(), nullable=False),  # its address and the project's number
        pa.field("task_id", pa.int64(), nullable=False),
        pa.field("annotation_id", pa.int64(), nullable=False),
        pa.field("reason", pa.string()),  # why the vote does not count; null: it does
    ]
)


def read_votes(path: Path) -> pa.Table:
    """The votes; none when there is no file. InputError when it is another kind of table."""
    if not path.exists():
        return SCHEMA.empty_table()
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"votes must be a Parquet file, got {path} ({error})") from None
    for field in SCHEMA:
        if (
            field.name not in table.column_names
            or table.schema.field(field.name).type != field.type
        ):
            raise InputError(
                f"{path} must have a column {field.name} of type {field.type}, as "
                "`veneer annotate pull` writes it"
            )
    return table.select(SCHEMA.names).replace_schema_metadata(table.schema.metadata)


def write_votes(path: Path, rows: list[dict[str, Any]], cursors: Mapping[str, str]) -> bool:
    """Write the table in a fixed order. Returns: whether the file changed."""
    rows = sorted(rows, key=lambda r: (r["server"], r["task_id"], r["annotation_id"], r["task"]))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if cursors:
        table = table.replace_schema_metadata({CURSOR: json.dumps(dict(sorted(cursors.items())))})
    if path.exists():
        before = read_votes(path)
        if before.equals(table) and cursors_of(before) == dict(cursors):
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        pq.write_table(table, file, version="2.6", compression="zstd")
    return True


def cursors_of(table: pa.Table) -> dict[str, str]:
    """Last change seen of each server and project."""
    found = (table.schema.metadata or {}).get(CURSOR)
    return json.loads(found) if found else {}


def votes_of_task(
    task: Mapping[str, Any],
    drafts: Sequence[Mapping[str, Any]],
    server: str,
    known: Mapping[str, set[str]],
    users: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Rows of the annotations of one task and of its drafts.

    `known` maps the names of the label config to their choices; `users` addresses to numbers.
    """
    about = task["meta"]["veneer"]
    common = {
        "task": about["task"],
        "key": about["key"],
        "kind": about["kind"],
        "expected": about["expected"],
        "left": about["left"],
        "server": server,
        "task_id": task["id"],
    }
    rows = []
    for annotation in sorted(task["annotations"], key=lambda a: a["id"]):
        row = {
            **common,
            "annotator": str(_number(annotation["completed_by"])),
            "created_at": annotation["created_at"],
            "seconds": annotation["lead_time"],
            "annotation_id": annotation["id"],
        }
        rows.append({**row, **_read_result(annotation, known)})
    _only_last(rows)
    yield from rows
    for draft in drafts:
        if draft.get("annotation") is None:
            yield {
                **common,
                "annotator": str(users.get(draft["user"], "unknown")),
                "created_at": draft["created_at"],
                "seconds": draft["lead_time"],
                "annotation_id": -draft["id"],  # drafts have numbers of their own
                **_read_result(draft, known),
                "reason": "draft, not submitted",
            }


def _number(user: Any) -> int:
    return int(user["id"] if isinstance(user, dict) else user)


def _only_last(rows: list[dict[str, Any]]) -> None:
    """Of several votes that count, by one person on one task, the last one does."""
    last: dict[str, int] = {}
    for i, row in enumerate(rows):
        if row["reason"] is None:
            if row["annotator"] in last:
                rows[last[row["annotator"]]]["reason"] = "replaced by a later vote of the annotator"
            last[row["annotator"]] = i


def _read_result(annotation: Mapping[str, Any], known: Mapping[str, set[str]]) -> dict[str, Any]:
    """score, verdict, artefacts and, where they do not count, the first reason."""
    out: dict[str, Any] = {"score": None, "verdict": None, "artefacts": [], "reason": None}
    problems = ["skipped"] if annotation.get("was_cancelled") else []
    seen = set()
    for part in annotation.get("result") or []:
        name, value = part.get("from_name"), part.get("value") or {}
        if name not in known:
            problems.append(f"unknown name {name!r}")
            continue
        if name in seen:
            problems.append(f"more than one {name}")
        seen.add(name)
        if name == "score":
            out["score"], problem = _score(value.get("number"))
        else:
            chosen = value.get("choices")
            chosen = chosen if isinstance(chosen, list) else [chosen]
            odd = [c for c in chosen if c not in known[name]]
            problem = f"unknown {name} {odd[0]!r}" if odd else None
            if name == "verdict":
                problem = problem or (None if len(chosen) == 1 else "more than one verdict")
                out["verdict"] = None if problem else chosen[0]
            else:
                out["artefacts"] = sorted(c for c in chosen if c in known[name])
        problems += [problem] if problem else []
    problems += [f"no {name}" for name in ("score", "verdict") if name not in seen]
    out["reason"] = problems[0] if problems else None
    return out


def _score(value: Any) -> tuple[float | None, str | None]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"score {value!r} is no number"
    if not LOW <= value <= HIGH:
        return float(value), f"score {value:g} is not in [{LOW:g}, {HIGH:g}]"
    if (value / STEP) % 1:
        return float(value), f"score {value:g} is no multiple of {STEP:g}"
    return float(value), None


def valid(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The votes that count."""
    return [row for row in rows if row["reason"] is None]
