"""The numbers of a finished run as a table: its rows, and the text that ends a run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from vaekern.data import Dataset
from vaekern.training.config import TrainConfig


class Row(NamedTuple):
    """A name, a number as it is read, and as it is."""

    name: str
    text: str
    unit: str = ""
    value: float | None = None  # all digits of the number in `text`
    part: bool = False  # of the row above


def score_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """The rows of the table that ends a run, from the values in metrics.json."""
    rows: list[Row] = []
    if "nll_nats_per_dim" in metrics:
        name = metrics.get("nll_name", "NLL bound")
        rows.append(_row(f"{name}, test", metrics["nll_nats_per_dim"], "nats/dim"))
        rows.append(_row("of it KL", metrics["kl_nats_per_dim"], "nats/dim", part=True))
    elif "kl_nats" in metrics:
        rows.append(_row("KL, test", metrics["kl_nats"], "nats"))
    if "sigma" in metrics:
        rows.append(_row("sigma", metrics["sigma"]))
    rows.append(_row("MSE, test", metrics["mse"], "per dim"))
    units = "active_units" if "active_units" in metrics else "active_units_std"
    rows.append(
        Row("active units", f"{metrics[units]} of {metrics['latent_dim']}", value=metrics[units])
    )
    if "polarized_training_percent" in metrics:
        percent = metrics["polarized_training_percent"]
        share = f"below 3% in the last {percent:.1f}% of training" if percent else "polarized: < 3%"
        delta = metrics["delta_kl"]
        rows.append(Row("Delta_KL, training set", f"{delta:.1%}", share, delta))
    rows.append(_row("MMD^2 of q(z) to N(0, I)", metrics["mmd_stage1"], "stage 1"))
    if "mmd_stage2" in metrics:
        rows.append(_row("MMD^2 of q(u) to N(0, I)", metrics["mmd_stage2"], "stage 2"))
    if "fd_name" in metrics:
        name = metrics["fd_name"]
        rows.append(_row(f"{name} of reconstructions", metrics["fd_reconstructions"]))
        rows.append(_row(f"{name} of samples", metrics["fd_stage1"], "stage 1"))
        if "fd_stage2" in metrics:
            rows.append(_row(f"{name} of samples", metrics["fd_stage2"], "stage 2"))
        if "fd_test_images" in metrics:
            of = f"{metrics['fd_test_samples']} test images"
            rows.append(_row(f"{name} of {of}", metrics["fd_test_images"], "for scale"))
    return rows


def _row(name: str, value: float, unit: str = "", part: bool = False) -> Row:
    return Row(name, _digits(value), unit, value, part)


def _digits(value: float) -> str:
    """Four decimals, or digits that say something where these would not."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def score_note(metrics: Mapping[str, Any]) -> str:
    """What the Frechet distance of the table is; empty where there is none."""
    if "fd_name" not in metrics:
        return ""
    return (
        f"{metrics['fd_name']}: Frechet distance of as many made images to "
        f"{metrics['fd_samples']} training images, in the {metrics['fd_extractor']}; lower is "
        "better, and fewer images read higher"
    )


def make_table(metrics: Mapping[str, Any], config: TrainConfig, data: Dataset) -> str:
    """The short table that ends a run."""
    rows = [(f"{'  ' * row.part}{row.name}", row.text, row.unit) for row in score_rows(metrics)]
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{data.name}: {config.model.describe()}, {config.network.network}, "
        f"{config.network.latent_dim} latent dimensions"
    ]
    lines += [f"  {name:<{width}}  {text:>9}  {unit}".rstrip() for name, text, unit in rows]
    note = score_note(metrics)
    if note:
        lines += textwrap.wrap(f"({note})", 84, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)
