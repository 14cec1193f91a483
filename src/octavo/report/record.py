"""The record of a run: everything that its folder says, for the report and for comparisons."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from octavo.errors import FormatError
from octavo.runs.details import DETAILS, packed_layers
from octavo.runs.recipe import recorded_recipe
from octavo.runs.run_folder import Json, read_json
from octavo.storage.packed import Packed

__all__ = ["LayerRow", "RunRecord", "load_runs"]

NEEDED = ("recipe", "float_score", "score", "float_bytes", "file_bytes", "ratio", "nominal_bits")


@dataclass(frozen=True)
class LayerRow:
    """The figures of one layer; None stands for what the run did not write down.

    Attributes:
        name: the layer's name in a plan.
        kind: its module's type.
        shape: the shape of its weight.
        weights: the number of its weights.
        bits: its width; None if it stayed in float.
        input_bits: the bits of its inputs.
        stored_bytes: bytes of its codes in the file.
        zeros: share of its weights that are zero.
        loss_alone: what the objective loses if this layer alone has these bits.
        nearest: relative error of its outputs with every weight at the nearest level.
        compensated: the same as PTQ solved it.

    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    bits: int | str | None = None
    input_bits: int | None = None
    stored_bytes: float | None = None
    zeros: float | None = None
    loss_alone: float | None = None
    nearest: float | None = None
    compensated: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """The record of a finished run.

    Attributes:
        name: the name of the folder, or of the result's file.
        folder: the folder of the run.
        result: the content of ``result.json``.
        details: the content of ``details.json``; empty where there is none.
        course: the content of ``search.json``; empty where there is none.
        layers: the figures of each layer.
        losses_alone: what the objective loses if one layer alone has some width, by layer name and
            written width.

    """

    name: str
    folder: Path
    result: Json
    details: Json = field(default_factory=dict)
    course: Json = field(default_factory=dict)
    layers: tuple[LayerRow, ...] = ()
    losses_alone: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the folder of a run, or the result of a run that was published as a file.

        Raises:
            FormatError: the folder has no result yet, or a file in it is damaged.

        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        file = path / "result.json" if path.is_dir() else path
        result = _read_result(file)
        published = file.name != "result.json"  # then no other file of the run lies beside it
        details = {} if published else _read_optional(folder / DETAILS)
        course = {} if published else _read_optional(folder / "search.json")
        losses = {} if published else _losses_alone(folder / "search.jsonl")
        packed = file.with_suffix(".safetensors") if published else folder / "packed.safetensors"
        layers = details.get("layers") or _layers_of_file(packed)
        return cls(
            path.stem if published else folder.resolve().name,
            folder,
            result,
            details,
            course,
            tuple(_layer_row(layer, result, losses) for layer in layers),
            losses,
        )

    @property
    def recipe(self) -> Json:
        """The recipe of the run, as its result has it."""
        recipe: Json = self.result["recipe"]
        return recipe

    @property
    def control(self) -> float | None:
        """The metric of the control; None where there was none."""
        return self.result.get("control_score")

    @property
    def figures(self) -> Json:
        """The figures that runs are compared by."""
        keys = ("float_score", "score", "control_score", "file_bytes", "ratio", "nominal_bits")
        known = {key: self.result[key] for key in keys if key in self.result}
        return {"run": self.name, "method": self.method, **known}

    @property
    def stages(self) -> list[Json]:
        """The stages of retraining, with their loss curves where the run wrote them down."""
        known = self.details.get("stages", {}).get("quantized")
        stages: list[Json] = known or self.result.get("stages", [])
        return stages

    @property
    def method(self) -> str:
        """Return in a few words how the network was quantized: ``3 bits, INQ``."""
        return f"{_widths(self)}, {_way(self.recipe)}"


def load_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Read several runs as ``RunRecord.load`` does. Where they have the same name, all get the
    folders above them in their names, so far up that they differ.
    """
    records = [RunRecord.load(path) for path in paths]
    places = [_place(record).parts for record in records]
    names = [record.name for record in records]
    depth = 1
    while len(set(names)) < len(set(places)):
        depth += 1
        names = ["/".join(place[-depth:]) for place in places]
    return [replace(record, name=name) for record, name in zip(records, names, strict=True)]


def _place(record: RunRecord) -> Path:
    """Return the path of a run's folder, or of a published result without its ending."""
    folder = record.folder.resolve()
    return folder if folder.name == record.name else folder / record.name


def _widths(record: RunRecord) -> str:
    """Return the widths of a run in words."""
    bits = record.recipe.get("bits")
    if record.recipe.get("search"):
        return f"{record.result['nominal_bits']:.2f} bits on average by search"
    if isinstance(bits, int | str):
        return f"{bits} bits" if str(bits).isdigit() else str(bits)
    return f"{record.result['nominal_bits']:.2f} bits on average"


def _way(recipe: Mapping[str, Any]) -> str:
    """Return what else was done, in words: INQ or calibration, pruning, quantized inputs."""
    words = ["calibrated" if recipe.get("method") == "ptq" else "INQ"]
    prune = recipe.get("prune")
    if isinstance(prune, Mapping) and isinstance(prune.get("sparsity"), float):
        words.insert(0, f"{prune['sparsity']:.0%} pruned")
    if recipe.get("activations"):
        words.append("inputs quantized")
    return ", ".join(words)


def _read_result(file: Path) -> Json:
    if not file.is_file():
        raise FormatError(
            f"{file}: no such file; expected the folder of a finished run, or its result: "
            "`octavo run` writes it when all steps are done"
        )
    result = read_json(file)
    missing = [key for key in NEEDED if key not in result]
    if missing:
        raise FormatError(f"{file}: expected the result of a run, it lacks {', '.join(missing)}")
    recipe = recorded_recipe(result["recipe"], str(file))  # reads the words of older versions too
    return result | {"recipe": recipe.model_dump(mode="json")}


def _read_optional(file: Path) -> Json:
    return read_json(file) if file.is_file() else {}


def _layer_row(layer: Json, result: Json, losses: Mapping[str, Mapping[str, float]]) -> LayerRow:
    """Return the figures of a layer from wherever the run wrote them."""
    name = layer["name"]
    bits = layer.get("bits")
    solved = {row["name"]: row for row in result.get("layers", [])}.get(name, {})
    return LayerRow(
        name,
        layer.get("kind", ""),
        tuple(layer.get("shape", ())),
        layer["weights"],
        bits,
        result.get("activation_bits", {}).get(name),
        layer.get("stored_bytes"),
        layer.get("zeros"),
        losses.get(name, {}).get(str(bits)),
        solved.get("nearest"),
        solved.get("compensated"),
    )


def _layers_of_file(path: Path) -> list[Json]:
    """Return the layers of a packed file, where a run of an older version wrote no details."""
    if not path.is_file():
        return []
    return packed_layers(Packed.load(path))


def _losses_alone(journal: Path) -> dict[str, dict[str, float]]:
    """Return what each layer alone loses at its widths, from the journal of the search.

    A width is written as in the journal. Lines that cannot be read are left out, as the search
    itself will say so when it goes on from them.
    """
    lines = list(_journal_lines(journal))
    names = list(lines[0].get("settings", {}).get("layers", {})) if lines else []
    rows = [line for line in lines[1:] if len(line.get("bits", ())) == len(names)]
    full = [row["score"] for row in rows if all(bits is None for bits in row["bits"])]
    losses: dict[str, dict[str, float]] = {}
    for row in rows if full else []:
        planned = [(name, bits) for name, bits in zip(names, row["bits"], strict=True) if bits]
        if len(planned) == 1:
            name, bits = planned[0]
            losses.setdefault(name, {})[str(bits)] = full[0] - row["score"]
    return losses


def _journal_lines(journal: Path) -> Iterator[Json]:
    if not journal.is_file():
        return
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content
