"""The tables of the pages that guide a reader, see benchmarks/table.py."""

from itertools import pairwise
from statistics import mean

from pages import (  # type: ignore[import-not-found]  # its neighbour
    control,
    epochs,
    load,
    size,
    three_digits,
)

Rows = list[list[str]]
FEW = (2.5, 1.5)  # bits that the codebooks of theory.json are compared at


def summary() -> tuple[str, Rows]:
    """Six runs of different kinds."""
    rows = []
    for name, how in {
        "resnet20-inq-4bit": "4 bits, INQ",
        "resnet20-inq-2bit": "2 bits, INQ",
        "resnet20-dnq-70kb": "2.4 bits, by layer, INQ",
        "resnet20-sparse-4bit": "85 % pruned, 4 bits, INQ",
    }.items():
        run = load(name)
        scores = [f"**{run['score']:.2f}**", f"{run['float_score']:.2f}", control(run)]
        rows.append(["ResNet-20, CIFAR-10", how, f"{epochs(run)} epochs", *scores, *size(run)])
    network = load("efficientnet")
    row = network["rows"]["4, absorbed"]
    scores = [f"**{row['accuracy']:.2f}**", f"{network['float']:.2f}", ""]
    rows.append([
        "EfficientNet-Lite0, photographs", "4 bits, calibrated, absorb", "none", *scores, *size(row)
    ])  # fmt: skip
    detector = load("speech")
    (row,) = (
        row
        for row in detector["rows"]
        if (row["layers"], row["bits"], row["way"]) == ("all", 3, "closed form")
    )
    scores = [f"**{row['accuracy']:.2f}**", f"{detector['float']['accuracy']:.2f}", ""]
    rows.append(["Silero VAD, speech", "3 bits, calibrated", "none", *scores, *size(row)])
    head = (
        "network and data, weights, training, accuracy, before, control, file in bytes,"
        " times smaller"
    )
    return head, rows


def ways() -> tuple[str, Rows]:
    """What each way of quantizing reaches on ResNet-20, for the page that helps to choose."""
    calibrated = load("oneshot")["rows"]
    rows = []
    for way, words in {
        "nearest": "nearest levels",
        "gptq": "`calibrate`",
        "gptq, absorbed": "`calibrate`, absorb",
    }.items():
        scores = [calibrated[f"resnet20/{bits}/{way}"]["mean"] for bits in (4, 3, 2)]
        rows.append([words, "none", *(f"{score:.2f}" for score in scores)])
    runs = [load(f"resnet20-inq-{bits}bit") for bits in (4, 3, 2)]
    trained = " or ".join(sorted({epochs(run) for run in runs}))
    rows.append(["`Incremental`", f"{trained} epochs", *(f"{run['score']:.2f}" for run in runs)])
    controls = [control(run) for run in runs]
    rows.append(["control, full precision", f"{trained} epochs", *controls])
    return "way, training, 4 bits, 3 bits, 2 bits", rows


def tutorial() -> tuple[str, Rows]:
    rows = []
    for row in load("tutorial")["rows"]:
        size_in_bytes = f"{row['file_bytes']:,}" if row["file_bytes"] else ""
        rows.append([row["name"], f"{row['accuracy']:.1f}", size_in_bytes])
    return "network, accuracy, file in bytes", rows


def rates(result: str) -> tuple[str, Rows]:
    """The files of a network at several rates, beside integers, the smallest first."""
    rows = []
    for name, found in load(result)["rows"].items():
        sets = list(found.values())
        if not sets:
            continue
        kind, *settings = name.split("/")
        if kind == "octavo":
            how = f"`{settings[0]}`, rate {settings[1]}"
        else:
            price = f"price {settings[1]}" + (", weighted" if "weighted" in settings else "")
            how = f"integers, step {settings[0]}, {price}"
        size, accuracy, divergence = (
            mean(one[key] for one in sets) for key in ("file_bytes", "accuracy", "divergence")
        )
        each = " / ".join(f"{one['accuracy']:.2f}" for one in sets)
        rows.append([how, f"{size:,.0f}", f"**{accuracy:.2f}**", each, f"{divergence:.4f}"])
    rows.sort(key=lambda row: int(row[1].replace(",", "")))
    return "way, file in bytes, accuracy, of each set, divergence", rows


def peers(network: str) -> tuple[str, Rows]:
    """Files of other packages and of octavo, the smallest first; last those that failed."""
    rows = []
    failed = []
    exact = {True: "yes", False: "no", None: ""}
    for name, row in load("peers")["rows"][network].items():
        if "why" in row:
            failed.append([name, *[""] * 6, row["why"]])
            continue
        cells = [f"{row['file_bytes']:,}", f"{row['accuracy']:.2f}", exact[row["exact"]]]
        cells += [f"{row['seconds']:.0f}", f"{row['memory_mb']:,}", str(row["lines"]), ""]
        rows.append([name, *cells])
    rows.sort(key=lambda row: int(row[1].replace(",", "")))
    return "way, file in bytes, accuracy, exact, seconds, MB, lines, failed", rows + failed


def small() -> tuple[str, Rows]:
    """The published retrained networks in fewer bytes, and nncodec's stream of the same codes."""
    names = {
        "resnet20-inq-5bit": "5 bits",
        "resnet20-inq-4bit": "4 bits",
        "resnet20-inq-3bit": "3 bits",
        "resnet20-dnq-70kb": "2.4 bits on average",
        "resnet20-inq-2bit": "2 bits",
        "resnet20-sparse-4bit": "85 % pruned, 4 bits",
    }
    rows = []
    for run, words in names.items():
        row = load("small")["rows"][run]
        rival = load("cabac")["rows"][run]
        files = [f"{row[form]['file_bytes']:,}" for form in ("fast", "small", "folded")]
        files += [f"{load(run)['score']:.2f}", f"{row['folded']['score']:.2f}"]
        own = row["small"]["code_bytes"]
        stream = rival["stream_bytes"]
        alone = stream - rival["header_bytes"]
        difference = f"{100 * (own / stream - 1):+.1f} % / {100 * (own / alone - 1):+.1f} %"
        cells = [f"{own:,}", f"{stream:,} / {alone:,}", difference]
        rows.append([words, *files, *cells])
    head = (
        "network, file `fast`, file `small`, and folded, accuracy, folded, its codes, by nncodec,"
        " difference"
    )
    return head, rows


def fits() -> str:
    """The errors of powers of two by INQ's rule and by the least squared error, in a sentence."""
    codebooks = load("codebooks")
    falls = []
    for bits, before in codebooks["inq_rule"].items():
        after = codebooks["weights"][bits]["relative_squared_error"]["gaussian, per channel"]
        falls.append(f"from {three_digits(before)} to {three_digits(after)} at {bits} bits")
    return f"For Gaussian weights, the relative squared error falls {' and '.join(falls)}."


def theory() -> tuple[str, Rows]:
    """Decibels above the bound of each codebook, at its least error and at fewer bits."""
    rows = []
    for name, kinds in load("theory")["codebooks"].items():
        row = [f"{name} bits" if name.isdigit() else f"`{name}`"]
        for curves in kinds.values():
            bits, _, decibels = curves["nearest"][0]
            row += [f"{bits:.2f}", f"{decibels:.2f}"]
            row += [
                f"{at(curves['nearest'], few)} / {at(curves['rate-aware'], few)}" for few in FEW
            ]
        rows.append(row)
    return (
        "codebook, Gaussian bits, dB, 2.5 bits, 1.5 bits, Laplace bits, dB, 2.5 bits, 1.5 bits",
        rows,
    )


def at(curve: list[list[float]], bits: float) -> str:
    """The decibels of a codebook at so many bits, between its points; none beyond its most."""
    for (most, _, last), (least, _, first) in pairwise(curve):
        if least <= bits <= most:
            return f"{first + (last - first) * (bits - least) / (most - least):.2f}"
    return "-"


def inq_rates() -> tuple[str, Rows]:
    """The digits network at several rates, calibrated alone and after INQ."""
    rows = []
    for row in load("inq-rate")["rows"]:
        way = {"ptq": "`calibrate`", "inq": "`Incremental`"}[row["method"]]
        size_in_bytes = f"{row['file_bytes']:,}"
        rows.append(
            [f"`{row['width']}`", way, f"{row['rate']:g}", size_in_bytes, f"{row['score']:.1f}"]
        )
    return "codebook, way, rate, file in bytes, accuracy", rows


def stories() -> tuple[str, Rows]:
    """A language model in full precision, calibrated, and after INQ, on the stories of the test."""
    result = load("stories")
    rows = []
    for name in ("full precision", "calibrate", "INQ"):
        one = result[name]
        size = f"{one['file_bytes']:,}" if "file_bytes" in one else ""
        rows.append([name, size, f"{one['perplexity']:.3f}", f"{one['divergence']:.4f}"])
    return "way, file in bytes, perplexity, divergence", rows


def llama_cpp() -> tuple[str, Rows]:
    """The outputs of llama.cpp beside those of the packed network."""
    rows = []
    for name, one in load("llama-cpp")["networks"].items():
        types = ", ".join(sorted(one["types"]))
        ways = ("llama.cpp", "rounded inputs", "full precision")
        figures = [f"{one[f'divergence of {way}']:.2g}" for way in ways]
        rows.append([name, types, *figures, f"{one['same first token, %']:.1f} %"])
    return "network, types, llama.cpp, rounded inputs, full precision, same first token", rows
