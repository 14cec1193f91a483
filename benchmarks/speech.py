"""A speech detector, Silero VAD, calibrated: convolutions and an LSTM, on speech in noise.

    apt-get install espeak-ng; pip install --no-deps silero-vad
    python benchmarks/speech.py

The package has its network as TorchScript. It is written out below with the same weights, those for
16 kHz, and its outputs are compared with the package's (``off_the_package``). The recordings are
synthetic: sentences of docstrings, read by eSpeak in five voices, with pauses between them and
noise over everything; 8 calibrate, and 24 others are scored. Writes benchmarks/results/speech.json,
and beside it the network with every layer at 3 bits.
"""

import copy
import io
import json
import subprocess
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from scipy.stats import mannwhitneyu
from sentences import sentences  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Plan, calibrate
from octavo.runs.run import environment
from ptq import nearest  # type: ignore[import-not-found]  # its neighbour

RESULT = Path(__file__).parent / "results" / "speech.json"
RATE = 16000
CHUNK = 512
CONTEXT = 64
SECONDS = 12
CALIBRATION = 8
SCORED = 24
SEED = 0
VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3", "en-us+f5")
PACKAGED = Path(str(find_spec("silero_vad").origin)).parent / "data" / "silero_vad.jit"  # type: ignore[union-attr]
PLACES = {"stft": "stft_conv.", "decoder.rnn": "lstm.", "decoder.decoder.2": "final_conv."}
PLACES |= {f"encoder.{at}.reparam_conv": f"conv{at + 1}." for at in range(4)}


class Detector(nn.Module):
    """The probability that each chunk of 512 samples is speech: a spectrum, four convolutions, an
    LSTM.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> dict[str, Tensor]:
        """Take sound as (recordings, samples), a multiple of 512 samples."""
        chunks = F.pad(sound, (CONTEXT, 0)).unfold(1, CONTEXT + CHUNK, CHUNK)
        x = self.stft_conv(F.pad(chunks.flatten(0, 1), (0, 64), mode="reflect").unsqueeze(1))
        real, imaginary = x.chunk(2, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        hidden, _ = self.lstm(x.view(*chunks.shape[:2], -1))
        return {"speech": self.final_conv(hidden.relu().mT).sigmoid().squeeze(1)}


def network() -> Detector:
    model = Detector()
    state = dict[str, Tensor]()
    for name, value in torch.jit.load(PACKAGED).state_dict().items():
        module, _, own = name.removeprefix("_model.").rpartition(".")
        if name.startswith("_model.") and module in PLACES:
            state[
                PLACES[module]
                + own.replace("forward_basis_buffer", "weight")
                + "_l0" * ("rnn" in module)
            ] = value
    model.load_state_dict(state)
    return model.eval()


def spoken(text: str, voice: str) -> np.ndarray:
    """Return a sentence at 16 kHz, with a mean square of 1."""
    command = ["espeak-ng", "-v", voice, "--stdout", text]
    with wave.open(
        io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)
    ) as sound:
        samples = np.frombuffer(sound.readframes(1 << 30), np.int16).astype(np.float64)
        samples = resample_poly(samples, RATE, sound.getframerate())
    level: np.ndarray = samples / np.sqrt(np.mean(samples**2))
    return level


def recordings(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return sounds (recordings, samples), and the chunks that are speech: those louder than a
    hundredth of the mean.
    """
    generator = np.random.default_rng(SEED)
    length = RATE * SECONDS // CHUNK * CHUNK
    sounds = []
    labels = []
    queue = iter(texts)
    for _ in range(CALIBRATION + SCORED):
        clean = np.zeros(length)
        at = int(generator.uniform(0.5, 2) * RATE)
        while at < length - RATE:
            voice = spoken(next(queue), str(generator.choice(VOICES)))[: length - at]
            clean[at : at + len(voice)] = voice
            at += len(voice) + int(generator.uniform(0.5, 3) * RATE)
        noise = generator.normal(size=length)
        if generator.random() < 0.5:  # brown in half of the recordings
            noise = np.cumsum(noise) - np.convolve(np.cumsum(noise), np.full(400, 1 / 400), "same")
        noise *= 10 ** (-generator.uniform(5, 25) / 20) / noise.std()
        sounds.append(0.05 * (clean + noise))
        labels.append((clean.reshape(-1, CHUNK) ** 2).mean(1) > 0.01)
    return torch.tensor(np.array(sounds), dtype=torch.float32), torch.tensor(np.array(labels))


def packaged(sound: Tensor) -> Tensor:
    """Return the outputs of the package's own network."""
    model = torch.jit.load(PACKAGED)
    model.eval()
    return torch.cat([model(chunk, RATE) for chunk in sound.split(CHUNK, 1)], 1)


def scores(own: Tensor, full: Tensor, labels: Tensor) -> dict[str, float]:
    speech = own[labels]
    silence = own[~labels]
    area = mannwhitneyu(speech.tolist(), silence.tolist()).statistic / (len(speech) * len(silence))
    return {
        "area_under_curve": round(float(area), 5),
        "accuracy": round(100 * float(((own > 0.5) == labels).float().mean()), 2),
        "decisions_alike": round(100 * float(((own > 0.5) == (full > 0.5)).float().mean()), 2),
        "mean_difference": round(float((own - full).abs().mean()), 5),
    }


@torch.no_grad()
def main() -> None:
    sounds, labels = recordings(sentences())
    seen = list(sounds[:CALIBRATION].split(1))
    scored = sounds[CALIBRATION:]
    labels = labels[CALIBRATION:]
    model = network()
    full = model(scored)["speech"]
    off = float((packaged(scored[:2]) - full[:2]).abs().max())
    result: dict[str, Any] = {
        "environment": environment(),
        "seed": SEED,
        "calibration": CALIBRATION,
        "scored": SCORED,
    }
    result |= {
        "chunks": labels.numel(),
        "speech": float(labels.float().mean()),
        "off_the_package": off,
    }
    result |= {"float": scores(full, full, labels), "rows": []}
    print(result)
    for layers in ("learned", "all"):  # the spectrum is computed, not learned
        for bits in (5, 4, 3, 2):
            plan = Plan.uniform(model, bits, exclude=() if layers == "all" else ("stft_conv",))
            for way in ("nearest", "closed form"):
                packed = nearest(model, plan) if way == "nearest" else calibrate(model, plan, seen)
                if (layers, bits, way) == ("all", 3, "closed form"):
                    packed.save(RESULT.with_name("silero-vad-3bit.safetensors"))
                quantized = copy.deepcopy(model)
                packed.apply(quantized)
                about = {
                    "layers": layers,
                    "bits": bits,
                    "way": way,
                    "stored_bits": round(packed.stored_bits, 3),
                }
                about["file_bytes"] = packed.file_bytes
                result["rows"].append(
                    about
                    | {"ratio": round(packed.ratio, 2)}
                    | scores(quantized(scored)["speech"], full, labels)
                )
                print(result["rows"][-1], flush=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
