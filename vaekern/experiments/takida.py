"""The tables and figures of Takida et al. 2022, "Preventing Oversmoothing in VAE"."""

from __future__ import annotations

from collections.abc import Iterator

from vaekern.experiments.experiment import Column, Experiment, Row

SOURCE = (
    "Takida et al. 2022, Preventing Oversmoothing in VAE via Generalized Variance Parameterization"
)

_PATTERNS = ("uniform", "spatial", "conditional", "spatial-conditional")
_OBJECTIVES = {"iso-i": "Iso-I", "diag-i": "Diag-I", "iso-d": "Iso-D", "diag-d": "Diag-D"}
_PARTS = ("SU", "SL", "BU", "BL")

#: The objectives that can tell the noisy part of the data from the rest.
SUFFICIENT = {
    "uniform": tuple(_OBJECTIVES),
    "spatial": ("diag-i", "diag-d"),
    "conditional": ("iso-d", "diag-d"),
    "spatial-conditional": ("diag-d",),
}


def _noisy() -> Iterator[Row]:
    for objective, label in _OBJECTIVES.items():
        settings, clean = {"preset": f"mle-{objective}"}, f"{objective}-clean"
        yield Row(
            clean,
            f"{label}, no noise",
            settings,
            data="noisy:uniform:0:{data}",
            procedure="train only",
        )
        for pattern in _PATTERNS:
            for variance in (0.01, 0.1):
                sufficient = " *" if objective in SUFFICIENT[pattern] else ""
                yield Row(
                    f"{objective}-{pattern}-{variance}",
                    f"{label}, {pattern}, {variance}{sufficient}",
                    settings,
                    data=f"noisy:{pattern}:{variance}:{{data}}",
                    procedure="train only",
                    baseline=clean,
                )


EXPERIMENTS: dict[str, Experiment] = {
    "takida-noise": Experiment(
        title="Which parts of the data hold noise, as the decoder's variance tells it",
        source=f"{SOURCE}, table 3",
        rows=list(_noisy()),
        columns=[
            *(Column(p, f"variance, {p}", "noise_variances", f"train_{p}", ".4f") for p in _PARTS),
            *(
                Column(
                    f"excess_{p}",
                    f"{p}, over no noise",
                    "noise_variances",
                    f"train_{p}",
                    ".4f",
                    relative=True,
                )
                for p in _PARTS
            ),
        ],
        settings={
            "network": "takida-mnist",
            "latent_dim": 16,
            "early_stopping": 10,
            "validation_fraction": 0.1,
            "stage1": {"epochs": 100, "batch_size": 64, "lr": 1e-3, "halve_every": 10_000},
            "stage2": {"epochs": 0},
        },
        data="strokes",
        kind="image",
        papers=("takida", "table3"),
        figure_columns=[f"excess_{p}" for p in _PARTS],
        cost="hours a run on a CPU, minutes with --set network=mlp",
        notes="S are the images of the lower half of the classes, B the others; U and L the upper "
        "and lower half of the pixels. * marks what the objective can tell apart in theory. The "
        "last columns subtract the same objective's variance on the same part of the clean data: "
        "0.1 or 0.01 is wanted where there is noise, 0 elsewhere. Stopped at the best ELBO of "
        "held-out images, whose weights are kept; variances are of the training set.",
    ),
}
