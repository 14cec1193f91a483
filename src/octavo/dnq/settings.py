"""The methods of a search by name, and the defaults of its settings.

Nothing is imported here, so that the command line can show them without waiting for torch.
"""

from typing import Literal, get_args

__all__ = ["METHOD", "METHODS", "OPTIONS", "TRIALS", "Method"]

Method = Literal["dnq", "exact", "greedy", "tpe", "cmaes", "random", "uniform"]
METHODS: tuple[str, ...] = get_args(Method)

METHOD: Method = "dnq"
TRIALS = 512  # plans that may be measured, those of single layers included
OPTIONS = (2, 3, 4, 5)  # bits that a layer may get
