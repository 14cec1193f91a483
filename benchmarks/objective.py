"""The reasons why trials compare outputs at temperature 8, and are matched to full precision.

    python benchmarks/objective.py                      # about 10 minutes of one core

ResNet-20 on CIFAR-10. The exact solution of the additive model and 23 plans that a policy draws
around it, all in about 70,000 bytes. Each is measured as trials are: the candidates are calibrated
on 512 unlabelled training images, and 256 or 512 others are scored by the divergence at several
temperatures and by the squared error of logits, once as the candidates leave the network and once
*matched*: with the mean and the deviation of full precision in front of batch norms. Each plan is
also solved sequentially, as ``calibrate`` does, and run on 3,072 more training images: its
divergence, and how often its class is that of full precision. A measure is good if its ranks are
those of the solved networks (Spearman's correlation). Rows are written as they come, and skipped if
they are there.

Two more measures show what trials add to that. The *sum of single layers* is the additive model:
the losses of trials in which one layer alone is quantized. *Four quantizations* is the mean of four
trials, whose candidates are each calibrated on a quarter of the images: their errors differ by
chance. Writes benchmarks/results/objective.json.
"""

import json
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Budget, calibrate
from octavo.dnq.environment import Environment
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.matching import Statistics, matched, norm_statistics
from octavo.dnq.policy import Policy
from octavo.dnq.prices import within
from octavo.dnq.reinforce import Reinforce
from octavo.dnq.space import Choice, Space
from octavo.dnq.survey import survey
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "objective.json"
CALIBRATING = 512
SCORING = (256, 512)
OTHERS = 3072
BATCH = 32
FORWARD = 64  # images of a forward pass that only measures
BYTES = 70_000
PLANS = 24
OPTIONS = (2, 3, 4, 5)
TEMPERATURES = (1, 2, 4, 8, 16, 32)
Row = dict[str, Any]


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits, float64, (images, classes)."""
    return torch.cat([network(batch) for batch in images.split(FORWARD)]).double()


def divergence(own: Tensor, full: Tensor, temperature: float) -> float:
    """Return the mean KL divergence of the rows from full precision."""
    own_logs, full_logs = (F.log_softmax(some / temperature, 1) for some in (own, full))
    return float(F.kl_div(own_logs, full_logs, reduction="batchmean", log_target=True))


def scores(own: Tensor, full: Tensor, prefix: str) -> dict[str, float]:
    """Return every measure of a trial on the first images of each count, by name."""
    measured = {}
    for count in SCORING:
        first = (own[:count], full[:count])
        for temperature in TEMPERATURES:
            measured[f"{prefix}temperature {temperature}, {count}"] = divergence(
                *first, temperature
            )
        error = first[0] - first[1]
        error = error - error.mean(1, keepdim=True)  # a shift of all logits changes no probability
        measured[f"{prefix}squared error, {count}"] = float(error.square().mean())
    return measured


def trial_scores(network: nn.Module, scoring: Tensor, full: Tensor, statistics: Statistics) -> Row:
    """Return every measure of a trial, as it is and matched to full precision."""
    plain = scores(logits(network, scoring), full, "")
    with matched(network, statistics):
        return plain | scores(logits(network, scoring), full, "matched, ")


def plans(space: Space, trials: Environment) -> list[Choice]:
    """Return the most probable choice of a policy that begins from the additive model, and others
    that it samples.
    """
    evaluator = Evaluator(space, trials, Journal(None, space.actions, {}), 1000)
    policy = Policy(space.costs, space.limit)
    limits = torch.tensor([space.limit], dtype=torch.float64)
    policy.begin_from(evaluator.losses(), limits, Reinforce().entropy[0])
    with torch.no_grad():
        distribution = policy(limits)
    drawn = distribution.sample(4 * PLANS, evaluator.generator)[0].tolist()
    chosen = [distribution.mode()[0].tolist(), *drawn]
    return list(dict.fromkeys(map(tuple, chosen)))[:PLANS]


def errors_apart(
    model: nn.Module, space: Space, images: tuple[Tensor, Tensor], choices: list[Choice]
) -> list[dict[str, float]]:
    """Return for each choice the measures in which errors of layers cannot cancel by chance.

    Args:
        model: the network in full precision.
        space: the layers and their actions.
        images: those that calibrate, and those that score.
        choices: the choices that are measured.

    """

    def trials(calibrating: Tensor) -> Environment:
        return Environment(
            model, space.names, calibrating.split(BATCH), space.actions,
            scoring=scoring.split(BATCH),
        )  # fmt: skip

    calibrating, scoring = images
    several = [trials(calibrating[first::4]).objectives(choices) for first in range(4)]
    layers = range(len(space.names))
    pairs = sorted({pair for choice in choices for pair in enumerate(choice)})
    alone = [tuple(action if at == layer else None for at in layers) for layer, action in pairs]
    objective = dict(zip(pairs, trials(calibrating).objectives(alone), strict=True))
    measured: list[dict[str, float]] = []
    for choice, objectives in zip(choices, zip(*several, strict=True), strict=True):
        measured.append({
            f"sum of single layers, {len(scoring)}": -sum(
                objective[pair] for pair in enumerate(choice)
            ),
            f"four quantizations, {len(scoring)}": -sum(objectives) / len(objectives),
        })  # fmt: skip
    return measured


def correlations(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return how well each measure ranks the plans by what the solved networks lose."""
    divergences = [row["divergence"] for row in rows]
    disagreements = [-row["agreement"] for row in rows]
    by_measure = {}
    for name in rows[0]["scores"]:
        measured = [row["scores"][name] for row in rows]
        by_measure[name] = {
            "divergence": float(spearmanr(measured, divergences)[0]),
            "disagreement": float(spearmanr(measured, disagreements)[0]),
        }
    return by_measure


def main() -> None:
    size = CALIBRATING + SCORING[-1] + OTHERS
    weights = "~/.cache/octavo/resnet20-cifar10.safetensors"
    task = Cifar10(20, weights, calibration_size=size, batch=BATCH)
    model = task.model()
    parts = (CALIBRATING, SCORING[-1], OTHERS)
    calibrating, scoring, others = torch.cat(list(task.calibration())).split(parts)
    inputs = calibrating.split(BATCH)
    surveyed = survey(model, inputs[0], OPTIONS, {})
    trials = Environment(
        model, surveyed.names, inputs, surveyed.actions, scoring=scoring[: SCORING[0]].split(BATCH)
    )
    space = within(surveyed, Budget(bytes=BYTES), trials.file_sizes())
    full = [logits(model, images) for images in (scoring, others)]
    with torch.no_grad():
        statistics = norm_statistics(model.eval(), scoring.split(FORWARD))
    result: Row = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    result |= {"environment": environment(), "calibrating": CALIBRATING, "others": OTHERS}
    for choice in plans(space, trials)[len(result["rows"]) :]:
        plan = space.plan(choice)
        packed = calibrate(model, plan, inputs)
        network = task.model()
        packed.apply(network)
        own = logits(network.eval(), others)
        row = {
            "bits": [width.bits for width in plan.values()],
            "file_bytes": packed.file_bytes,
            "scores": trial_scores(trials.network(choice), scoring, full[0], statistics),
            "divergence": divergence(own, full[1], 1),
            "divergence at temperature 4": divergence(own, full[1], 4),
            "agreement": 100 * float((own.argmax(1) == full[1].argmax(1)).double().mean()),
        }
        result["rows"].append(row)
        print(row, flush=True)
        write_json(RESULT, result)
    choices = [tuple(map(OPTIONS.index, row["bits"])) for row in result["rows"]]
    for count in SCORING:
        images = (calibrating, scoring[:count])
        for row, more in zip(
            result["rows"], errors_apart(model, space, images, choices), strict=True
        ):
            row["scores"] |= more
    result["correlations"] = correlations(result["rows"])
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
