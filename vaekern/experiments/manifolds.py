"""Does the VAE find the dimension of the data? Images of a Gaussian in R^r, for known r."""

from __future__ import annotations

from vaekern.experiments.experiment import Column, Experiment, Row

DIMENSIONS = (2, 5, 10)
KAPPA = 20

EXPERIMENTS: dict[str, Experiment] = {
    "manifolds": Experiment(
        title="Manifolds of known dimension, with 20 latent dimensions",
        source="The claims of Dai & Wipf 2019, Diagnosing and Enhancing VAE Models, sections 3 and "
        "4 (theorems 4 and 5), on smooth injective images of a Gaussian in R^r",
        rows=tuple(Row(f"r-{r}", f"r = {r}", data=f"{{data}}:{r}") for r in DIMENSIONS),
        columns=(
            Column("dimensions", "variances < 1/2", "encoder_variance_spectrum", "active", ".1f"),
            Column(
                "used", "largest of these", "encoder_variance_spectrum", "active_highest", ".4f"
            ),
            Column(
                "unused", "smallest other", "encoder_variance_spectrum", "passive_lowest", ".2f"
            ),
            Column("sigma", "sigma, from 1", "report", "sigma", ".4f"),
            Column("mse", "MSE per pixel", "report", "mse", ".1e"),
            Column("mmd1", "MMD² of q(z)", "report", "mmd_stage1", ".5f"),
            Column("mmd2", "MMD² of q(u)", "report", "mmd_stage2", ".5f"),
        ),
        settings={
            "preset": "two-stage",
            "network": "mlp",
            "latent_dim": KAPPA,
            "threads": 1,
            "stage1": {
                "epochs": 120,
                "batch_size": 100,
                "lr": 1e-3,
                "halve_every": 80,
                "variance_lr": 1e-3,
            },
            "stage2": {"epochs": 60, "batch_size": 100, "lr": 1e-3, "halve_every": 40},
        },
        data="manifold-images",
        figure_columns=("dimensions", "mmd1", "mmd2"),
        cost="four minutes a run on an idle core",
        notes="The variances are those of the encoder, averaged over the training images; sigma is "
        "the decoder's. sigma^2 falls as fast as its own learning rate lets it "
        "(stage1.variance_lr) and should not outrun the networks: once it is down at the error "
        "that they make with r dimensions, the others are used for that error. With r = 2 that "
        "began at sigma = 0.009: of a run of 300 epochs (halve_every 200), 225 left sigma at "
        "0.001 and all 20 dimensions in use.",
    ),
}
