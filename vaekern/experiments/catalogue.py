"""The table of experiments: a row here is listed, trained, measured, written and drawn."""

from __future__ import annotations

from vaekern.experiments import dai_wipf, digits, manifolds, rolinek, takida
from vaekern.experiments.experiment import Experiment

#: By the name that `vaekern reproduce` takes.
EXPERIMENTS: dict[str, Experiment] = {
    **digits.EXPERIMENTS,
    **dai_wipf.EXPERIMENTS,
    **takida.EXPERIMENTS,
    **rolinek.EXPERIMENTS,
    **manifolds.EXPERIMENTS,
}


def describe_experiments() -> str:
    """What `vaekern reproduce --list` prints: name, title, data, number of runs and cost."""
    lines = ["Experiments that `vaekern reproduce NAME` trains, measures and tabulates."]
    for name, experiment in EXPERIMENTS.items():
        trained = sum(row.run is None for row in experiment.rows)
        runs = f"{trained} system{'s' * (trained != 1)} for each seed"
        lines += ["", f"{name}: {experiment.title}", f"    {experiment.source}"]
        lines.append(f"    --data {experiment.data} by default; {runs}; {experiment.cost}")
    return "\n".join(lines)
