"""Both stages trained at once, the ablation of Dai & Wipf, section 4: it is not the two-stage VAE.

There are two ways. *Fused*, the two encoders follow one another and so do the decoders: one VAE
with the latents u. *Merged*, the losses of the two stages are added, and the second's gradient
reaches the first's encoder through z.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vaekern import functional
from vaekern.experiments.trained import Show, Trained
from vaekern.models import TwoStageVAE
from vaekern.models.batch_norm import fit_batch_norm
from vaekern.nn import X_LOGVAR_MIN
from vaekern.storage.files import write_atomically
from vaekern.storage.tensors import save_tensors
from vaekern.training.config import TrainConfig
from vaekern.training.run import TrainingRun
from vaekern.training.run_directory import MODEL
from vaekern.training.scores import compute_scores
from vaekern.training.seeds import derived_seed
from vaekern.training.sources import Images
from vaekern.training.state import Position
from vaekern.training.step import make_optimizer

Loss = Callable[[TwoStageVAE, Tensor, torch.Generator], Tensor]


def fused_loss(model: TwoStageVAE, x: Tensor, noise: torch.Generator) -> Tensor:
    r"""The negative ELBO of one VAE whose encoder and decoder are those of both stages in a row.

    .. math:: -E_{q(u|x)} \log p(x | u) + KL(q(u|x) \| N(0, I)), \qquad
        q(u|x) = q_2(u \,|\, \mu_1(x)), \quad p(x|u) = p_1(x \,|\, \hat z_2(u))
    """
    mu_z, _ = model.stage1.encode(x)
    mu, logvar = model.stage2.encode(mu_z)
    u = functional.reparameterize(mu, logvar, generator=noise)
    x_hat = model.stage1.decoder(model.stage2.decode(u))
    return model.stage1.loss.components(x_hat, x, mu, logvar).loss


def merged_loss(model: TwoStageVAE, x: Tensor, noise: torch.Generator) -> Tensor:
    r"""The losses of both stages added, each with its KL.

    .. math:: L_1(x) + L_2(z), \qquad z \sim q_1(z|x)
    """
    mu, logvar = model.stage1.encode(x)
    z = functional.reparameterize(mu, logvar, generator=noise)
    first = model.stage1.loss.components(model.stage1.decoder(z), x, mu, logvar).loss
    return first + model.stage2(z, generator=noise).loss


def _train(config: TrainConfig, show: Show, *, loss: Loss, numbers: str) -> Trained:
    """Train both stages at once for stage 1's epochs; started anew where it was stopped.

    The run directory holds the weights as those of a two-stage model, and in metrics.json only the
    numbers that mean something: all those that end in `numbers`.
    """
    run = TrainingRun(config, resume=True)
    try:
        run.start()
        model, stage = run.model, config.stage1
        images = Images(run.data.train, run.device)
        noise = torch.Generator(run.device)
        noise.manual_seed(derived_seed(config.run.seed, 0))
        optimizers = [make_optimizer(vae, stage) for vae in (model.stage1, model.stage2)]
        rates = [[group["lr"] for group in each.param_groups] for each in optimizers]
        began, size = time.monotonic(), min(stage.batch_size, len(images))
        model.train()
        for epoch in range(stage.epochs):
            for optimizer, own in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, own, strict=True):
                    group["lr"] = rate * stage.lr_factor(epoch)
            order = torch.randperm(
                len(images),
                generator=torch.Generator().manual_seed(derived_seed(config.run.seed, 1, epoch)),
            )
            for rows in order[: len(order) // size * size].split(size):
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                value = loss(model, images.batch(rows, noise), noise)
                value.backward()  # type: ignore[no-untyped-call]
                for optimizer in optimizers:
                    optimizer.step()
            if not bool(torch.isfinite(value)):
                raise RuntimeError(f"the loss became infinite or NaN in epoch {epoch + 1}")
        seconds = time.monotonic() - began
        with torch.no_grad():
            batches = (rows for rows in torch.arange(len(images)).split(size) if len(rows) > 1)
            fit_batch_norm(
                model, batches, lambda rows: loss(model, images.batch(rows, noise), noise)
            )
            if loss is fused_loss:  # nothing is drawn between its decoders
                for parameter in model.stage2.loss.parameters():
                    parameter.fill_(X_LOGVAR_MIN)
        _write(run, numbers)
    finally:
        run.close()
    show(f"stage 1 and 2 together, {stage.epochs} epochs")
    return Trained(seconds, stage.epochs, ())


def _write(run: TrainingRun, numbers: str) -> None:
    generator = torch.Generator(run.device)
    generator.manual_seed(derived_seed(run.config.run.seed, 2, 3))
    train = run.model.eval().posterior(run.data.train)
    found = compute_scores(
        run.model,
        run.data,
        train,
        two_stages=True,
        seed=run.config.run.seed,
        generator=generator,
    )
    kept = {name: value for name, value in found.items() if name.endswith(numbers)}
    position = dataclasses.asdict(Position(stage=2))
    save_tensors(run.directory.model, run.model.state_dict(), MODEL, position)
    write_atomically(run.directory.metrics, json.dumps(kept, indent=2) + "\n")


train_fused = functools.partial(_train, loss=fused_loss, numbers="none")
train_merged = functools.partial(_train, loss=merged_loss, numbers="")
