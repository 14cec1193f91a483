"""Recipes: what they say, what they take over from their base, what overrides them, and what is
said of a bad one."""

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import OctavoError, RecipeError
from octavo.formats.width import Width
from octavo.plan import Budget
from octavo.ptq.file_form import FileForm
from octavo.runs.orders import OrderFunction
from octavo.runs.recipe import load_recipe, make_recipe
from octavo.runs.recipes import RECIPES
from octavo.runs.retraining import Retraining
from octavo.runs.sections import Activations, Prune, Ptq, Search
from octavo.storage.packed import FloatForm

GOOD = "task: digits\nbits: 3\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_a_short_recipe_takes_the_defaults(folder: Path) -> None:
    recipe = load_recipe(write("r.yaml", GOOD))
    assert recipe.model_dump(mode="python", exclude={"retraining"}) == {
        "task": "digits",
        "options": {},
        "teacher": {},
        "bits": 3,
        "search": None,
        "activations": None,
        "method": "inq",
        "warmup": 0.0,
        "prune": None,
        "start": "ptq",
        "ptq": {
            "order": "gptq",
            "damp": 0.01,
            "sequential": True,
            "absorb": False,
            "rate": 0.0,
            "budget": None,
        },
        "portions": (0.5, 0.75, 0.875, 1.0),
        "order": "magnitude",
        "straight_through": 1.0,
        "rate": 0.0,
        "fit": "mse",
        "per": "channel",
        "epochs": 1.0,
        "export": (),
        "control": True,
        "floats": "float32",
        "coding": "fast",
        "device": "auto",
        "seed": 0,
        "publish": None,
    }
    assert recipe.retraining == Retraining()
    assert [epochs for _, epochs in recipe.schedule] == [1.0, 1.0, 1.0, 0.0]


def test_every_key_is_read(folder: Path) -> None:
    text = """
task: a.b:C
options: {depth: 20}
teacher: {depth: 56}
bits: {"*": 3, "conv?": 5}
method: ptq
warmup: 1.5
start: float
ptq: {order: distance, damp: 0, sequential: false, absorb: true}
portions: [0.25, 1]
order: mine/orders.py:far
fit: max
per: tensor
epochs: [2, 0.5]
retraining: {learning_rate: 1e-3, labels: 0.5, bfloat16: true}
control: false
seed: 7
publish: out/here
"""
    recipe = load_recipe(write("r.yaml", text))
    assert (recipe.task, recipe.options, recipe.teacher) == ("a.b:C", {"depth": 20}, {"depth": 56})
    assert isinstance(recipe.bits, dict)
    assert list(recipe.bits.items()) == [
        ("*", Width(3)),
        ("conv?", Width(5)),
    ]  # in order: the last pattern that matches counts
    assert (recipe.method, recipe.start) == ("ptq", "float")
    assert recipe.ptq == Ptq(order="distance", damp=0, sequential=False, absorb=True)
    assert (recipe.portions, recipe.order, recipe.fit, recipe.per) == (
        (0.25, 1.0),
        OrderFunction("mine/orders.py:far"),
        "max",
        "tensor",
    )
    assert (recipe.epochs, recipe.schedule, recipe.warmup) == (
        (2.0, 0.5),
        ((0.25, 2.0), (1.0, 0.5)),
        1.5,
    )
    assert recipe.retraining == Retraining(learning_rate=0.001, labels=0.5, bfloat16=True)
    assert (recipe.control, recipe.seed, recipe.publish) == (False, 7, "out/here")


def test_a_search_in_place_of_bits(folder: Path) -> None:
    base = write("base.yaml", "task: digits\nsearch: {budget: {average_bits: 3}}")
    recipe = load_recipe(base)
    assert (recipe.bits, recipe.search) == (None, Search(budget=Budget(average_bits=3)))
    assert recipe.search == Search(
        budget=Budget(average_bits=3),
        method="dnq",
        trials=512,
        options=None,
        pins={},
    )  # the command's own defaults
    text = (
        "base: base.yaml\n"
        "search: {method: random, trials: 20, options: [2, 4], pins: {conv1: 4}, refine: 0.25,\n"
        "  objective: task, retrain_steps: 50}\n"
        "order: [relative, relative, relative, random]"
    )
    recipe = load_recipe(write("r.yaml", text), ["search.budget.average_bits=2.5"])
    assert recipe.search == Search(
        budget=Budget(average_bits=2.5),
        method="random",
        trials=20,
        options=(Width(2), Width(4)),
        pins={"conv1": Width(4)},
        refine=0.25,
        objective="task",
        retrain_steps=50,
    )
    assert recipe.order == ("relative", "relative", "relative", "random")
    assert make_recipe(recipe.model_dump(mode="json"), "again") == recipe
    assert load_recipe(write("bits.yaml", "base: r.yaml\nsearch: null\nbits: 3")).bits == 3
    assert (
        load_recipe(
            write("search.yaml", "base: bits.yaml\nbits: null\nsearch: {budget: {ratio: 9}}")
        ).bits
        is None
    )


@pytest.mark.parametrize(
    ("keys", "floats"),
    [
        ({"bits": 3}, "float32"),
        ({"bits": 3, "rate": 2}, None),
        ({"bits": 3, "ptq": {"rate": 2}}, None),  # folded where that is near
        ({"bits": 3, "ptq": {"budget": {"bytes": 9000}}}, None),
        ({"search": {"budget": {"ratio": 9}}}, None),
        ({"search": {"budget": {"average_bits": 3}}}, "float32"),
        ({"bits": 3, "ptq": {"rate": 2}, "floats": "float32"}, "float32"),
    ],
)
def test_norms_may_be_folded_where_a_small_file_is_asked_for(
    keys: dict[str, Any], floats: FloatForm | None
) -> None:
    recipe = make_recipe({"task": "digits", **keys}, "r")
    assert recipe.file_form == FileForm(floats=floats)
    assert make_recipe(recipe.model_dump(mode="json"), "again") == recipe


@pytest.mark.parametrize(
    ("keys", "rate"),
    [
        ({}, 0.0),
        ({"ptq": {"rate": 2}}, 2.0),
        ({"ptq": {"rate": 2}, "rate": 0}, 0.0),
        ({"ptq": {"rate": 2}, "method": "ptq"}, 0.0),
        ({"ptq": {"budget": {"bytes": 9000}}}, None),  # calibration has yet to find it
        ({"ptq": {"budget": {"bytes": 9000}}, "rate": 3}, 3.0),
    ],
)
def test_inq_has_the_rate_of_calibration_unless_it_has_its_own(
    keys: dict[str, Any], rate: float | None
) -> None:
    recipe = make_recipe({"task": "digits", "bits": 3, **keys}, "r")
    assert recipe.rate == rate
    assert make_recipe(recipe.model_dump(mode="json"), "again") == recipe


def test_a_budget_of_calibration_is_one_of_the_file_beside_no_rate() -> None:
    for ptq, said in (
        ({"budget": {"average_bits": 3}}, "ptq: budget: expected bytes or ratio"),
        ({"budget": {"bytes": 9000}, "rate": 1}, "ptq: budget: expected no rate beside it"),
    ):
        with pytest.raises(RecipeError, match=said):
            make_recipe({"task": "digits", "bits": 3, "ptq": ptq}, "r")
    content = {"task": "digits", "bits": 3, "ptq": {"budget": {"bytes": 9000}}, "start": "float"}
    with pytest.raises(RecipeError, match=r"ptq\.budget: expected start ptq, .* got float"):
        make_recipe(content, "r")
    with pytest.raises(RecipeError, match=r"rate: expected method inq, or ptq\.rate, got ptq"):
        make_recipe({"task": "digits", "bits": 3, "rate": 2, "method": "ptq"}, "r")
    with pytest.raises(RecipeError, match=r"unknown key 'ptq\.budget\.byte'"):
        make_recipe({"task": "digits", "bits": 3, "ptq": {"budget": {"byte": 9}}}, "r")


def test_how_activations_are_quantized(folder: Path) -> None:
    recipe = load_recipe(write("base.yaml", "task: digits\nbits: 4\nactivations: {bits: 4}"))
    assert recipe.activations == Activations(bits=4, fit="mse", power_of_two=False, learned=True)
    text = (
        'base: base.yaml\nactivations: {bits: {"*": 4, conv1: 8}, fit: 99.9, '
        "power_of_two: true, learned: false}"
    )
    recipe = load_recipe(write("r.yaml", text))
    assert recipe.activations == Activations(
        bits={"*": 4, "conv1": 8}, fit=99.9, power_of_two=True, learned=False
    )
    assert make_recipe(recipe.model_dump(mode="json"), "again") == recipe
    other = load_recipe(write("other.yaml", "base: r.yaml\nactivations: {bits: {conv2: 3}}"))
    assert other.activations == Activations(
        bits={"conv2": 3}, fit=99.9, power_of_two=True, learned=False
    )
    assert load_recipe(write("none.yaml", "base: r.yaml\nactivations: null")).activations is None


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_it_are_valid(path: Path) -> None:
    assert load_recipe(path).schedule


def test_a_base_is_taken_over_from_its_own_folder(folder: Path) -> None:
    write(
        "base/root.yaml",
        (
            "task: digits\nbits: {a: 3, b: 4}\nseed: 1\noptions: {x: 1, y: "
            "{z: 1}}\nretraining: {clip: 2, momentum: 0.5}"
        ),
    )
    write(
        "base/middle.yaml", "base: root.yaml\nseed: 2\nretraining: {clip: 3}\noptions: {y: {w: 2}}"
    )
    recipe = load_recipe(write("mine.yaml", "base: base/middle.yaml\nbits: {a: 5}\nepochs: 2"))
    assert (recipe.task, recipe.seed, recipe.epochs) == ("digits", 2, 2.0)
    assert (recipe.retraining.clip, recipe.retraining.momentum) == (3.0, 0.5)
    assert recipe.options == {"x": 1, "y": {"z": 1, "w": 2}}
    assert recipe.bits == {"a": 5}  # a plan is one thing: the base's b is gone


def test_two_recipes_may_share_a_base(folder: Path) -> None:
    write("root.yaml", GOOD)
    for name in ("one", "two"):
        assert load_recipe(write(f"{name}.yaml", "base: root.yaml")).bits == 3


def test_overrides(folder: Path) -> None:
    path = write("r.yaml", GOOD + "options: {depth: 20}")
    pairs = [
        "bits={'*': 2}",
        "seed=5",
        "seed=6",
        "retraining.learning_rate=0.5",
        "retraining.labels=1",
        "options.name=a=b",
        "teacher.new.deep=[1, 2]",
        "publish=",
        "control=no",
    ]
    recipe = load_recipe(path, pairs)
    assert recipe.bits == {"*": Width(2)}
    assert (recipe.seed, recipe.publish, recipe.control) == (6, None, False)
    assert recipe.retraining == Retraining(learning_rate=0.5, labels=1.0)
    assert (recipe.options, recipe.teacher) == (
        {"depth": 20, "name": "a=b"},
        {"new": {"deep": [1, 2]}},
    )


def test_layers_whose_names_look_like_numbers(folder: Path) -> None:
    path = write("r.yaml", "task: digits\nbits: {0: 3, 1.10: 4, '2': 5}")
    assert load_recipe(path).bits == {"0": 3, "1.10": 4, "2": 5}
    assert load_recipe(path, ["bits={0: 2}", "options.classes={1: one}"]).bits == {"0": 2}
    assert load_recipe(path, ["bits.0=2"]).bits == {"0": 2, "1.10": 4, "2": 5}


def refusal(path: str, pairs: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, pairs)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 1", "unknown key 'epoch' (the nearest is 'epochs')"),
        ("Seed: 1", "unknown key 'Seed' (the nearest is 'seed')"),
        ("retrainings: {}", "unknown key 'retrainings' (the nearest is 'retraining')"),
        (
            "retraining: {learning_rat: 1}",
            "unknown key 'retraining.learning_rat' (the nearest is 'learning_rate')",
        ),
        (
            "activations: {bits: 4, learnd: no}",
            "unknown key 'activations.learnd' (the nearest is 'learned')",
        ),
        ("activations: {}", "activations.bits: Field required"),
        (
            "activations: {bits: 9}",
            "activations.bits: Input should be less than or equal to 8, got 9",
        ),
        (
            "activations: {bits: {conv1: 1}}",
            "activations.bits.conv1: Input should be greater than or equal to 2, got 1",
        ),
        (
            "activations: {bits: 4, fit: max}",
            "activations: fit: expected \"mse\" or a percentile above 0 and up to 100, got 'max'",
        ),
        (
            "activations: {bits: 4, fit: 101}",
            'activations: fit: expected "mse" or a percentile above 0 and up to 100, got 101',
        ),
        ("ptq: {dump: 1}", "unknown key 'ptq.dump' (the nearest is 'damp')"),
        (
            "ptq: {order: far}",
            "ptq.order: Input should be 'gptq', 'distance' or 'magnitude', got 'far'",
        ),
        ("ptq: {damp: -1}", "ptq.damp: Input should be greater than or equal to 0, got -1"),
        ("method: dnq", "method: Input should be 'inq' or 'ptq', got 'dnq'"),
        (
            "retraining: {weigth_decay: 1}",
            "unknown key 'retraining.weigth_decay' (the nearest is 'weight_decay')",
        ),
        ("3: 1", "unknown key '3'; expected one of task, options, teacher, bits, "),
        ("bit: 3", "unknown key 'bit' (the nearest is 'bits')"),  # and not that bits are missing
        (
            "task: 3\nretraining: {clip: x, momentun: 1}",
            "unknown key 'retraining.momentun' (the nearest is 'momentum')",
        ),
        ("bits: 9", "bits: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 9"),
        ("bits: 1", "bits: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 1"),
        ("bits: 3.5", "bits: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 3.5"),
        ("bits: '3'", "bits: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got '3'"),
        ("bits: yes", "bits: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got True"),
        (
            "bits: {conv1: 3, layer1.0.conv1: 9}",
            "bits.layer1.0.conv1: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 9",
        ),
        (
            "bits: {conv1: x}",
            "bits.conv1: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 'x'",
        ),
        ("task: 3", "task: Input should be a valid string, got 3"),
        ("options: 3", "options: Input should be a valid dictionary, got 3"),
        (
            "order: size",
            "order: expected one of magnitude, .*, or path/to/file.py:function, got 'size'",
        ),
        (
            "order: [random, size, random, random]",
            "order.1: expected one of magnitude, .*, or path/to/file.py:function, got 'size'",
        ),
        ("order: [random, distance]", "order: expected one, or 4, one a portion; got 2"),
        ("order: []", "order: expected one, or 4, one a portion; got 0"),
        (
            "order: 3",
            "order: expected one of magnitude, .*, or path/to/file.py:function, got 3",
        ),
        ("per: row", 'per: expected per "tensor" or "channel", got \'row\''),
        (
            "control: 7",
            "control: Input should be a valid boolean, unable to interpret input, got 7",
        ),
        (
            "seed: 1.5",
            "seed: Input should be a valid integer, got a number with a fractional part, got 1.5",
        ),
        ("seed: 4294967296", "seed: Input should be less than 4294967296, got 4294967296"),
        ("seed: -1", "seed: Input should be greater than or equal to 0, got -1"),
        ("portions: 0.5", "portions: Input should be a valid tuple, got 0.5"),
        (
            "portions: [0.5, x]",
            (
                "portions.1: Input should be a valid number, unable "
                "to parse string as a number, got 'x'"
            ),
        ),
        (
            "portions: [0.5, 0.4, 1]",
            "portions: expected shares that rise strictly .* to exactly 1, got (0.5, 0.4, 1.0)",
        ),
        ("portions: [0.5, 0.9]", "portions: expected shares .*, got (0.5, 0.9)"),
        ("portions: [0, 1]", "portions: expected shares .*, got (0.0, 1.0)"),
        ("portions: [0.5, .nan, 1]", "portions: expected shares .*, got (0.5, nan, 1.0)"),
        ("portions: []", "portions: expected shares .*, got ()"),
        ("epochs: [1, 2]", "epochs: expected one number, or 4, one a portion; got 2"),
        (
            "epochs: [1, 2, x, 3]",
            "epochs.2: Input should be a valid number, unable to parse string as a number, got 'x'",
        ),
        ("epochs: -1", "epochs: Input should be greater than or equal to 0, got -1"),
        ("epochs: .inf", "epochs: Input should be a finite number, got inf"),
        ("search: 3", "search: Input should be a dictionary or an instance of Search, got 3"),
        ("search: {}", "search.budget: Field required"),
        ("search: {budget: {ratio: 9}}", "expected either bits or search, got both"),
        (
            "search: {budget: {}}",
            (
                "search.budget: expected exactly one of ratio, "
                "average_bits, bytes and bit_ops, got none"
            ),
        ),
        (
            "search: {budget: {average_bit: 3}}",
            "unknown key 'search.budget.average_bit' (the nearest is 'average_bits')",
        ),
        (
            "search: {budget: {bytes: 9}, trial: 3}",
            "unknown key 'search.trial' (the nearest is 'trials')",
        ),
        (
            "search: {budget: {bit_ops: 9}, activations: [4, 9]}",
            "search.activations.1: Input should be less than or equal to 8",
        ),
        (
            "bits: null\nactivations: {bits: 4}\nsearch: {budget: {bit_ops: 9}, activations: [4]}",
            "expected either activations or search.activations, got both",
        ),
        (
            "search: {budget: {bytes: 9}, trials: 0}",
            "search.trials: Input should be greater than or equal to 1, got 0",
        ),
        (
            "search: {budget: {bytes: 9}, refine: 1}",
            "search.refine: Input should be less than 1, got 1",
        ),
        (
            "search: {budget: {bytes: 9}, objective: accuracy}",
            "search.objective: Input should be 'divergence' or 'task', got 'accuracy'",
        ),
        (
            "search: {budget: {bytes: 9}, retrain_steps: 0}",
            "search.retrain_steps: Input should be greater than or equal to 1, got 0",
        ),
        (
            "bits: null\nmethod: ptq\nsearch: {budget: {bytes: 9}, retrain_steps: 10}",
            "search.retrain_steps: expected method inq, which retrains, got ptq",
        ),
        (
            "search: {budget: {bytes: 9}, options: [2, 9]}",
            "search.options.1: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 9",
        ),
        (
            "search: {budget: {bytes: 9}, pins: {a.b: 1}}",
            "search.pins.a.b: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 1",
        ),
        (
            "retraining: 3",
            "retraining: Input should be a dictionary or an instance of Retraining, got 3",
        ),
        (
            "retraining: {learning_rate: -1}",
            "retraining: learning_rate: expected a positive number, got -1.0",
        ),
        (
            "retraining: {clip: x}",
            (
                "retraining.clip: Input should be a valid number, unable "
                "to parse string as a number, got 'x'"
            ),
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_file_and_key(
    text: str, said: str, folder: Path
) -> None:
    keys = text.partition(":")[0]
    path = write(
        "sub/r.yaml",
        "\n".join([text, *(line for line in GOOD.splitlines() if not line.startswith(keys))]),
    )
    message = refusal(path)
    head, _, tail = said.partition(".*")
    assert message.startswith(f"sub/r.yaml: {head}")
    assert message.endswith(tail)
    assert message.count("got ") <= 2  # one of pydantic's own at most


def test_missing_keys(folder: Path) -> None:
    assert refusal(write("r.yaml", "bits: 3")) == "r.yaml: task: Field required"
    assert (
        refusal(write("r.yaml", "task: digits"))
        == "r.yaml: expected either bits or search, got neither"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping of keys to values, got NoneType"),
        ("- task: digits", "expected a mapping of keys to values, got list"),
        ("just words", "expected a mapping of keys to values, got str"),
        ("task: [", "not a readable recipe: line .*while parsing a flow node"),
        ("\x00", "not a readable recipe: line 1, column 1: expected printable text"),
        ("[" * 1000, "not a readable recipe: line 1, column 33: expected at most 32 levels"),
        (
            "!!python/object/apply:os.getcwd []",
            "not a readable recipe: line 1, column 1: expected one of the tags",
        ),
        (
            "seed: 1\nbits: 3\nseed: 2",
            "not a readable recipe: line 3, column 1: the key 'seed' comes twice; keep one",
        ),
        (
            "bits: {conv1: 3, conv1: 4}",
            "not a readable recipe: line 1, column 18: the key 'conv1' comes twice; keep one",
        ),
    ],
)
def test_what_is_no_recipe_at_all(text: str, said: str, folder: Path) -> None:
    head, _, tail = said.partition(".*")
    message = refusal(write("r.yaml", text))
    assert message.startswith(f"r.yaml: {head}")
    assert tail in message


def test_files_that_cannot_be_read(folder: Path) -> None:
    assert refusal("none.yaml").startswith("none.yaml: not a readable recipe: ")
    assert "No such file" in refusal("none.yaml")
    (folder / "latin.yaml").write_bytes(b"task: \xff")
    assert refusal("latin.yaml").startswith("latin.yaml: not a readable recipe: ")
    (folder / "dir.yaml").mkdir()
    assert refusal("dir.yaml").startswith("dir.yaml: not a readable recipe: ")


def test_a_base_that_cannot_be_read_or_leads_back(folder: Path) -> None:
    write("sub/a.yaml", "base: b.yaml")
    write("sub/b.yaml", "base: ../sub/a.yaml")
    assert refusal("sub/a.yaml").endswith("a.yaml: is its own base")
    assert refusal(write("self.yaml", "base: self.yaml")) == "self.yaml: is its own base"
    assert refusal(write("c.yaml", "base: sub/none.yaml")).startswith(
        "sub/none.yaml: not a readable recipe: "
    )


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("seed", "--set seed: expected key=value"),
        ("=1", "--set =1: expected key=value"),
        ("", "--set : expected key=value"),
        ("seed=[", "--set seed=[: not a YAML value: line .*"),
        ("seed=2001-99-99", "r.yaml: seed: Input should be a valid integer.*"),
        (
            "bits={a: 3, a: 4}",
            (
                "--set bits={a: 3, a: 4}: not a YAML value: line 1, column 8: the "
                "key 'a' comes twice; keep one of the two"
            ),
        ),
        ("bits.conv1=3", "--set bits.conv1=3: bits is not a mapping"),
        ("retraining.clip.x=3", "--set retraining.clip.x=3: clip is not a mapping"),
        ("sed=1", "r.yaml: unknown key 'sed' (the nearest is 'seed')"),
        (
            "retraining.momentun=1",
            "r.yaml: unknown key 'retraining.momentun' (the nearest is 'momentum')",
        ),
        (
            "retraining=1",
            "r.yaml: retraining: Input should be a dictionary or an instance of Retraining, got 1",
        ),
        ("epochs=[1]", "r.yaml: epochs: expected one number, or 4, one a portion; got 1"),
    ],
)
def test_overrides_that_do_not_fit(pair: str, said: str, folder: Path) -> None:
    message = refusal(write("r.yaml", GOOD + "retraining: {clip: 1}"), (pair,))
    assert message.startswith(said.removesuffix(".*")) if said.endswith(".*") else message == said


def test_plain_data_makes_a_recipe_and_keeps_its_name_in_errors() -> None:
    content: dict[str, Any] = {"task": "digits", "bits": {"conv1": 3}}
    assert make_recipe(content, "here").bits == {"conv1": 3}
    assert make_recipe(
        make_recipe(content, "here").model_dump(mode="json"), "again"
    ) == make_recipe(content, "here")
    with pytest.raises(OctavoError, match=r"^here: unknown key 'x'"):
        make_recipe(content | {"x": 1}, "here")


def test_a_recipe_cannot_be_changed() -> None:
    recipe = make_recipe({"task": "digits", "bits": 3}, "here")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


def test_pruning_has_finer_portions_of_its_own(folder: Path) -> None:
    pruned = load_recipe(write("p.yaml", GOOD + "prune: {sparsity: 0.8}\n"))
    assert pruned.prune == Prune(sparsity=0.8, epochs=4.0)
    assert pruned.portions[:5] == (0.05, 0.1, 0.15, 0.2, 0.3)
    assert load_recipe("p.yaml", ["portions=[0.5, 1]"]).portions == (0.5, 1.0)
    assert make_recipe(pruned.model_dump(mode="json"), "again") == pruned
    by_layer = load_recipe("p.yaml", ['prune={sparsity: {"*": 0.8, conv1: 0.5}, epochs: 2}'])
    assert by_layer.prune == Prune(sparsity={"*": 0.8, "conv1": 0.5}, epochs=2)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "prune.sparsity=1.2",
            "prune: sparsity: expected a sparsity of at least 0, below 1, got 1.2",
        ),
        (
            "prune.sparsity={conv1: 2}",
            "prune: conv1: expected a sparsity of at least 0, below 1, got 2",
        ),
        ("prune.sparsity=much", "expected a sparsity of at least 0, below 1, got 'much'"),
        ("prune.epochs=-1", "prune.epochs: "),
        ("prune.sparsty=0.5", "unknown key 'prune.sparsty' .the nearest is 'sparsity'"),
        ("method=ptq", "prune: expected method inq, which retrains, got ptq"),
        ("floats=float8", "floats: "),
    ],
)
def test_what_is_wrong_with_pruning_is_named(setting: str, said: str, folder: Path) -> None:
    write("p.yaml", GOOD + "prune: {sparsity: 0.8}\n")
    with pytest.raises(RecipeError, match=said):
        load_recipe("p.yaml", [setting])
