"""`vaekern evaluate`: every diagnostic that applies to a trained run, as a table and pictures."""

from vaekern.training.evaluation.catalogue import DIAGNOSTICS
from vaekern.training.evaluation.evaluating import Evaluation, evaluate
from vaekern.training.evaluation.outcome import Outcome
from vaekern.training.evaluation.row import Diagnostic, Found, Line

__all__ = ["DIAGNOSTICS", "Diagnostic", "Evaluation", "Found", "Line", "Outcome", "evaluate"]
