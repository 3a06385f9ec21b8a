"""One row per vote: what is read from Label Studio, checked, and kept in annotations/3ae.parquet.

A vote that does not count stays in the table with the reason. People are numbers, not addresses.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.storage.files import without_nan, write_parquet

LOW, HIGH, STEP = 0.0, 10.0, 0.5  # of a score
REPLACED = "replaced by a later vote of the annotator"
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
    """Read the votes.

    Args:
        path: Table that `write_votes` wrote.

    Returns:
        The table, with the columns of SCHEMA; no rows when there is no file.

    Raises:
        InputError: It is another kind of table.
    """
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
    """Write the votes in a fixed order.

    Args:
        path: Parquet file; untouched where nothing changed.
        rows: Votes, with the fields of SCHEMA.
        cursors: Server and project -> last change seen there.

    Returns:
        Whether the file changed.
    """
    rows = sorted(rows, key=lambda r: (r["server"], r["task_id"], r["annotation_id"], r["task"]))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if cursors:
        table = table.replace_schema_metadata({CURSOR: json.dumps(dict(sorted(cursors.items())))})
    if path.exists():
        before = read_votes(path)
        if before.equals(table) and cursors_of(before) == dict(cursors):
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, table)
    return True


def cursors_of(table: pa.Table) -> dict[str, str]:
    """Last change seen of each server and project.

    Args:
        table: Table of `read_votes`.

    Returns:
        Server and project -> time of the change (ISO 8601); empty where the table has none.
    """
    found = (table.schema.metadata or {}).get(CURSOR)
    return json.loads(found) if found else {}


def votes_of_task(
    task: Mapping[str, Any],
    drafts: Sequence[Mapping[str, Any]],
    server: str,
    controls: Mapping[str, set[str]],
    users: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Read the annotations of a task and its drafts.

    Args:
        task: A task of the server.
        drafts: Its drafts.
        server: Address of the server and number of the project, for the column.
        controls: Controls of the label config -> their choices (see campaign.controls_in).
        users: Email -> number of a user.

    Yields:
        Rows of the table.
    """
    meta = task["meta"]["veneer"]
    common = {
        **{name: meta[name] for name in ("task", "key", "kind", "expected", "left")},
        "server": server,
        "task_id": task["id"],
    }
    rows = []
    for annotation in sorted(task["annotations"], key=lambda a: a["id"]):
        who = voter(annotation)
        row = {
            **common,
            "annotator": "unknown" if who is None else str(who),
            "created_at": annotation["created_at"],
            "seconds": annotation["lead_time"],
            "annotation_id": annotation["id"],
            **_read_result(annotation, controls),
        }
        if who is None:
            row["reason"] = "unknown annotator"
        rows.append(row)
    yield from only_last(rows)
    for draft in drafts:
        if draft.get("annotation") is None:
            yield {
                **common,
                "annotator": str(users.get(draft["user"], "unknown")),
                "created_at": draft["created_at"],
                "seconds": draft["lead_time"],
                "annotation_id": -draft["id"],  # drafts have numbers of their own
                **_read_result(draft, controls),
                "reason": "draft, not submitted",
            }


def voter(annotation: Mapping[str, Any]) -> int | None:
    """Number of the user who voted.

    Args:
        annotation: An annotation of the server, with completed_by.

    Returns:
        The number, None where the user was deleted.
    """
    user = annotation["completed_by"]
    number = user.get("id") if isinstance(user, dict) else user
    return number if isinstance(number, int) else None


def person(row: Mapping[str, Any]) -> tuple[str, str]:
    """Identify who voted: projects of a server share its users.

    Args:
        row: A vote, with the fields of SCHEMA.

    Returns:
        Address of the server, and number of the annotator there.
    """
    return row["server"].partition(" project ")[0], row["annotator"]


def only_last(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Let only the last of several valid votes by one person on one question count.

    Args:
        rows: Votes, also of other tasks or projects of the server that ask the question again.

    Returns:
        The votes in the same order; those before the last have the reason REPLACED.
    """
    out = [dict(row) for row in rows]
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(out, key=lambda r: (r["created_at"], r["annotation_id"])):
        if row["reason"] is None:
            question = (*person(row), row["key"], row["kind"])
            if question in last:
                last[question]["reason"] = REPLACED
            last[question] = row
    return out


def _read_result(annotation: Mapping[str, Any], controls: Mapping[str, set[str]]) -> dict[str, Any]:
    """score, verdict, artefacts and, where they do not count, the first reason.

    The server checks no result that comes through its interface: any JSON may be in it.
    """
    out: dict[str, Any] = {"score": None, "verdict": None, "artefacts": [], "reason": None}
    problems = ["skipped"] if annotation.get("was_cancelled") else []
    parts = annotation.get("result") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        problems.append("result is no list of answers")
        parts = []
    seen = set()
    for part in parts:
        name, value = part.get("from_name"), part.get("value") or {}
        if not isinstance(name, str) or name not in controls:
            problems.append(f"unknown name {_short(name)}")
            continue
        if name in seen:
            problems.append(f"more than one {name}")
        seen.add(name)
        if not isinstance(value, dict):
            problems.append(f"{name} {_short(value)} is no answer")
        elif name == "score":
            out["score"], problem = _score(value.get("number"))
            problems += [problem] if problem else []
        else:
            chosen = value.get("choices")
            chosen = chosen if isinstance(chosen, list) else [chosen]
            valid_choices = [c for c in chosen if isinstance(c, str) and c in controls[name]]
            unknown = [c for c in chosen if c not in valid_choices]
            problems += [f"unknown {name} {_short(c)}" for c in unknown]
            if name == "artefacts":
                out["artefacts"] = sorted(set(valid_choices))
            elif len(chosen) == 1:
                out["verdict"] = valid_choices[0] if valid_choices else None
            else:
                problems.append("more than one verdict" if chosen else "no verdict")
    problems += [f"no {name}" for name in ("score", "verdict") if name not in seen]
    out["reason"] = problems[0] if problems else None
    return out


def _score(value: Any) -> tuple[float | None, str | None]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"score {_short(value)} is no number"
    try:
        score = float(value)
    except OverflowError:  # whole numbers of JSON have no bounds
        score = math.inf if value > 0 else -math.inf
    if not LOW <= score <= HIGH:
        return without_nan(score), f"score {score:g} is not in [{LOW:g}, {HIGH:g}]"
    if (score / STEP) % 1:
        return score, f"score {score:g} is no multiple of {STEP:g}"
    return score, None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def valid(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Votes that count: those without a reason not to.

    Args:
        rows: Votes, with the fields of SCHEMA.

    Returns:
        Those whose reason is None, in the same order.
    """
    return [row for row in rows if row["reason"] is None]
