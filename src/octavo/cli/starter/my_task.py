"""A task: the network that octavo quantizes, and its data. `octavo init` wrote this file.

It runs as it stands: a small network learns to tell three kinds of stripes apart, in a few seconds.
Put your own network and data in the place of the parts marked YOURS.
"""

import copy
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 12  # pixels of a side
KINDS = 3  # horizontal, vertical and diagonal stripes


class MyTask:
    """Each argument is an option: `options: {seed: 1}` in the recipe, `-O seed=1` on the command
    line.
    """

    def __init__(self, seed: int = 0, batch: int = 64) -> None:
        self.seed = seed
        self.batch = batch

    def model(self):
        """Return the trained network in full precision: a new copy at every call."""
        # YOURS: network = Network(); network.load_state_dict(torch.load("weights.pt"))
        return copy.deepcopy(self.trained)

    def calibration(self):
        """Return batches of inputs without labels, the same at every call: 1,000 are plenty."""
        # YOURS: return [images for images, labels in islice(loader, 16)]
        images, _ = stripes(1024, seed=1)
        return list(images.split(self.batch))

    def train_batches(self):
        """Return the batches (inputs, targets) of one epoch; draw from torch's global generator."""
        # YOURS: return DataLoader(training_set, batch_size=self.batch, shuffle=True)
        images, labels = stripes(2048, seed=2)
        order = torch.randperm(len(images)).split(self.batch)
        return [(images[index], labels[index]) for index in order]

    def loss(self, model, batch):
        """Return the loss of a batch; it is only needed for `retraining.labels` above 0."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)

    def score(self, model):
        """Return the metric, a float where higher is better; the model is left as it was."""
        # YOURS: the metric of your validation set
        training = model.training
        images, labels = stripes(1000, seed=3)
        with torch.no_grad():
            right = (model.eval()(images).argmax(1) == labels).float().mean()
        model.train(training)
        return 100 * right.item()

    @cached_property
    def trained(self):
        """The trained network. YOURS: you have trained one already; leave this out."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = Network()
            optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
            for _ in range(4):
                for batch in self.train_batches():
                    optimizer.zero_grad()
                    self.loss(network, batch).backward()
                    optimizer.step()
        return network.eval()


class Network(nn.Module):
    """YOURS: your network. octavo takes any module; it reads its layers, and calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(48)
        self.classifier = nn.Linear(48, KINDS)

    def forward(self, images):
        hidden = F.max_pool2d(self.norm1(self.conv1(images)).relu(), 2)
        hidden = self.norm2(self.conv2(hidden)).relu()
        return self.classifier(hidden.mean((2, 3)))


def stripes(count: int, seed: int):
    """YOURS: your data. Returns noisy images, (count, 1, SIZE, SIZE), and the kind of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(KINDS, (count,), generator=generator)
    down, right = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    waves = torch.stack([down, right, down + right]).float()
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    noise = torch.randn(count, SIZE, SIZE, generator=generator)
    images = (1.6 * waves[labels] + phase).sin() + 1.4 * noise
    return images[:, None], labels
