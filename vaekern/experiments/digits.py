"""Every preset on the digits: what is different between the systems, in minutes on a CPU."""

from __future__ import annotations

from vaekern.experiments.experiment import Column, Experiment, Row
from vaekern.training.presets import PRESETS


def _rows() -> tuple[Row, ...]:
    """A row for each preset; one with the settings of an earlier one is left out."""
    rows: dict[str, Row] = {}
    for name, preset in PRESETS.items():
        settings = repr(preset.settings)
        if settings not in rows:
            rows[settings] = Row(name, name, {"preset": name})
    return tuple(rows.values())


EXPERIMENTS: dict[str, Experiment] = {
    "digits": Experiment(
        title="Every preset",
        source="vaekern's own: by default on handwritten digits, 1617 images of 8x8 pixels",
        rows=_rows(),
        columns=(
            Column("mse", "MSE per sample", "report", "squared_error"),
            Column("sigma", "sigma", "report", "sigma"),
            Column("kl", "KL (nats)", "report", "kl_nats", ".2f"),
            Column("active", "active units", "report", "active_units", ".1f"),
            Column("mmd1", "MMD² of q(z)", "report", "mmd_stage1", ".4f"),
            Column("mmd2", "MMD² of q(u)", "report", "mmd_stage2", ".4f"),
            *(
                Column(name, f"{{frechet}}, {label}", "frechet_distances", key, log=True)
                for name, label, key in (
                    ("fd_reconstructions", "reconstructions", "reconstructions"),
                    ("fd1", "prior", "prior"),
                    ("fd2", "second stage", "second-stage"),
                    ("fd_mixture", "GMM-10", "gmm-10"),
                )
            ),
        ),
        settings={"network": "mlp", "threads": 1},
        figure_columns=("mse", "fd1", "fd2"),
        kind="image",
        cost="about a minute a run",
        notes="The preset two-stage is the second stage of vae-learned.",
    ),
}
