"""Train a network with a loop in plain PyTorch: ``python examples/loop.py``."""

import torch
from digits import accuracy, batches, network
from torch.nn import functional as F


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
torch.save(model.state_dict(), "digits.pt")
