"""Write a packed network of 2 to 4 bits as a C header whose products are shifts and additions.

    python examples/loop_octavo.py         # writes digits.safetensors, the network of the examples
    python examples/microcontroller.py     # writes digits.h

Each weight takes four bits: the highest says minus, the others are 0 for zero, else one more than
the shift. Rows are output channels; the sum of a row is in units of 2 to the power of its exponent.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from digits import network
from torch import Tensor

from octavo import Packed

C_CODE = """\
#include <stdint.h>

/* The product of a row of weights with int8 inputs, in units of 2^exponent of that row. */
static inline int32_t octavo_dot(const uint8_t *row, const int8_t *inputs, int count) {
  int32_t sum = 0;
  for (int i = 0; i < count; i++) {
    int code = row[i / 2] >> (i % 2 * 4);
    if (code & 7) {
      int32_t term = (int32_t)((uint32_t)inputs[i] << ((code & 7) - 1));
      sum += code & 8 ? -term : term;
    }
  }
  return sum;
}
"""


def coded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return four bits for each weight, two weights to a byte, and the exponent of each row."""
    rows = weight.flatten(1)
    exponents = torch.frexp(rows).exponent - 1  # of powers of two, exactly
    least = torch.where(rows != 0, exponents, 127).amin(1, keepdim=True)
    shifts = torch.where(rows != 0, exponents - least + 1, 0)
    if shifts.max() > 7:
        raise SystemExit("expected weights of at most 4 bits, whose powers of two are few")
    codes = torch.nn.functional.pad(shifts + 8 * (rows < 0), (0, rows.shape[1] % 2))
    return codes[:, ::2] + 16 * codes[:, 1::2], least.flatten()


def arrays(name: str, weight: Tensor) -> Iterator[str]:
    codes, exponents = coded(weight)
    count = weight[0].numel()
    yield f"\n/* {name}: {len(weight)} rows of {count} weights */"
    identifier = "layer_" + re.sub(r"\W", "_", name)
    yield f"static const uint8_t {identifier}[{len(codes)}][{codes.shape[1]}] = {{"
    yield from ("  {" + ", ".join(map(str, row)) + "}," for row in codes.tolist())
    yield "};"
    listed = ", ".join(map(str, exponents.tolist()))
    yield f"static const int8_t {identifier}_exponents[{len(codes)}] = {{{listed}}};"


packed = Packed.load("digits.safetensors")
model = network()
packed.apply(model)
lines = [C_CODE]
for name in packed.plan:
    lines.extend(arrays(name, model.get_submodule(name).weight.detach()))
Path("digits.h").write_text("\n".join(lines) + "\n", encoding="ascii")
