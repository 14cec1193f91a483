"""The methods of a search by name, and the defaults of its settings.

Nothing is imported here, so that the command line can show them without waiting for torch.
"""

__all__ = [
    "FINER_OPTIONS",
    "METHOD",
    "METHODS",
    "OBJECTIVES",
    "OPTIONS",
    "REFINE",
    "TRIALS",
]

METHODS = ("dnq", "exact", "greedy", "tpe", "cmaes", "evolution", "random", "uniform")
OBJECTIVES = ("divergence", "task")  # of the command line and of recipes; "divergence" by default

METHOD = "dnq"
REFINE = 0.0  # the last share of the trials, which goes to refinement
TRIALS = 512  # plans that may be measured, those of single layers included
# The widths that a layer may get. Powers of two are too coarse for transformers and recurrent
# networks at any number of bits: see octavo.dnq.survey.default_options.
OPTIONS = (2, 3, 4, 5)
FINER_OPTIONS = (2, 3, 4, "fp4", "fp6", "int8")
