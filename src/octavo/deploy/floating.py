"""The common part of the forms that compute in float32: their weights are exact, so their outputs
must be the network's.
"""

from octavo.deploy.checks import checked
from octavo.deploy.forms import FormFile, Job
from octavo.deploy.graph import Decode, close, trace
from octavo.errors import ExportError

__all__ = ["exported"]

# Limits on the differences between outputs, in units of the largest output.
LARGEST = 1e-4  # sums in another order come to less
# Where the network rounds activations, a value beside a tie may fall to either side, so that single
# outputs differ by a whole level: the mean is checked instead.
MEAN = 0.05


def exported(job: Job, decode: Decode) -> FormFile:
    """Make the ONNX file whose weights the nodes of ``decode`` compute, and check it.

    Raises:
        ExportError: the model cannot be exported, or the outputs differ.

    """
    layers = job.packed.layers
    batch = job.first_batch()
    graph = close(trace(job.model, layers, batch), layers, decode)
    data, comparison = checked(graph, job.model, layers, batch)
    if job.packed.activations:
        name = "mean"
        difference = comparison.mean
        limit = MEAN
    else:
        name = "largest"
        difference = comparison.largest
        limit = LARGEST
    if not difference <= limit:  # a NaN is not
        raise ExportError(
            f"{type(job.model).__name__}: ONNX Runtime's outputs are not PyTorch's: the {name} "
            f"difference is {difference:.1e} of the largest output, expected at most {limit:.0e}; "
            f"nothing was written"
        )
    return FormFile(data, comparison)
