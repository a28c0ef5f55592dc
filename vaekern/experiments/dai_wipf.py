"""The tables and figures of Dai & Wipf 2019, "Diagnosing and Enhancing VAE Models"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vaekern.experiments.experiment import Column, Experiment, Row

SOURCE = "Dai & Wipf 2019, Diagnosing and Enhancing VAE Models"

FD = Column("samples", "{frechet} of samples", "frechet_distances", "{sampler}", ".2f")
RECONSTRUCTIONS = Column(
    "reconstructions", "{frechet} of reconstructions", "frechet_distances", "reconstructions", ".2f"
)

#: Network and optimiser of tables 1, 2 and 4 and of figure 4.
NEUTRAL = {
    "network": "infogan",
    "latent_dim": 64,
    "second_width": 1024,
    "stage1": {"epochs": 400, "halve_every": 150, "batch_size": 100, "lr": 1e-4},
    "stage2": {"epochs": 800, "halve_every": 300, "batch_size": 100, "lr": 1e-4},
}
SYSTEMS = {
    "vae-bernoulli": "VAE, cross-entropy",
    "vae-fixed": "VAE, fixed gamma",
    "vae-learned": "VAE, learned gamma",
    "vae-planar-flow": "VAE + flow",
    "wae-mmd": "WAE-MMD",
}


#: What WAE-MMD weighs its MMD with in its authors' code, for pixels between 0 and 1.
WAE_MNIST, WAE_CELEBA = {"beta": 200.0}, {"beta": 500.0}
WAE_NOTE = (
    "The paper does not say how it weighed WAE's MMD: here as WAE's authors did on {}, beta = {:g} "
    "for the squared error of pixels between 0 and 1."
)


def _systems(*names: str, wae: Mapping[str, float]) -> tuple[Row, ...]:
    return tuple(
        Row(name, SYSTEMS[name], {"preset": name} | (dict(wae) if name == "wae-mmd" else {}))
        for name in names
    )


def _two_stage(
    name: str = "two-stage", run: str = "vae-learned", label: str = "2-stage VAE", **more: Any
) -> Row:
    """The row whose samples are the second stage's, of the runs with a learned gamma."""
    return Row(name, label, keys={"stage": 2, "sampler": "second-stage"}, run=run, **more)


def _sweep() -> Iterator[Row]:
    for kappa in (2, 4, 8, 16, 32, 64, 128):
        for preset in ("vae-bernoulli", "vae-fixed", "vae-learned", "wae-mmd"):
            yield Row(
                f"{preset}-{kappa}",
                f"{SYSTEMS[preset]}, kappa = {kappa}",
                {"preset": preset, "latent_dim": kappa}
                | (dict(WAE_MNIST) if preset == "wae-mmd" else {}),
                group=SYSTEMS[preset],
                value=kappa,
            )
        yield _two_stage(
            f"two-stage-{kappa}",
            f"vae-learned-{kappa}",
            f"2-stage VAE, kappa = {kappa}",
            group="2-stage VAE",
            value=kappa,
        )


EXPERIMENTS: dict[str, Experiment] = {
    "dai-wipf": Experiment(
        title="The two-stage VAE beside other autoencoders, on one network",
        source=f"{SOURCE}, tables 1, 2 and 4",
        rows=(*_systems(*SYSTEMS, wae=WAE_MNIST), _two_stage()),
        columns=(
            FD,
            Column(
                "kid", "{kernel} of samples x 1000", "kernel_distances", "{sampler}", ".2f", 1e3
            ),
            Column("mmd1", "MMD² of q(z)", "report", "mmd_stage1", ".4f"),
            Column("mmd2", "MMD² of q(u)", "report", "mmd_stage2", ".4f"),
        ),
        settings=NEUTRAL,
        data="idx:mnist",
        kind="image",
        papers=("dai_wipf", "table1", "table2", "table4"),
        cost="400 + 800 epochs each, a day a run on a CPU",
        notes="The paper does not say which flow it used, nor which kernel its MMD has. "
        + WAE_NOTE.format("MNIST", WAE_MNIST["beta"]),
    ),
    "dai-wipf-wae": Experiment(
        title="The two-stage VAE on the network of the Wasserstein autoencoder",
        source=f"{SOURCE}, table 3",
        rows=(*_systems("vae-learned", "wae-mmd", wae=WAE_CELEBA), _two_stage()),
        columns=(FD,),
        settings={
            "network": "wae",
            "latent_dim": 64,
            "second_width": 1024,
            "stage1": {"epochs": 70, "halve_every": 30, "batch_size": 64, "lr": 1e-4},
            "stage2": {"epochs": 70, "halve_every": 30, "batch_size": 64, "lr": 1e-4},
        },
        data="celeba140:celeba",
        kind="image",
        papers=("dai_wipf", "table3"),
        cost="70 + 70 epochs of 64x64 images, for a GPU",
        notes="Epochs and rates are those of the authors' code for this network. "
        + WAE_NOTE.format("CelebA", WAE_CELEBA["beta"]),
    ),
    "dai-wipf-kappa": Experiment(
        title="How much the number of latent dimensions matters",
        source=f"{SOURCE}, figure 4 (numbers are not printed)",
        rows=tuple(_sweep()),
        columns=(RECONSTRUCTIONS, FD),
        settings=NEUTRAL,
        data="idx:fashion-mnist",
        kind="image",
        figures=("curves",),
        axis="latent dimensions",
        log_axis=True,
        notes=WAE_NOTE.format("MNIST", WAE_MNIST["beta"]),
        cost="400 + 800 epochs each, a day a run on a CPU",
    ),
    "dai-wipf-joint": Experiment(
        title="Both stages trained one after the other, or at once",
        source=f"{SOURCE}, section 4 (in words)",
        rows=(
            Row("vae-learned", "stage 1 alone", {"preset": "vae-learned"}),
            _two_stage(),
            Row(
                "fused",
                "at once, fused into one VAE",
                {"preset": "vae-learned"},
                keys={"stage": 2, "sampler": "second-stage"},
                procedure="train fused",
            ),
            Row(
                "merged",
                "at once, with both losses",
                {"preset": "vae-learned"},
                keys={"stage": 2, "sampler": "second-stage"},
                procedure="train merged",
            ),
        ),
        columns=(
            FD,
            Column("mmd", "MMD² to the prior", "report", "mmd_stage{stage}", ".4f"),
        ),
        settings=NEUTRAL,
        data="idx:mnist",
        kind="image",
        figure_columns=("samples",),
        cost="400 + 800 epochs each, a day a run on a CPU; minutes with --data digits",
        notes="The paper says that joint training is no better than stage 1 alone.",
    ),
}
