"""The tables and figures of Takida et al. 2022, "Preventing Oversmoothing in VAE"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vaekern.experiments.experiment import Column, Experiment, Row, Settings

SOURCE = (
    "Takida et al. 2022, Preventing Oversmoothing in VAE via Generalized Variance Parameterization"
)

#: 1, 10^-0.1, ..., 0.1
X_VARIANCES = tuple(10 ** (-k / 10) for k in range(11))
#: 10, 10^0.9, ..., 0.1
Z_VARIANCES = tuple(10 ** (1 - k / 10) for k in range(21))

SMOOTHNESS = (
    Column("mse", "MSE", "training_set", "squared_error", ".2f"),
    Column("kl", "KL (nats)", "polarized_regime", "kl", ".2f"),
    Column("sigma_z2", "sigma_z²", "training_set", "posterior_variance", ".3g", log=True),
    Column("mi", "I(x; z), their estimate", "mutual_information", "leave_one_out", ".3g"),
    Column("gap_wide", "gap, s² = 0.01", "expected_gap", "wide_gap", ".3g", log=True),
    Column("gap_narrow", "gap, s² = 0.001", "expected_gap", "narrow_gap", ".3g", log=True),
    Column("els", "E|J|² / d", "expected_local_smoothness", "per_dimension", ".3g", log=True),
)
SMALL = {
    "network": "takida-smoothness",
    "latent_dim": 8,
    "stage1": {"epochs": 200, "batch_size": 64, "lr": 1e-3, "halve_every": 10_000},
    "stage2": {"epochs": 0},
}


def _fixed_x(variance: float) -> Iterator[Row]:
    settings = {"estimate": "fixed", "variance": variance}
    name, label = f"{variance:.3g}", f"sigma_x² = {variance:.3g}"
    yield Row(
        f"stochastic-{name}",
        f"{label}, stochastic",
        {**settings, "posterior": "isotropic"},
        procedure="train only",
        group="stochastic",
        value=variance,
    )
    yield Row(
        f"deterministic-{name}",
        f"{label}, deterministic",
        {**settings, "posterior": "deterministic", "latent_term": "squared-norm"},
        procedure="train only",
        group="deterministic",
        value=variance,
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
        settings: Settings = {"preset": f"mle-{objective}"}
        if objective == "diag-d":
            settings = {**settings, "eps_epochs": 15}
        clean = f"{objective}-clean"
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


#: The systems of tables 4 to 7 and of figure 2.
SYSTEMS = {
    "vae-fixed": "VAE, sigma_x² = 1",
    "vae-bernoulli": "VAE, Bernoulli",
    "vae-logistic-mixture": "VAE, mixture of logistics",
    "ae": "AE",
    "wae-mmd": "WAE-MMD",
    "rae": "RAE",
    "rae-gp": "RAE-GP",
    "vae-learned": "Iso-I, trained",
    "learned-diag-i": "Diag-I, trained",
    "learned-iso-d": "Iso-D, trained",
    "learned-diag-d": "Diag-D, trained",
    "mle-iso-i": "Iso-I, MLE",
    "mle-diag-i": "Diag-I, MLE",
    "mle-iso-d": "Iso-D, MLE",
    "mle-diag-d": "Diag-D, MLE",
}

GENERATION = (
    Column("mse", "MSE", "report", "squared_error", ".2f"),
    *(
        Column(name, f"{{frechet}}, {label}", "frechet_distances", key, ".2f")
        for name, label, key in (
            ("prior", "prior", "prior"),
            ("second", "2nd VAE", "second-stage"),
            ("gmm10", "GMM-10", "gmm-10"),
            ("gmm100", "GMM-100", "gmm-100"),
            ("middle", "mid-points", "interpolation"),
            ("random", "random points", "interpolation-random"),
        )
    ),
    Column("nll", "-log p(x) <=", "importance_weighted_nll", "nll", ".2f"),
    Column("seconds", "s / epoch", "training_time", "seconds_per_epoch", ".2f"),
)


def _systems(
    title: str,
    tables: tuple[str, ...],
    data: str,
    network: str,
    latent_dim: int,
    epochs: int,
    lr: float,
    weights: Mapping[str, float],
    without: tuple[str, ...] = (),
) -> Experiment:
    """Tables 4, 5 and 7 of one data set: every system, every sampler."""
    numbers = " and ".join(table.removeprefix("table") for table in tables)
    return Experiment(
        title=f"Reconstructions, samples and interpolations of every system on {title}",
        source=f"{SOURCE}, tables {numbers}, figures 2 and J.9",
        rows=[
            Row(name, label, {"preset": name, **_weighed(name, weights)})
            for name, label in SYSTEMS.items()
            if name not in without
        ],
        columns=GENERATION,
        settings={
            "network": network,
            "latent_dim": latent_dim,
            "second_width": 1024,
            "lr_schedule": "plateau",
            "early_stopping": 10,
            "validation_fraction": 0.1,
            "stage1": {"epochs": epochs, "batch_size": 64, "lr": lr},
            "stage2": {"epochs": 2 * epochs, "batch_size": 64, "lr": 1e-4},
        },
        data=data,
        kind="image",
        papers=("takida", *tables),
        figures=("dots", "interpolation_strips"),
        figure_columns=("mse", "prior", "second", "gmm10"),
        cost=f"up to {epochs} + {2 * epochs} epochs each, for a GPU",
        notes="The learning rate halves where the ELBO of held-out images no longer falls, and a "
        "stage stops 10 epochs after its best; the paper recommends both and says no more. The "
        "bound on -log p(x) has 500 importance samples for each of 500 test images and, for -D "
        "too, one variance found in training; that of the mixture of logistics is of a probability "
        "of 256 grey levels, D log 255 above a density's. Seconds are the median of stage 1's "
        "epochs. The paper names no weights: RAE and RAE-GP have 2 w D / d for the squared norm of "
        "the codes, w that of their authors for these data or the nearest, RAE-GP 1e-3 for the "
        f"Jacobian's; WAE has beta = {weights['wae-mmd']:g}, its authors'.",
    )


def _weighed(name: str, weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of the codes' term, where it is of the data's size."""
    return {"beta": weights[name]} if name in weights else {}


def _of_codes(w: float, dims: int, codes: int) -> float:
    """What weighs |z|^2 / 2 beside a squared error that is summed: see the preset rae."""
    return 2 * w * dims / codes


MNIST = {"wae-mmd": 200.0, "rae": _of_codes(5e-4, 784, 16), "rae-gp": _of_codes(1e-4, 784, 16)}
CELEBA = {"wae-mmd": 500.0, **dict.fromkeys(("rae", "rae-gp"), _of_codes(1e-4, 12_288, 64))}
# as many numbers for each code
CELEBA_HQ = {"wae-mmd": 500.0, **dict.fromkeys(("rae", "rae-gp"), _of_codes(1e-4, 49_152, 256))}


EXPERIMENTS: dict[str, Experiment] = {
    "takida-mnist": _systems(
        "MNIST",
        ("table4", "table5", "table7"),
        *("idx:mnist", "takida-mnist", 16, 100, 1e-3, MNIST, ("vae-logistic-mixture",)),
    ),
    "takida-celeba": _systems(
        "CelebA",
        ("table4", "table5", "table7"),
        *("celeba140:celeba", "takida-faces", 64, 70, 2e-4, CELEBA, ("vae-bernoulli",)),
    ),
    "takida-celeba-hq": _systems(
        "CelebA-HQ",
        ("table6", "table7"),
        *("celeba-hq:celeba-hq", "takida-faces", 256, 70, 2e-4, CELEBA_HQ, ("vae-bernoulli",)),
    ),
    "takida-time": Experiment(
        title="Seconds for an epoch of every system",
        source=f"{SOURCE}, figure 2 (numbers are not printed)",
        rows=[Row(name, label, {"preset": name}) for name, label in SYSTEMS.items()],
        columns=(Column("seconds", "s / epoch", "training_time", "seconds_per_epoch", ".3f"),),
        settings={
            "network": "takida-mnist",
            "latent_dim": 16,
            "stage1": {"epochs": 3, "batch_size": 64},
            "stage2": {"epochs": 0},
        },
        data="idx:mnist",
        kind="image",
        cost="3 epochs each, an hour a run on a CPU",
        notes="The median of stage 1's epochs but the first, metrics and checkpoints included. "
        "Nothing else should run meanwhile.",
    ),
    "takida-smoothness": Experiment(
        title="What the decoder's variance does to its smoothness",
        source=f"{SOURCE}, table 1",
        rows=[row for variance in X_VARIANCES for row in _fixed_x(variance)],
        columns=SMOOTHNESS,
        settings=SMALL,
        data="idx:mnist",
        kind="image",
        papers=("takida", "table1"),
        figures=("curves",),
        axis="sigma_x²",
        log_axis=True,
        cost="200 epochs each, hours a run on a CPU",
        notes="The start of the learned sigma_z² is not said in the paper; here it is 0.1. A "
        "deterministic code has no mutual information of that kind.",
    ),
    "takida-encoder-variance": Experiment(
        title="What a fixed variance of the encoder does to the smoothness of the decoder",
        source=f"{SOURCE}, appendix E, table 8",
        rows=[
            Row(
                f"variance-{variance:.3g}",
                f"sigma_z² = {variance:.3g}",
                {
                    "preset": "mle-iso-i",
                    "posterior": "fixed",
                    "posterior_variance": variance,
                },
                procedure="train only",
                value=variance,
            )
            for variance in Z_VARIANCES
        ],
        columns=SMOOTHNESS,
        settings=SMALL,
        data="idx:mnist",
        kind="image",
        papers=("takida", "tableE8"),
        figures=("curves",),
        axis="sigma_z²",
        log_axis=True,
        cost="200 epochs each, hours a run on a CPU",
    ),
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
        notes="S are the images of the lower half of the classes (of the first factor, in a set "
        "without classes), B the others; U and L the upper and lower half of the pixels. * marks "
        "what the objective can tell apart in theory. The last columns subtract the same "
        "objective's variance on the same part of the clean data: 0.1 or 0.01 is wanted where "
        "there is noise, 0 elsewhere. Stopped at the best ELBO of held-out images, whose weights "
        "are kept; variances are of the training set.",
    ),
}
