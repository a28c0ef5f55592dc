"""The table of diagnostics: a row here is computed, printed, drawn, listed and chosen by name.

Statistics of the encoder and of the aggregate posterior are taken over the training split: they
need many samples, and are what the table of `vaekern train` says. What is made is compared with the
test split where it is large enough. All others are of the test split.
"""

from __future__ import annotations

from vaekern.evaluation.generation import IMAGES
from vaekern.training.evaluation import (
    disentanglement,
    generation,
    latents,
    likelihood,
    needs,
    orthogonality,
    smoothness,
)
from vaekern.training.evaluation.row import Diagnostic, Line
from vaekern.training.evaluation.subject import ENCODED

DIAGNOSTICS: tuple[Diagnostic, ...] = (
    Diagnostic(
        "importance_weighted_nll",
        "likelihood",
        "bound on -log p(x) with 500 importance samples",
        likelihood.importance_weighted_nll,
        "test",
        500,
        lines=(
            Line(
                "-log p(x) <=, k = {k}",
                "{nll:.2f}",
                "nats",
                "± {nll_standard_error:.2f}; {nll_per_dim:.4f} per dim",
            ),
            Line(
                "negative ELBO, k = 1",
                "{negative_elbo:.2f}",
                "nats",
                "± {negative_elbo_standard_error:.2f}; {negative_elbo_per_dim:.4f} per dim",
            ),
        ),
        notes=("{note}",),
        needs=(
            needs.stochastic,
            needs.likelihood,
        ),
    ),
    Diagnostic(
        "reconstruction_losses",
        "likelihood",
        "squared error: what the mean misses and what the noise adds",
        likelihood.reconstruction_losses,
        "test",
        1000,
        lines=(
            Line("squared error", "{total_per_dim:.5f}", "per dim", "E |Dec(z) - x|^2 / D"),
            Line("  missed by the mean", "{deterministic_per_dim:.5f}", "per dim", "z = mu(x)"),
            Line(
                "  added by the noise",
                "{stochastic_per_dim:.5f}",
                "per dim",
                "linearized decoder: {linearized_per_dim:.5f}",
            ),
        ),
        needs=(needs.diagonal,),
    ),
    Diagnostic(
        "frechet_distances",
        "generation",
        "FID (with --inception) or FD of samples, reconstructions, interpolations",
        generation.frechet_distances,
        "train",
        IMAGES,
        lines=generation.frechet_lines(),
        notes=("in {extractor}; preprocessing: {preprocessing}; {dtype}", "{note}"),
        needs=(needs.features,),
    ),
    Diagnostic(
        "kernel_distances",
        "generation",
        "KID (with --inception) or KD of the same",
        generation.kernel_distances,
        "train",
        IMAGES,
        lines=generation.sample_lines("{metric}", "{{{name}:.5f}}", "{{{name}_subsets}}"),
        needs=(needs.features, needs.torchmetrics),
    ),
    Diagnostic(
        "precision_recall",
        "generation",
        "how much of what is made looks real, and of what is real can be made",
        generation.precision_recall,
        "train",
        IMAGES,
        lines=generation.sample_lines(
            "precision", "{{{name}_precision:.3f}}", "recall: {{{name}_recall:.3f}}"
        ),
        needs=(needs.features,),
    ),
    Diagnostic(
        "active_units",
        "latents",
        "latent dimensions in use, by three definitions",
        latents.active_units,
        "train",
        ENCODED,
        lines=(
            Line("active units (Dai & Wipf)", "{posterior} of {latent_dim}", "", "E sigma^2 < 0.5"),
            Line("active units (Rolinek)", "{std} of {latent_dim}", "", "Std mu > 0.5"),
            Line("active units (Burda)", "{variance} of {latent_dim}", "", "Var mu > 0.01"),
        ),
    ),
    Diagnostic(
        "encoder_variance_spectrum",
        "latents",
        "mean encoder variances of used and unused dimensions",
        latents.encoder_variance_spectrum,
        "train",
        ENCODED,
        lines=(
            Line(
                "E sigma^2, used",
                "{active_lowest:.2g} to {active_highest:.2g}",
                "",
                "converged: near 0",
            ),
            Line(
                "E sigma^2, unused",
                "{passive_lowest:.2g} to {passive_highest:.2g}",
                "",
                "converged: 1",
            ),
        ),
        needs=(
            needs.stochastic,
            needs.gaussian,
        ),
    ),
    Diagnostic(
        "encoder_variance_histogram",
        "latents",
        "dimension of the manifold on which the data lie",
        latents.encoder_variance_histogram,
        "train",
        ENCODED,
        lines=(
            Line(
                "manifold dimension",
                "{manifold_dimension:.1f}",
                "",
                "mean count, sigma^2(x) < 0.5",
            ),
        ),
        figures={"encoder_variance_histogram.png": latents.draw_variance_histogram},
        needs=(
            needs.stochastic,
            needs.gaussian,
        ),
    ),
    Diagnostic(
        "polarized_regime",
        "latents",
        "Delta_KL: whether each dimension is either precise or noise",
        latents.polarized_regime,
        "train",
        ENCODED,
        lines=(
            Line("KL(q(z|x) || p(z))", "{kl:.2f}", "nats"),
            Line("Delta_KL", "{delta_kl:.1%}", "", "polarized: below 3%"),
        ),
        needs=(
            needs.stochastic,
            needs.diagonal,
        ),
    ),
    Diagnostic(
        "mutual_information",
        "latents",
        "bounds on the information that a code carries about its input",
        latents.mutual_information,
        "train",
        ENCODED,
        lines=(
            Line(
                "I(x; z)",
                "{lower:.2f} to {upper:.2f}",
                "nats",
                "bounds; lower <= log n = {log_n:.2f}",
            ),
            Line(
                "I(x; z) (Takida)",
                "{leave_one_out:.2f}",
                "nats",
                "no bound; as in their tables",
            ),
        ),
        needs=(
            needs.stochastic,
            needs.diagonal,
        ),
    ),
    Diagnostic(
        "maximum_mean_discrepancy",
        "latents",
        "distance of q(z) and q(u) from the prior",
        latents.maximum_mean_discrepancy,
        "train",
        5000,
        lines=(
            Line(
                "MMD^2, q(z) to prior",
                "{z:.5f}",
                "",
                "± {z_error:.5f}; prior to itself: ± {prior:.5f}",
            ),
            Line("MMD^2, q(u) to prior", "{u:.5f}", "", "± {u_error:.5f}; stage 2"),
        ),
    ),
    Diagnostic(
        "latent_spectrum",
        "latents",
        "singular values of samples of q(z) and q(u) beside those of the prior",
        latents.latent_spectrum,
        "train",
        ENCODED,
        lines=(
            Line(
                "singular values of q(z)",
                "{z_lowest:.2f} to {z_highest:.2f}",
                "",
                "prior: {prior_lowest:.2f} to {prior_highest:.2f} (/ sqrt n)",
            ),
            Line("singular values of q(u)", "{u_lowest:.2f} to {u_highest:.2f}", "", "stage 2"),
        ),
        figures={"latent_spectrum.png": latents.draw_latent_spectrum},
    ),
    Diagnostic(
        "codes_tsne",
        "latents",
        "picture: t-SNE of samples of q(z) and of the prior",
        latents.codes_tsne,
        "train",
        1500,
        figures={"codes_tsne.png": latents.draw_codes},
    ),
    Diagnostic(
        "decoder_orthogonality",
        "orthogonality",
        "distance to orthogonality (DtO) of the decoder's Jacobian",
        orthogonality.decoder_orthogonality,
        "test",
        1000,
        lines=(
            Line(
                "DtO, all {latent_dim} dims",
                "{full:.3f}",
                "",
                "± {full_standard_error:.3f}; random rotation: {random:.3f}",
            ),
            Line(
                "DtO, {active_dim} active dims",
                "{active:.3f}",
                "",
                "± {active_standard_error:.3f}; random rotation: {random_active:.3f}",
            ),
            Line(
                "mean |cos| of columns",
                "{off_diagonal:.3f}",
                "",
                "orthogonal: 0; random: {random_off_diagonal:.3f}",
            ),
        ),
        figures={
            "orthogonality.png": orthogonality.draw_orthogonality,
            "singular_value_gaps.png": orthogonality.draw_gaps,
        },
    ),
    Diagnostic(
        "column_norm_product",
        "orthogonality",
        "product of the active columns' norms over their volume",
        orthogonality.column_norm_product,
        "test",
        1000,
        lines=(
            Line(
                "column norms / volume",
                "{ratio:.4g}",
                "",
                "orthogonal: 1; rotated: {rotated:.4g}",
            ),
        ),
        needs=(needs.active_dimension,),
    ),
    Diagnostic(
        "directional_variance",
        "orthogonality",
        "decoded variance along used and unused directions of the encoder",
        orthogonality.directional_variance,
        "test",
        200,
        lines=(
            Line(
                "decoded variance, used",
                "{active:.2g}",
                "per dim",
                "where sigma^2(x) < 0.5",
            ),
            Line("decoded variance, unused", "{passive:.2g}", "per dim", "converged: 0"),
        ),
        figures={"directional_variance.png": orthogonality.draw_directions},
        needs=(
            needs.stochastic,
            needs.gaussian,
        ),
    ),
    Diagnostic(
        "expected_local_smoothness",
        "smoothness",
        "mean squared norm of the decoder's Jacobian (ELS)",
        smoothness.expected_local_smoothness,
        "test",
        1000,
        lines=(
            Line(
                "E |J|^2 (ELS)",
                "{smoothness:.3f}",
                "",
                "/ d, as Takida et al.: {per_dimension:.4f}",
            ),
        ),
    ),
    Diagnostic(
        "expected_gap",
        "smoothness",
        "squared distance of two noisy decodings of a code",
        smoothness.expected_gap,
        "test",
        1000,
        lines=tuple(
            Line(
                f"gap, s^2 = {{{place}_noise_variance:g}}",
                f"{{{place}_gap:.5f}}",
                "",
                f"/ 2 s^2: {{{place}_smoothness:.3f}} (linear: ELS)",
            )
            for place in smoothness.NOISE_VARIANCES
        ),
    ),
    Diagnostic(
        "perturbed_codes",
        "smoothness",
        "picture: decoded neighbours of four codes",
        smoothness.perturbed_codes,
        "test",
        smoothness.PICTURES,
        figures={"perturbed_codes.png": smoothness.draw_perturbed_codes},
        needs=(needs.images,),
    ),
    Diagnostic(
        "interpolation_strips",
        "smoothness",
        "picture: what lies between the codes of two test images",
        smoothness.interpolation_strips,
        "test",
        2 * smoothness.PAIRS,
        figures={"interpolation_strips.png": smoothness.draw_interpolation_strips},
        needs=(needs.images,),
    ),
    Diagnostic(
        "disentanglement_score",
        "disentanglement",
        "whether each factor of variation has a latent dimension of its own",
        disentanglement.disentanglement_score,
        "test",
        5000,
        lines=(
            Line("score, Rolinek et al.", "{knn:.3f}", "", "0 to 1; by nearest neighbours"),
            Line("mutual information gap", "{mig:.3f}", "", "0 to 1; Chen et al., 20 bins"),
        ),
        notes=("{note}",),
        needs=(needs.factors,),
    ),
    Diagnostic(
        "latent_traversals",
        "disentanglement",
        "picture: one latent dimension moved after the other",
        disentanglement.latent_traversals,
        "train",
        ENCODED,
        figures={"latent_traversals.png": disentanglement.draw_traversals},
        needs=(
            needs.stochastic,
            needs.diagonal,
        ),
    ),
)
