"""The result of a search as tables that a person understands."""

from rich.table import Table

from octavo.dnq.finalists import Finalist
from octavo.dnq.refinement import Refinement
from octavo.dnq.search_result import SearchResult
from octavo.plan import Plan
from octavo.report.tables import add_columns, cell, titled_table
from octavo.runs.search_figures import front_figures

# What the numbers mean, by the name of the objective.
MEANING = {
    "divergence": "Objective: minus the KL divergence from full precision; nearer 0 is better",
    "task": "Objective: the task's own score; higher is better",
}

__all__ = ["finalists_table", "front_table", "plan_table", "refinement_line"]


def plan_table(result: SearchResult) -> Table:
    """Return the plan of a search beside the uniform and the exact plan, layer by layer."""
    table = titled_table(
        "the plan",
        "Uniform: the same bits everywhere. Exact: the best plan if the losses of single layers "
        "added up. Nominal bytes: bits times weights, before the codes are compressed and without "
        "all else that the file has",
    )
    add_columns(table, texts=["layer"], numbers=["weights", "bits", "uniform plan", "exact plan"])
    plans = (result.plan, result.uniform, result.exact)
    for name in result.plan:
        bits = [_bits(plan, name) for plan in plans]
        table.add_row(cell(name), f"{result.plan.weights[name]:,}", *bits)
    costs = [plan.cost() for plan in plans]
    table.add_section()
    table.add_row("average bits", "", *(f"{cost.average_bits:.3f}" for cost in costs))
    table.add_row("nominal bytes", "", *(f"{cost.bytes:,}" for cost in costs))
    if result.plan.activations:
        table.add_row("bit operations", "", *(f"{cost.bit_ops:,}" for cost in costs))
    return table


def finalists_table(result: SearchResult, objective: str) -> Table:
    """Return the finalists, the best by the final measure first; ``objective`` is the name of what
    the search maximized.
    """
    caption = f"{MEANING[objective]}. {_caption(result)}"
    table = titled_table("the finalists, solved as they ship", caption)
    numbers = ["average bits", "bytes of the file", "trial", "final objective"]
    add_columns(table, texts=[""], numbers=numbers)
    for finalist in result.finalists:
        final = f"{finalist.final:.5g}"
        table.add_row(
            ", ".join(_titles(result, finalist)),
            f"{finalist.plan.cost().average_bits:.3f}",
            f"{finalist.file_bytes:,}",
            f"{finalist.objective:.5g}",
            f"[bold]{final}[/]" if finalist.plan == result.plan else final,
        )
    return table


def _caption(result: SearchResult) -> str:
    """Return what was measured, and on which inputs."""
    count = len(result.trials)
    plans = f"All {count} plans within the limit" if result.enumerated else f"{count} plans"
    measured = f"{plans} were measured. "
    if result.held_out:
        return f"{measured}Final objectives: on {result.held_out} inputs that nothing else used"
    why = "there were too few, or the objective reads data of its own"
    return f"{measured}No inputs were set aside for the final objectives: {why}"


def _titles(result: SearchResult, finalist: Finalist) -> list[str]:
    """Return the names of a finalist: one plan may have several."""
    named = {"the plan": result.plan, "uniform": result.uniform, "exact": result.exact}
    if result.refinement is not None:
        named["the method alone"] = result.refinement.before.plan
    return [title for title, plan in named.items() if plan == finalist.plan]


def front_table(result: SearchResult, objective: str) -> Table:
    """Return the trials that no other beats in both objective and size, the smallest first."""
    front = "no other plan that was measured is better and smaller; bytes are estimated"
    caption = f"{front}. {MEANING[objective]}"
    table = titled_table("the trade-off", caption)
    add_columns(table, numbers=["average bits", "bytes of the file", "objective"])
    for row in front_figures(result):
        table.add_row(
            f"{row['average_bits']:.3f}", f"{row['file_bytes']:,}", f"{row['trial_score']:.5g}"
        )
    return table


def refinement_line(refinement: Refinement) -> str:
    """Return one line that tells the method and its refinement apart."""
    before = refinement.before.objective
    after = refinement.after.objective
    return f"best trial of the method alone: {before:.5g}; after refinement: {after:.5g}"


def _bits(plan: Plan, name: str) -> str:
    """Return the width of a layer; where inputs are quantized, ``3x8`` for weights and inputs."""
    if not plan.activations:
        return str(plan[name])
    return f"{plan[name]}x{plan.activations.get(name, 'float')}"
