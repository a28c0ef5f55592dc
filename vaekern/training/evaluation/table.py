"""The table that `vaekern evaluate` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from vaekern.training.evaluation.outcome import Outcome
from vaekern.training.evaluation.row import Diagnostic, Line

FEW_WORDS = 60  # letters of a reason; evaluation.json has all of it

WIDTH = 100  # of notes

# Label, value, unit, n, remark; or a name and what is said of it; or a line of a note.
Cells = tuple[str, ...]


def make_table(
    head: Sequence[str], rows: Sequence[Diagnostic], outcomes: Mapping[str, Outcome]
) -> str:
    """Lines by group, then what was skipped and drawn."""
    groups: dict[str, list[Cells]] = {}
    for row in rows:
        if row.name in outcomes:
            groups.setdefault(row.group, []).extend(_cells(row, outcomes[row.name]))
    groups = {name: cells for name, cells in groups.items() if cells}
    everything = [cells for group in groups.values() for cells in group]
    widths = [max((len(cells[i]) for cells in everything if cells[i + 1 :]), default=0)
              for i in range(4)]  # fmt: skip
    lines = list(head)
    for name, group in groups.items():
        lines += ["", name]
        lines += [_line(cells, widths) for cells in group]
    figures = [name for outcome in outcomes.values() for name in outcome.figures]
    return "\n".join([*lines, *_wrapped("pictures:", figures)])


def _cells(row: Diagnostic, outcome: Outcome) -> list[Cells]:
    if outcome.status != "done":
        reason = f"{outcome.status}: {few_words(outcome.reason or '')}"
        return [(row.name, reason)]
    of = f"{outcome.n} {outcome.split}"
    cells: list[Cells] = []
    for line in row.lines:
        filled = _fill(line, outcome.values)
        if filled is not None:
            label, value, unit, remark = filled
            cells.append((label, value, unit, "" if cells else of, remark))
    for note in row.notes:
        text = _format(note, outcome.values)
        cells += [(part,) for part in textwrap.wrap(text or "", WIDTH - 6)]
    for name, reason in outcome.failed_figures.items():
        cells.append((name, f"not drawn: {few_words(reason)}"))
    return cells


def _fill(line: Line, values: Mapping[str, object]) -> tuple[str, str, str, str] | None:
    label, value, remark = (_format(text, values) for text in (line.label, line.value, line.remark))
    if label is None or value is None or remark is None:
        return None
    return label, value, line.unit, remark


def _format(template: str, values: Mapping[str, object]) -> str | None:
    """The template, filled in; None where it names something that was not found."""
    try:
        return template.format_map(values)
    except KeyError:
        return None


def _line(cells: Cells, widths: Sequence[int]) -> str:
    if len(cells) == 1:
        return f"      {cells[0]}"
    if len(cells) == 2:
        return f"  {cells[0]:<{widths[0]}}  {cells[1]}"
    label, value, unit, n, remark = cells
    return (
        f"  {label:<{widths[0]}}  {value:>{widths[1]}}  {unit:<{widths[2]}}  "
        f"{n:>{widths[3]}}  {remark}"
    ).rstrip()


def few_words(sentence: str) -> str:
    """The part before the remedy, cut where it is still too long."""
    text = sentence.partition(";")[0].strip()
    return text if len(text) <= FEW_WORDS else text[: FEW_WORDS - 3].rstrip() + "..."


def _wrapped(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    lines = ["", title]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > WIDTH:
            lines.append(" ")
        lines[-1] += f" {name}"
    return lines
