"""Train a network with Lightning Fabric, then quantize it over the same loop:
``python examples/fabric_octavo.py``; needs lightning-fabric.
"""

import torch
from digits import accuracy, batches, network
from lightning_fabric import Fabric
from torch.nn import functional as F

from octavo import Incremental, Plan


def train(fabric, model, epochs, rate):
    optimizer = torch.optim.SGD(model.train().parameters(), lr=rate, momentum=0.9)
    wrapped, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(batches())
    for _ in range(epochs):
        for inputs, labels in loader:
            loss = F.cross_entropy(wrapped(inputs), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()


fabric = Fabric(accelerator="auto", devices=1)
fabric.launch()
fabric.seed_everything(0, verbose=False)
model = network()
train(fabric, model, epochs=6, rate=0.1)
model.cpu()
fabric.print(f"full precision: {accuracy(model):.1f} %")
incremental = Incremental(model, Plan.uniform(model, 3))
for stage in incremental:
    if not stage.last:
        train(fabric, model, epochs=2, rate=0.02)
packed = incremental.finish()
model.cpu()
fabric.print(f"3 bits: {accuracy(model):.1f} %, {packed.ratio:.1f} times smaller")
packed.save("digits.safetensors")
