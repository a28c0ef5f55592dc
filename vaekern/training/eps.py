"""The eps of the MLE objectives, which may start large and fall."""

from __future__ import annotations

import math
from typing import Any

from vaekern.training.schedule_config import EpsConfig

HOLD, FALL = 1 / 3, 2 / 3  # of the schedule eps stays where it starts; of stage 1 it takes


class Eps:
    r"""What each step of a stage adds inside the logarithm of an MLE objective.

    .. math:: \epsilon(t) = \epsilon_0 \Big( \frac{\epsilon}{\epsilon_0} \Big)^{s},
              \quad s = \mathrm{clamp}\Big( \frac{t / T - 1/3}{2/3}, 0, 1 \Big)

    With one draw of z the objective of diag-d is :math:`\tfrac12 \sum_i \log(r_i^2 + \epsilon)`,
    which a decoder lowers fastest by copying, for every pixel, its commonest value: it collapses,
    and nothing leads out again. Where :math:`r^2 < \epsilon` the logarithm is convex, close to the
    loss :math:`r^2 / \epsilon` of a Gaussian: from a large eps on the decoder learns where it
    should go before eps falls (graduated non-convexity, as for other robust losses). For values
    between 0 and 1 0.3 was found to be a good start; from 0.1 some runs collapse.

    Args:
        config: the settings.
        eps: where it ends.
        epochs: of the stage.
        steps: of an epoch.

    Example:
        >>> falling = Eps(EpsConfig(eps_start=0.1, eps_epochs=3), eps=1e-5, epochs=9, steps=10)
        >>> [falling.at(step) for step in (0, 10, 20, 30)]
        [0.1, 0.1, 0.001, None]

    Source: the objective, Takida et al. 2022, table 2; the schedule, Blake & Zisserman 1987, Visual
    Reconstruction.
    """

    def __init__(self, config: EpsConfig, eps: float, epochs: int, steps: int):
        self.start, self.end = config.eps_start, eps
        epochs = config.eps_epochs or math.ceil(FALL * epochs)
        self.settled = 0 if self.start is None else epochs * steps

    def at(self, step: int) -> float | None:
        """eps after so many steps; None from where on it is the loss's own."""
        if self.start is None or step >= self.settled:
            return None
        fallen = max(0.0, (step / self.settled - HOLD) / (1 - HOLD))
        return float(f"{self.start * (self.end / self.start) ** fallen:.6g}")

    def record(self, step: int) -> dict[str, Any]:
        """What metrics.jsonl says of it, where it moves."""
        if self.start is None:
            return {}
        found = self.at(step)
        return {"eps": self.end if found is None else found}

    def warning(self, epochs: int, steps: int) -> str | None:
        """One sentence where it does not end within the stage."""
        left = self.at(epochs * steps)
        if left is None:
            return None
        return (
            f"eps falls over {self.settled} steps and stage 1 has only {epochs * steps}: it ends "
            f"at {left:.3g} instead of {self.end:.3g}; lower --eps-epochs"
        )
