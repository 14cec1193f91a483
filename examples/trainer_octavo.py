"""Train a network with Hugging Face's Trainer, then quantize it with the same one:
``python examples/trainer_octavo.py``; needs transformers and accelerate.
"""

import torch
from digits import BATCH, accuracy, network, parts
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from octavo import Incremental, Plan


class Classifier(nn.Module):
    """The network as Trainer calls it: by names, with the loss in what it returns."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, inputs, labels):
        logits = self.network(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def train(model, epochs, rate):
    arguments = TrainingArguments(
        "runs/trainer", num_train_epochs=epochs, learning_rate=rate, report_to="none",
        per_device_train_batch_size=BATCH, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"inputs": picture, "labels": label} for picture, label in parts()[0]]
    Trainer(model, arguments, train_dataset=data).train()


torch.manual_seed(0)
model = Classifier()
train(model, epochs=6, rate=0.01)
print(f"full precision: {accuracy(model.network):.1f} %")
incremental = Incremental(model.network, Plan.uniform(model.network, 3))
for stage in incremental:
    if not stage.last:
        train(model, epochs=2, rate=0.002)
packed = incremental.finish()
print(f"3 bits: {accuracy(model.network):.1f} %, {packed.ratio:.1f} times smaller")
packed.save("digits.safetensors")
