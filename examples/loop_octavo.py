"""Train a network with a loop in plain PyTorch, then quantize it over the same loop:
``python examples/loop_octavo.py``.
"""

import torch
from digits import accuracy, batches, network
from torch.nn import functional as F

from octavo import Incremental, Plan


def train(model, epochs, rate):
    optimizer = torch.optim.SGD(model.train().parameters(), lr=rate, momentum=0.9)
    for _ in range(epochs):
        for inputs, labels in batches():
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


torch.manual_seed(0)
model = network()
train(model, epochs=6, rate=0.1)
print(f"full precision: {accuracy(model):.1f} %")
incremental = Incremental(model, Plan.uniform(model, 3))
for stage in incremental:
    if not stage.last:
        train(model, epochs=2, rate=0.02)
packed = incremental.finish()
print(f"3 bits: {accuracy(model):.1f} %, {packed.ratio:.1f} times smaller")
packed.save("digits.safetensors")
