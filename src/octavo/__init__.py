"""octavo folds neural networks into powers of two: same accuracy, a file that really shrinks, exact
on reload.
"""

from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import remove_quantizers
from octavo.compression import compress
from octavo.deploy.exporting import export
from octavo.dnq.searching import METHODS, SearchResult, search
from octavo.errors import (
    BudgetError,
    ExportError,
    FormatError,
    OctavoError,
    PlanError,
    RecipeError,
    TrainingError,
)
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.formats.width import Apot
from octavo.inq.incremental import Incremental, Stage
from octavo.inspection import Inspection, inspect
from octavo.plan import Budget, Cost, Plan
from octavo.pruning.masks import fold_masks
from octavo.pruning.surgery import Surgery
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed, verify

__version__ = "0.1.0"

__all__ = [
    "METHODS", "Apot", "Budget", "BudgetError", "Cost", "ExportError", "FormatError", "Incremental", "Inspection", "OctavoError",
    "Packed", "Plan", "PlanError", "PowerOfTwo", "RecipeError", "SearchResult", "Stage", "Surgery", "TrainingError", "calibrate",
    "compress", "export", "fold_masks", "inspect", "power_of_two", "quantize_activations", "remove_quantizers", "search",
    "verify",
]  # fmt: skip
