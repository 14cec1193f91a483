"""The device that a user names, in a recipe or on the command line."""

import os

import torch

from octavo.errors import RecipeError

__all__ = ["AUTO", "available_devices", "device_named"]

AUTO = "auto"  # the default: a GPU that CUDA sees, or else where the task puts its network


def available_devices() -> list[str]:
    """Return the names of the devices of this machine that octavo runs on, the CPU first."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return names


def device_named(name: str) -> torch.device | None:
    """Return the device of a name; None if the network stays where its task puts it.

    ``cuda`` is the GPU whose number torchrun has given to this process, or else the first.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is ``cuda`` if there is one.

    Raises:
        RecipeError: this machine has no such device; the message names those that it has. Or it is
            Apple's ``mps``, which has no float64.

    """
    if name.startswith("mps"):
        raise RecipeError(
            f"device: expected {AUTO}, cpu or cuda, got {name!r}; octavo computes in float64, "
            "which Apple's MPS does not have: use cpu"
        )
    there = available_devices()
    cuda = [one for one in there if one.startswith("cuda:")]
    if name == AUTO and not cuda:
        return None
    if name in (AUTO, "cuda") and cuda:
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= len(cuda):
            raise RecipeError(
                f"device: expected a GPU for each process on this machine, got process {number} "
                f"and the devices {', '.join(there)}; start no more than {len(cuda)}"
            )
        return torch.device(cuda[number])
    if name in there:
        return torch.device(name)
    build = "" if torch.version.cuda or not name.startswith("cuda") else " (a build without CUDA)"
    raise RecipeError(
        f"device: expected {AUTO} or one that this machine has, {', '.join(there)}, got {name!r}; "
        f"torch is {torch.__version__}{build}"
    )
