"""Tables of what was measured."""

from typing import Any


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def robustness_table(report: dict[str, Any]) -> str:
    """Robustness of each victim and mode as a Markdown table.

    Args:
        report: Content of reports/robustness.json.

    Returns:
        Markdown.
    """
    about = report["about"]
    source = about["data"]["name"] if isinstance(about["data"], dict) else about["data"]
    lines = [
        f"data {source} ({about['label_source']} labels), seed {about['seed']}, "
        f"refine {about['refine']}, {about['hardware']}",
        "",
        "| victim | mode | n | BASR % | RASR % | MSI | ART h (steps) | PSNR dB | top filters |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for victim, modes in report.items():
        if victim == "about":
            continue
        for mode, row in modes.items():
            lines.append(
                f"| {victim} | {mode} | {row['n']} | {_number(row['basr'], 1)} "
                f"| {_number(row['rasr'], 1)} | {_number(row['msi'], 2)} "
                f"| {_number(row['art_hours'], 3)} ({_number(row['art_steps'], 0)}) "
                f"| {_number(row['psnr'], 1)} | {row['top_filters'].replace(' ', ', ')} |"
            )
    return "\n".join(lines)


def pretrain_table(report: dict[str, Any]) -> str:
    """Restoration error of each filter as a Markdown table.

    Args:
        report: Content of reports/pretrain.json.

    Returns:
        Markdown.
    """
    lines = [
        "| filter | error | doing nothing | ratio |",
        "| --- | --: | --: | --: |",
    ]
    for name, row in report["filters"].items():
        lines.append(f"| {name} | {row['error']:.5f} | {row['nothing']:.5f} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def curation_table(report: dict[str, Any]) -> str:
    """Kept and rejected candidates as Markdown tables.

    Args:
        report: Content of reports/curation.json.

    Returns:
        Markdown.
    """
    splits = ", ".join(f"{name} {n}" for name, n in report["splits"].items())
    lines = [
        f"{report['in']} in, {report['kept']} kept ({splits}), {report['rejected']} rejected",
        "",
        "| reason | rejected |",
        "| --- | --: |",
        *(f"| {reason} | {n} |" for reason, n in report["reasons"].items()),
        "",
        "| victim | mode | in | kept | kept by score bin, low to high |",
        "| --- | --- | --: | --: | --- |",
    ]
    for cell in report["cells"]:
        bins = " ".join(str(n) for n in cell["bins"])
        row = (cell["victim"], cell["mode"], cell["in"], cell["kept"], bins)
        lines.append(f"| {' | '.join(map(str, row))} |")
    if report["unfinished"]:
        names = ", ".join(report["unfinished"])
        lines += ["", f"left out, because `veneer attack` has not finished them: {names}"]
    return "\n".join(lines)


def annotation_table(report: dict[str, Any]) -> str:
    """Opinion scores, agreement and annotators as text and a Markdown table.

    Args:
        report: Content of reports/annotation.json.

    Returns:
        Markdown.
    """
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in report["verdicts"].items())
    lines = [
        f"{report['in']} candidates, {report['kept']} labelled ({report['label_source']}), "
        f"{report['rejected']} rejected; {shares}"
    ]
    if report["label_source"] == "simulated":
        return "\n".join([*lines, report["model"]])
    for name, found in report["agreement"].items():
        interval = f"[{_number(found['low'], 3)}, {_number(found['high'], 3)}]"
        lines.append(f"{name} {_number(found['value'], 3)} {interval}")
    screening = report["screening"]
    if screening["on"]:
        lines.append(
            f"ITU-R BT.500 could judge {screening['bt500_images']} of {screening['images']} images "
            "(those with six or more votes)"
        )
    lines += [
        "",
        "| annotator | votes | bias | correlation | gold % | repeat difference | screened |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for row in report["annotators"]:
        gold = None if row["gold_accuracy"] is None else 100 * row["gold_accuracy"]
        lines.append(
            f"| {row['annotator']} | {row['votes']} | {_number(row['bias'], 2)} "
            f"| {_number(row['correlation'], 2)} | {_number(gold, 0)} "
            f"| {_number(row['repeat_difference'], 2)} | {row['screened'] or ''} |"
        )
    return "\n".join(lines)


def detector_table(report: dict[str, Any]) -> str:
    """Accuracy, AUC and TPR of a detector in each case as a Markdown table.

    Args:
        report: Content of reports/detector.json.

    Returns:
        Markdown.
    """
    lines = ["| case | n | accuracy % | AUC | TPR at 1 % FPR |", "| --- | --: | --: | --: | --: |"]

    def add(name: str, row: dict[str, Any]) -> None:
        values = [row["accuracy"], row["auc"], row["tpr_at_1_fpr"]]
        shown = [_number(v, digits) for v, digits in zip(values, (1, 3, 1), strict=True)]
        lines.append(f"| {name} | {row['n']} | {' | '.join(shown)} |")

    add("all", report["overall"])
    for group in ("mode", "victim", "psnr"):
        for name, row in report[group].items():
            if row["n"]:
                add(name, row)
    for victim, row in report["unseen_victim"].items():
        for mode, part in row["mode"].items():
            add(f"unseen {victim}, {mode}", part)
    for name, changes in report["changes"].items():
        for change, row in changes.items():
            add(f"{name}, {change}", row)
    return "\n".join(lines)


def finetune_table(report: dict[str, Any]) -> str:
    """Table XII: clean SROCC, and BASR, RASR, MSI of old and new attacks, before and after.

    Args:
        report: Content of reports/finetune/<name>.json.

    Returns:
        Markdown.
    """

    def shown(row: dict[str, Any]) -> str:
        return " | ".join(_number(row[k], 2) for k in ("basr", "rasr", "msi"))

    lines = ["| case | clean SROCC | BASR % | RASR % | MSI |", "| --- | --: | --: | --: | --: |"]
    cases = {"before": "before", "resized": f"before, at {report['size']} pixels", "after": "after"}
    for key, case in cases.items():
        if key in report:
            row, jpeg = report[key], f"as JPEG {report['jpeg_quality']}"
            srocc = _number(row["clean"]["srocc"], 3)
            lines.append(f"| old examples, {case} | {srocc} | {shown(row['old'])} |")
            lines.append(f"| {jpeg}, {case} | | {shown(row['old_jpeg'])} |")
    for mode, row in report["new_attacker"].items():
        lines.append(f"| new attacker, {mode} | | {shown(row)} |")
    if report["validation"]:
        lines += ["", "| blend, on validation | SROCC | RASR % |", "| --: | --: | --: |"]
    for row in report["validation"]:
        chosen = f"**{row['blend']:g}**" if row["blend"] == report["blend"] else f"{row['blend']:g}"
        lines.append(f"| {chosen} | {_number(row['srocc'], 3)} | {_number(row['rasr'], 2)} |")
    return "\n".join(lines)


def backdoor_table(rows: dict[str, dict[str, Any]]) -> str:
    """Backdoored models as a Markdown table in the order of Table 1.

    Args:
        rows: Content of reports/backdoor.json, or rows like its, by name of the model.

    Returns:
        Markdown.
    """
    lines = [
        "| model | trigger | poisoned | PLCC | SROCC | RMSE | mMAE | mMRA | PSNR_t dB |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['trigger']} | {row['poisoned']}/{row['train']} "
            f"| {_number(row['plcc'], 3)} | {_number(row['srocc'], 3)} "
            f"| {_number(row['rmse'], 2)} | {_number(row['mmae'], 2)} "
            f"| {_number(row['mmra'], 2)} | {_number(row['psnr'], 2)} |"
        )
    return "\n".join(lines)


def campaign_table(status: dict[str, Any]) -> str:
    """Progress of a labelling campaign as text and a Markdown table.

    Args:
        status: What `pipelines.annotation.sync.status` returned.

    Returns:
        Markdown.
    """
    tasks = status["item"] + status["repeat"] + status["gold"]
    lines = [
        f"{status['url']} ({status['title']}): {tasks} tasks ({status['item']} items, "
        f"{status['repeat']} repeats, {status['gold']} gold), {status['finished']} with "
        f"{status['votes_wanted']} votes or more, {status['votes']} votes, "
        f"{status['drafts']} drafts",
        "",
        "| annotator | votes | skipped |",
        "| --- | --: | --: |",
    ]
    lines += [f"| {n} | {p['votes']} | {p['skipped']} |" for n, p in status["annotators"].items()]
    if status["invalid"]:
        lines.append(
            f"\n{status['invalid']} votes do not count (`veneer annotate pull` says why): "
            "deleted on the server, they are asked for again"
        )
    if status["foreign"]:
        lines.append(f"\n{status['foreign']} tasks were not made by push and are left alone")
    return "\n".join(lines)


def publication_table(plan: dict[str, Any]) -> str:
    """The plan of a publication for a terminal.

    Args:
        plan: Summary of the plan.

    Returns:
        Text.
    """
    files: dict[str, int] = plan["upload"]
    lines = [
        f"{plan['repository']} ({plan['kind']}, {'new, ' if plan['create'] else ''}"
        f"{plan['visibility']}{', access on request' if plan['gated'] else ''}), tag {plan['tag']}",
        f"upload {len(files)} files, {plan['bytes'] / 1e6:.2f} MB; {plan['unchanged']} are there",
    ]
    lines += [f"  {path}  {size:,} bytes" for path, size in sorted(files.items())]
    lines += [f"  delete {path}" for path in plan["delete"]]
    return "\n".join(lines)


def stages_table(rows: list[dict[str, Any]]) -> str:
    """What became of each stage of a flow, for a terminal.

    Args:
        rows: A row per stage.

    Returns:
        Text.
    """
    width = max([len(row["stage"]) for row in rows], default=0)
    lines = []
    for row in rows:
        more = " ".join((row["note"] or row["metrics"]).split())
        lines.append(
            f"{row['stage']:<{width}}  {row['status']:<8}  {row['seconds']:7.1f} s  {more}"
        )
    return "\n".join(line.rstrip() for line in lines)
