"""octavo folds neural networks into powers of two: same accuracy, a file that really shrinks, exact on reload."""

from octavo.activations import quantize_activations
from octavo.codebook import PowerOfTwo, power_of_two
from octavo.compression import compress
from octavo.errors import BudgetError, ExportError, FormatError, OctavoError, PlanError, RecipeError, TrainingError
from octavo.export import export
from octavo.incremental import Incremental, Stage
from octavo.inspection import Inspection, inspect
from octavo.oneshot import calibrate
from octavo.packed import Packed, verify
from octavo.plan import Budget, Cost, Plan
from octavo.prune import Surgery, fold_masks
from octavo.search import METHODS, SearchResult, search
from octavo.widths import Apot

__version__ = "0.1.0"

__all__ = [
    "METHODS", "Apot", "Budget", "BudgetError", "Cost", "ExportError", "FormatError", "Incremental", "Inspection", "OctavoError",
    "Packed", "Plan", "PlanError", "PowerOfTwo", "RecipeError", "SearchResult", "Stage", "Surgery", "TrainingError", "calibrate",
    "compress", "export", "fold_masks", "inspect", "power_of_two", "quantize_activations", "search", "verify",
]  # fmt: skip
