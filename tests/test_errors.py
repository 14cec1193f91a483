"""The exceptions a user may catch: all are octavo's, and each is the built-in that it refines."""

import pickle

import pytest

from octavo import errors

BUILT_IN = {
    "PlanError": ValueError,
    "BudgetError": ValueError,
    "RecipeError": ValueError,
    "FormatError": ValueError,
    "TrainingError": RuntimeError,
    "ExportError": RuntimeError,
}


def test_all_are_listed_here() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert found == {"OctavoError", *BUILT_IN}
    assert set(errors.__all__) == {*found, "brief", "either", "install", "nearest", "printable"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_is_octavos_and_the_built_in_it_refines(name: str) -> None:
    error: type[Exception] = getattr(errors, name)
    assert issubclass(error, errors.OctavoError)
    assert issubclass(error, BUILT_IN[name])
    for other in set(BUILT_IN) - {name}:
        assert not issubclass(error, getattr(errors, other))
    for caught in (errors.OctavoError, BUILT_IN[name]):
        with pytest.raises(caught, match=r"^conv1: what came$"):
            raise error("conv1: what came")


def test_the_root_is_no_built_in_but_exception() -> None:
    assert errors.OctavoError.__bases__ == (Exception,)


@pytest.mark.parametrize("name", ["OctavoError", *BUILT_IN])
def test_they_cross_processes(name: str) -> None:
    error = getattr(errors, name)("conv1: what came")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), "conv1: what came")


@pytest.mark.parametrize(
    ("word", "known", "only_alike", "end"),
    [
        ("epoch", "bits epochs portions", False, " (the nearest is 'epochs')"),
        ("epoch", "bits epochs portions", True, " (the nearest is 'epochs')"),
        ("xyz", "bits epochs portions", True, ""),
        ("xyz", "bits epochs portions", False, "; expected bits, epochs or portions"),
        ("conv1", "0 5", False, "; expected 0 or 5"),
        ("bayes", "dnq tpe cmaes", True, ""),  # as many letters in a row are the same by chance
        ("dqn", "dnq tpe cmaes", True, " (the nearest is 'dnq')"),
        ("x", "", False, ""),
        ("x", "a b c d e f g h i", False, "; expected a, b, c, d, e, f, g, h or i"),
        ("x", "a b c d e f g h i j", False, "; expected a, b, c, d, e, f, g, h or one of 2 others"),
    ],
)
def test_the_nearest_word(word: str, known: str, only_alike: bool, end: str) -> None:
    assert errors.nearest(word, iter(known.split()), only_alike=only_alike) == end


@pytest.mark.parametrize("word", ["0", "conv*"])
def test_names_before_compilation(word: str) -> None:
    said = errors.nearest(word, ["_orig_mod.0", "_orig_mod.conv1"], only_alike=True)
    assert said.startswith("; pass the model before torch.compile, ")
    near = errors.nearest("_orig_mod.1", ["_orig_mod.0"])
    assert near == " (the nearest is '_orig_mod.0')"


def test_brief_is_one_line_that_is_not_too_long() -> None:
    assert errors.brief(ValueError("a\n  b")) == "ValueError: a b"
    assert errors.brief(KeyError()) == "KeyError"
    assert len(errors.brief(RuntimeError("x" * 999))) < 200


def test_no_message_steers_the_terminal() -> None:
    assert errors.printable("Größe 1.0 日本") == "Größe 1.0 日本"
    assert errors.printable("a\x1b[2J\r\n\u202eb\ud800") == r"a\x1b[2J\r\n\u202eb\ud800"
    assert str(errors.FormatError("x\x07: damaged")) == r"x\x07: damaged"
    long = str(errors.PlanError("a" * 5_000 + "b" * 5_000))
    assert (len(long), long[:3], long[-3:]) == (2_005, "aaa", "bbb")


@pytest.mark.parametrize(
    ("words", "choice"), [(["a"], "a"), (["a", "b"], "a or b"), (["a", "b", "c"], "a, b or c")]
)
def test_words_as_a_choice(words: list[str], choice: str) -> None:
    assert errors.either(words) == choice
