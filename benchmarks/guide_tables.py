"""The tables of the pages that guide a reader, see benchmarks/table.py."""

from pages import (  # type: ignore[import-not-found]  # its neighbour
    control,
    epochs,
    load,
    size,
)

Rows = list[list[str]]


def summary() -> tuple[str, Rows]:
    """Six runs of different kinds."""
    rows = []
    for name, how in {
        "resnet20-inq-4bit": "4 bits, INQ",
        "resnet20-inq-2bit": "2 bits, INQ",
        "resnet20-dnq-70kb": "2.4 bits on average by DNQ, INQ",
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


def rates() -> tuple[str, Rows]:
    """The files of ResNet-20 at several rates, beside integers, the smallest first."""
    rows = []
    for name, found in load("rate")["rows"].items():
        kind, *settings = name.split("/")
        if kind == "octavo":
            how = f"`{settings[0]}`, rate {settings[1]}"
        else:
            price = f"price {settings[1]}" + (", weighted" if "weighted" in settings else "")
            how = f"integers, step {settings[0]}, {price}"
        one = found["0"]
        accuracy = f"{one['accuracy']:.2f}"
        rows.append([how, f"{one['file_bytes']:,}", accuracy, f"{one['divergence']:.4f}"])
    rows.sort(key=lambda row: int(row[1].replace(",", "")))
    return "way, file in bytes, accuracy, divergence", rows


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
