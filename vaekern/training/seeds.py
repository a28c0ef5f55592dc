"""Seeds of a run's many random streams."""

from __future__ import annotations

import numpy as np


def derived_seed(*words: int) -> int:
    """A seed from several numbers, unrelated to that of any other numbers."""
    # The count makes (1,) and (1, 0) differ: numpy takes a missing word for a zero.
    return int(
        np.random.SeedSequence([*words, len(words)]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
