"""What classes.yaml makes of the classes, as the page tells it beside what the run has found."""

from hume_jax.progress import count
from hume_jax.report.page.folder import Run
from hume_jax.report.page.tables import Column, Table, table


def note(run: Run) -> str:
    """Which classes are merged or split, in a few sentences; '' for none."""
    edits = run.edits
    if not edits.changes:
        return ""
    texts = [
        f"Classes {', '.join(map(str, group[:-1]))} and {group[-1]} become class {group[0]}."
        for group in edits.merge
    ]
    texts += [
        f"Class {c} is split in {len(own)}: {', '.join(map(str, own[:-1]))} and {own[-1]}."
        for c, own in edits.parts.items()
    ]
    rest = (
        "All figures above and below are those of the classes that the run has found, before that."
        if run.edited is not None
        else f"What that makes of the rows is not known yet: python -m hume_jax.classes "
        f"--run={run.place}"
    )
    return " ".join([*texts, rest])


def classes(run: Run) -> Table | None:
    """Sizes of the classes after merges and splits, where they are known."""
    if run.edited is None:
        return None
    entries = run.edited["classes"]
    columns = [
        Column("Class", "d"),
        *([Column("Name")] if run.edits.names else []),
        Column("Of", "", "classes of the run that it is made of, or a part of"),
        *(Column(f"{name.capitalize()} rows", ",d") for name in run.splits),
        Column("Agreement", ".3f", "mean share of the votes; higher is better"),
    ]
    rows = [
        [
            entry["class"],
            *([run.edits.names.get(entry["class"])] if run.edits.names else []),
            ", ".join(map(str, entry["of"])),
            *(entry["rows"].get(split, 0) for split in run.splits),
            entry["agreement"],
        ]
        for entry in entries
    ]
    caption = f"The {count(len(entries), 'class', 'classes')} after merges and splits."
    return table("edited-table", caption, columns, rows)
