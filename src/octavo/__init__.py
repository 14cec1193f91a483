"""octavo quantizes trained PyTorch networks into small files, which load back bit for bit. Weights
become powers of two, or sums of two of them, with or without retraining.

A public name is imported when it is first used, so that ``import octavo`` and ``octavo --help`` do
not wait for torch (PEP 562).
"""

from typing import TYPE_CHECKING

from octavo.errors import (
    BudgetError,
    ExportError,
    FormatError,
    OctavoError,
    PlanError,
    RecipeError,
    TrainingError,
)

if TYPE_CHECKING:
    from octavo.activations.quantization import quantize_activations
    from octavo.activations.quantizer import remove_quantizers
    from octavo.compression import compress
    from octavo.deploy.exporting import export
    from octavo.dnq.search_result import SearchResult
    from octavo.dnq.searching import search
    from octavo.dnq.settings import METHODS
    from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
    from octavo.formats.width import Apot, Width
    from octavo.inq.incremental import Incremental
    from octavo.inq.stage import Stage
    from octavo.inspection import Inspection, inspect
    from octavo.network.kinds import register_layer
    from octavo.plan import Budget, Cost, Plan
    from octavo.pruning.masks import fold_masks
    from octavo.pruning.surgery import Surgery
    from octavo.ptq.calibration import calibrate
    from octavo.runs.task import Task
    from octavo.storage.packed import Packed, verify
else:
    _HOMES = {  # the module of each public name that is imported when it is first used
        "METHODS": "octavo.dnq.settings",
        "Apot": "octavo.formats.width",
        "Budget": "octavo.plan",
        "Cost": "octavo.plan",
        "Incremental": "octavo.inq.incremental",
        "Inspection": "octavo.inspection",
        "Packed": "octavo.storage.packed",
        "Plan": "octavo.plan",
        "PowerOfTwo": "octavo.formats.powers_of_two",
        "SearchResult": "octavo.dnq.search_result",
        "Stage": "octavo.inq.stage",
        "Surgery": "octavo.pruning.surgery",
        "Task": "octavo.runs.task",
        "Width": "octavo.formats.width",
        "calibrate": "octavo.ptq.calibration",
        "compress": "octavo.compression",
        "export": "octavo.deploy.exporting",
        "fold_masks": "octavo.pruning.masks",
        "inspect": "octavo.inspection",
        "power_of_two": "octavo.formats.powers_of_two",
        "quantize_activations": "octavo.activations.quantization",
        "register_layer": "octavo.network.kinds",
        "remove_quantizers": "octavo.activations.quantizer",
        "search": "octavo.dnq.searching",
        "verify": "octavo.storage.packed",
    }

    def __getattr__(name):
        """Import a public name from its module, and keep it for the next time."""
        if name not in _HOMES:
            raise AttributeError(f"module 'octavo' has no attribute {name!r}")
        from importlib import import_module

        globals()[name] = getattr(import_module(_HOMES[name]), name)
        return globals()[name]

    def __dir__():
        """Return all names, also the public ones that were not imported yet."""
        return sorted({*globals(), *__all__})


__version__ = "0.2.0.dev0"

__all__ = [
    "METHODS",
    "Apot",
    "Budget",
    "BudgetError",
    "Cost",
    "ExportError",
    "FormatError",
    "Incremental",
    "Inspection",
    "OctavoError",
    "Packed",
    "Plan",
    "PlanError",
    "PowerOfTwo",
    "RecipeError",
    "SearchResult",
    "Stage",
    "Surgery",
    "Task",
    "TrainingError",
    "Width",
    "calibrate",
    "compress",
    "export",
    "fold_masks",
    "inspect",
    "power_of_two",
    "quantize_activations",
    "register_layer",
    "remove_quantizers",
    "search",
    "verify",
]
