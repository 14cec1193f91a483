"""Freeze layers in forward order, each from the inputs that it has once the layers ahead of it are
quantized.

For each batch the full-precision and the quantized network run side by side. All passes wait at a
layer until its weight has frozen from the inputs that all batches bring there; so nothing runs
twice. Where networks write state or draw random numbers, each pass keeps a world of its own
(``octavo.network.world``), so that passes do not mix. Where a batch depends on the batch before it,
batches cannot wait together: they run one after another, again for each layer.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from octavo.network.calls import call_alone, undisturbed
from octavo.network.conduct import PURE, Conduct, conduct_of
from octavo.network.copies import fresh
from octavo.network.forward import (
    Inputs,
    batches_of,
    check_batches,
    device_of,
    hooked,
    on_device,
)
from octavo.network.layers import Layer, calling_modules
from octavo.network.moments import Moments
from octavo.network.nested import named_tensors
from octavo.network.spilling import PassMemory, Spill, addresses
from octavo.network.stepping import stepwise_forward, stopping
from octavo.network.warned import warn
from octavo.network.world import World
from octavo.ptq.float_inputs import Freeze, freeze_from_float
from octavo.ptq.meeting import Meeting, add_moments
from octavo.ptq.setting_aside import in_larger_batches
from octavo.ptq.site import Site

__all__ = ["Batches", "count_calls", "freeze_in_forward_order", "freeze_sequentially"]

MOST_PASSES = 256  # that wait at a time, each in two threads, where batches can be joined

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, eq=False)
class Batches:
    """Calibration inputs, divided by what they are for.

    Attributes:
        solving: those that layers are solved from.
        held_out: those that their solutions are measured on.

    """

    solving: Sequence[Inputs]
    held_out: Sequence[Inputs] = ()


def freeze_sequentially(
    model: nn.Module,
    quantized: nn.Module,
    layers: Sequence[Layer],
    inputs: Iterable[Inputs],
    freeze: Freeze[Outcome],
    held_out: Iterable[Inputs] = (),
) -> dict[str, Outcome]:
    """Freeze layers in forward order, and return the outcome of each that an input reaches, by
    name.

    Layers that are used more than once have no single position in that order. They come first, from
    full-precision inputs. If full precision gives other outputs each time, layers freeze as if
    their outputs had not drifted, and a warning says so.

    Args:
        model: the network in full precision, a copy of the user's own.
        quantized: another copy of it, whose weights ``freeze`` changes in place.
        layers: the layers of ``quantized`` to freeze.
        inputs: calibration inputs; they stay as they are.
        freeze: freezes a layer in place, from the moments of its inputs and, where all batches can
            wait at it, with its site.
        held_out: inputs that no layer is solved from; its site measures on them.

    """
    batches = [on_device(batch, device_of(model)) for batch in batches_of(inputs)]
    check_batches(len(batches))
    conduct = conduct_of(quantized, batches)
    if len(batches) > MOST_PASSES and not conduct.carries:
        batches = in_larger_batches(quantized, batches, MOST_PASSES)
        conduct = conduct_of(quantized, batches)
    if not conduct.repeats:
        _warn_of_noise(quantized)
    by_module = _called_once(quantized, layers, batches[0])
    called_once = {layer.name for here in by_module.values() for layer in here}
    others = [layer for layer in layers if layer.name not in called_once]
    outcomes = freeze_from_float(quantized, others, batches, freeze) if others else {}
    aside = [on_device(batch, device_of(model)) for batch in held_out]
    divided = Batches(batches, aside)
    return outcomes | freeze_in_forward_order(model, quantized, by_module, divided, freeze, conduct)


def freeze_in_forward_order(
    model: nn.Module,
    quantized: nn.Module,
    layers: Mapping[nn.Module, Sequence[Layer]],
    batches: Batches,
    freeze: Freeze[Outcome],
    conduct: Conduct = PURE,
) -> dict[str, Outcome]:
    """Freeze ``layers`` in the order in which the inputs reach them, and return the outcome of each
    that is reached, by layer name.

    Args:
        model: the network in full precision.
        quantized: a copy of it, whose weights ``freeze`` changes in place.
        layers: layers of ``quantized``, by the module whose call shows their inputs; if a module is
            called more than once, its layers freeze at the first call.
        batches: calibration inputs.
        freeze: called once for each layer that is reached.
        conduct: what the forward pass of both does beside computing outputs from inputs.

    """
    pair = _Pair.of(model, quantized, layers, conduct)
    if conduct.carries:  # what was set aside lies between batches that belong together
        return _freeze_in_turn(pair, layers, batches.solving, freeze)
    return _freeze_in_step(pair, layers, batches, freeze)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A network in full precision and its quantized copy.

    Attributes:
        model: the one in full precision.
        quantized: the other one.
        partners: modules of ``quantized``, by the same modules of ``model``.
        conduct: what the forward pass of both does beside computing outputs from inputs.
        spill: bounds the memory of all passes that wait.
        weights: the addresses of the tensors of both networks.

    """

    model: nn.Module
    quantized: nn.Module
    partners: Mapping[nn.Module, nn.Module]
    conduct: Conduct
    spill: Spill
    weights: frozenset[int]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        quantized: nn.Module,
        layers: Iterable[nn.Module],
        conduct: Conduct,
    ) -> "_Pair":
        """Pair two networks, of which the quantized one has the modules of these layers."""
        partners = _partners(model, quantized, layers)
        weights = [
            tensor
            for one in (model, quantized)
            for tensor in itertools.chain(one.parameters(), one.buffers())
        ]
        return cls(model, quantized, partners, conduct, Spill(), addresses(weights))

    def memory(self, batch: Inputs) -> PassMemory:
        """Return the memory of two passes side by side, which do not own weights and inputs."""
        return PassMemory(self.weights | addresses(tensor for _, tensor in named_tensors(batch)))

    def worlds(self) -> "_Worlds":
        """Return new worlds, which begin with the state that the networks have now."""
        if not (self.conduct.written or self.conduct.draws):
            return _Worlds(None, None)
        written = self.conduct.written
        return _Worlds(World(self.model, written), World(self.quantized, written))


@dataclass(frozen=True, eq=False)
class _Worlds:
    """The worlds of two passes side by side; None where passes need none."""

    full: World | None
    quantized: World | None

    def begin(self, number: int) -> None:
        """Let the next two passes draw the random numbers of the batch of this number."""
        for world in (self.full, self.quantized):
            if world is not None:
                world.begin(number)


def _freeze_in_turn(
    pair: _Pair,
    layers: Mapping[nn.Module, Sequence[Layer]],
    batches: Sequence[Inputs],
    freeze: Freeze[Outcome],
) -> dict[str, Outcome]:
    """Freeze layers one by one, each from passes of all batches one after another."""
    outcomes = dict[str, Outcome]()
    waiting = {module: list(here) for module, here in layers.items()}
    while waiting:
        module, moments = _in_turn(pair, waiting, batches)
        if module is None or moments is None:
            break
        outcomes |= _frozen(waiting[module].pop(0), moments, freeze, None)
        if not waiting[module]:
            del waiting[module]
    return outcomes


def _in_turn(
    pair: _Pair, waiting: Mapping[nn.Module, Sequence[Layer]], batches: Sequence[Inputs]
) -> tuple[nn.Module | None, Moments | None]:
    """Run all batches one after another, and return the first of the waiting modules that they
    reach, with the moments of its first layer; None if they reach none.
    """
    first: nn.Module | None = None
    moments: Moments | None = None
    partners = [one for one, other in pair.partners.items() if other in waiting]
    worlds = pair.worlds()
    with stopping(before=waiting, after=partners):
        for meeting in _one_after_another(pair, batches, worlds):
            module = meeting.stop.module
            if first is None or moments is None:
                first = module
                moments = Moments.of(waiting[module][0])
            if module is first:
                add_moments(moments, waiting[module][0], meeting)
    return first, moments


def _freeze_in_step(
    pair: _Pair,
    layers: Mapping[nn.Module, Sequence[Layer]],
    batches: Batches,
    freeze: Freeze[Outcome],
) -> dict[str, Outcome]:
    """Freeze layers while the passes of all batches wait at them.

    What all batches have become there is in memory, and beyond a bound on disk.
    """
    outcomes = dict[str, Outcome]()
    waiting = dict(layers)
    order = {module: position for position, module in enumerate(pair.quantized.modules())}
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping(before=layers, after=pair.partners))
        passes = []
        for number, batch in enumerate([*batches.solving, *batches.held_out]):
            worlds = pair.worlds()
            worlds.begin(number)
            aside = number >= len(batches.solving)
            passes.append(_side_by_side(pair, batch, worlds, held_out=aside))
        for one in passes:
            stack.callback(one.close)
        meetings = [next(one, None) for one in passes]  # for each batch; None at its end
        while any(meetings):
            module = _next_module(meetings, order)
            for layer in waiting.pop(module, ()):
                site = Site.of(layer, _meetings_at(module, meetings))
                outcomes |= _frozen(layer, site.moments(), freeze, site)
                del site  # else every batch would be in memory twice while the passes go on
            _go_on(passes, meetings, module)
    return outcomes


def count_calls(
    model: nn.Module, modules: Collection[nn.Module], batch: Inputs
) -> Counter[nn.Module]:
    """Count the calls of each of the modules in one forward pass."""
    counts: Counter[nn.Module] = Counter()

    def count(module: nn.Module, _: object) -> None:
        counts[module] += 1

    hooks = (module.register_forward_pre_hook(count) for module in modules)
    with hooked(hooks), undisturbed(model):
        call_alone(model, batch)
    return counts


def _side_by_side(
    pair: _Pair, batch: Inputs, worlds: _Worlds, *, held_out: bool = False
) -> Generator[Meeting, None, None]:
    """Run both networks on one batch: yield wherever the quantized one stops."""
    own = fresh if pair.conduct.writes_inputs else _as_it_is
    memory = pair.memory(batch)
    full_pass = stepwise_forward(pair.model, own(batch), worlds.full, memory.watching())
    quantized_pass = stepwise_forward(
        pair.quantized, own(batch), worlds.quantized, memory.watching()
    )
    with contextlib.closing(full_pass), contextlib.closing(quantized_pass):
        for stop in quantized_pass:
            beside = next(full_pass, None)
            same_path = beside is not None and pair.partners[beside.module] is stop.module
            full = beside if same_path and pair.conduct.repeats else None
            pair.spill.settle(memory)
            yield Meeting(stop, full, worlds.quantized, held_out, memory)
        for _ in full_pass:
            pass  # this network comes to its end as well
    pair.spill.forget(memory)


def _one_after_another(
    pair: _Pair, batches: Sequence[Inputs], worlds: _Worlds
) -> Iterator[Meeting]:
    """Run both networks on one batch after another, in the same worlds."""
    for number, batch in enumerate(batches):
        worlds.begin(number)
        yield from _side_by_side(pair, batch, worlds)


def _next_module(meetings: Iterable[Meeting | None], order: Mapping[nn.Module, int]) -> nn.Module:
    """Return the module whose layers freeze next: of those at which passes stand, the one that was
    registered first. From there, passes may still come to the others. Passes of inputs that were
    set aside wait for those that layers are solved from.
    """
    standing = [meeting for meeting in meetings if meeting]
    solving = [meeting for meeting in standing if not meeting.held_out]
    modules = {meeting.stop.module for meeting in solving or standing}
    return min(modules, key=order.__getitem__)


def _meetings_at(module: nn.Module, meetings: Iterable[Meeting | None]) -> list[Meeting]:
    """Return the meetings at one module."""
    return [meeting for meeting in meetings if meeting and meeting.stop.module is module]


def _go_on(
    passes: Sequence[Iterator[Meeting]], meetings: list[Meeting | None], module: nn.Module
) -> None:
    """Let the passes that stand at one module go on, and replace their meetings, one after another.

    Each lets go of the inputs that it had there, so no more than one batch is in memory twice.
    """
    for index, one in enumerate(passes):
        if _meetings_at(module, meetings[index : index + 1]):
            meetings[index] = next(one, None)


def _partners(
    model: nn.Module, quantized: nn.Module, modules: Iterable[nn.Module]
) -> dict[nn.Module, nn.Module]:
    """Return these modules of ``quantized``, by the modules of ``model`` with the same names."""
    names = {module: name for name, module in quantized.named_modules()}
    return {model.get_submodule(names[module]): module for module in modules}


def _called_once(
    model: nn.Module, layers: Iterable[Layer], batch: Inputs
) -> dict[nn.Module, list[Layer]]:
    """Return the layers whose inputs are all seen in one call of a forward pass, by the module that
    is called.
    """
    by_module = calling_modules(model, layers)
    counts = count_calls(model, by_module, batch)
    shared = {
        layer.name
        for module, here in by_module.items()
        for layer in here
        if layer.tied or counts[module] > 1
    }
    return {
        module: here
        for module, here in by_module.items()
        if not shared & {layer.name for layer in here}
    }


def _frozen(
    layer: Layer, moments: Moments, freeze: Freeze[Outcome], site: Site | None
) -> dict[str, Outcome]:
    """Freeze a layer, and return the outcome by the layer's name; nothing if no input came."""
    return {layer.name: freeze(layer, moments, site)} if moments.seen else {}


def _as_it_is(batch: Inputs) -> Inputs:
    return batch


def _warn_of_noise(model: nn.Module) -> None:
    warn(
        f"{type(model).__name__}: in full precision, two passes of one batch give different "
        "outputs, although both begin with the same state and the same random numbers of torch. So "
        "layers cannot make up for the errors of the layers ahead of them. Draw random numbers "
        "from torch's own generator, and keep state on modules"
    )
