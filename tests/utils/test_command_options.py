"""One declaration of an option serves flags, YAML, help, types and ranges."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.options import (
    Config,
    NaturalInt,
    PositiveInt,
    Share,
    named_values,
    option,
    parse,
    usage,
)


@dataclass
class SoundConfig(Config):
    """Do something to sounds.

    Examples:
        aligncap sound a.wav --model M
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("files",)

    files: list[str] = option([], "Sound files.")
    model: str = option("default", "Folder of the model.")
    batch_size: PositiveInt = option(32, "Clips at a time, 100 % of them.")
    seed: NaturalInt | None = option(None, "Shuffles.")
    rate: Share | None = option(0.5, "A share.")
    names: list[str] = option(["a", "b"], "Several.")
    kind: Literal["wav", "flac"] = option("wav", "Format.")
    quick: bool = option(True, "Leave out the slow part.")

    def own_errors(self) -> list[str]:
        return ["kind and quick contradict each other"] if self.kind == "flac" and not self.quick else []


@dataclass
class NeedyConfig(Config):
    """Needs a model."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("action", "rest")

    action: str = option(help="What.")
    model: str = option(help="Folder of the model.")
    rest: list[str] = option([], "Others.")


def test_none_is_a_word_like_any_other_where_a_value_is_needed():
    assert parse(NeedyConfig, ["go", "--model", "none"]).model == "none"
    assert parse(SoundConfig, ["--model", "none"]).model == "none"
    assert parse(SoundConfig, ["--seed", "none", "--rate", "none"]).rate is None


def test_the_home_folder_is_read_in_files_and_behind_signs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "c.yaml").write_text("model: ~/runs/a\nnames: [b=~/b, a ~/c]\n")
    found = parse(SoundConfig, ["--config", str(tmp_path / "c.yaml")])
    assert found.model == "/home/ann/runs/a" and found.names == ["b=/home/ann/b", "a ~/c"]
    assert parse(SoundConfig, ["--model=~/a=~/b"]).model == "/home/ann/a=~/b"


def test_flags_and_yaml_say_the_same(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: m\nbatch_size: 4\nseed: 3\nrate: null\nnames: [x, y]\nkind: flac\nfiles: [1.wav, 2.wav]\n"
    )
    words = (
        "1.wav 2.wav --model m --batch_size 4 --seed 3 --rate none --names x y --kind flac --quick true"
    ).split()
    assert parse(SoundConfig, ["--config", str(file)]) == parse(SoundConfig, words)
    assert parse(SoundConfig, [f"--config={file}", "--batch-size", "5"]).batch_size == 5
    assert parse(SoundConfig, ["--config", str(file), "--batch_size=5"]).names == ["x", "y"]


def test_defaults_dashes_and_negated_flags():
    assert parse(SoundConfig, []) == SoundConfig()
    assert parse(SoundConfig, ["--no_quick"]).quick is False
    assert parse(SoundConfig, ["--no-quick"]).quick is False
    assert parse(SoundConfig, ["--quick", "false"]).quick is False
    parse(SoundConfig, []).names.append("c")
    assert SoundConfig().names == ["a", "b"]  # a default is never shared


@pytest.mark.parametrize(
    "words",
    [
        ["fetch", "one", "two", "--model", "m"],
        ["--model", "m", "fetch", "one", "two"],
        ["fetch", "--model=m", "one", "two"],
    ],
)
def test_positional_words_may_be_several_and_stand_before_or_after_flags(words):
    found = parse(NeedyConfig, words)
    assert (found.action, found.rest, found.model) == ("fetch", ["one", "two"], "m")


def test_missing_words_and_options_are_named():
    with pytest.raises(
        UserErrors, match="^ACTION is missing: What.\n--model is missing: Folder of the model.$"
    ):
        parse(NeedyConfig, [])
    with pytest.raises(UserError, match="model"):
        parse(NeedyConfig, ["fetch"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "0"], "batch_size=0: must be at least 1"),
        (["--seed", "-1"], "seed=-1: must be at least 0"),
        (["--rate", "1.5"], "rate=1.5: must be at least 0 and at most 1"),
        (["--rate", "nan"], "rate=nan"),
        (["--batch_size", "many"], "many"),
        (["--kind", "mp3"], "mp3"),
        (["--kind", "flac", "--no_quick"], "contradict"),
        (["--bach_size", "3"], "unknown option --bach_size.*batch_size"),
        (["--config", "/no/such.yaml"], "no such file"),
        (["--config"], "name a YAML file"),
        (["a.wav", "--names", "x", "--model"], "model"),
    ],
)
def test_each_mistake_is_one_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(SoundConfig, words)
    assert len(str(caught.value).splitlines()) == 1


def test_a_yaml_file_is_checked_like_flags_and_all_at_once(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("bach_size: 3\nsed: 1\n")
    with pytest.raises(UserErrors) as caught:
        parse(SoundConfig, ["--config", str(file), "--modle", "m"])
    assert len(caught.value.errors) == 3
    assert all(str(file) in e for e in caught.value.errors if "modle" not in e)
    file.write_text("batch_size: -3\nrate: 7\n")
    with pytest.raises(UserErrors) as caught:
        parse(SoundConfig, ["--config", str(file)])
    assert len(caught.value.errors) == 2
    for text in ("- a\n- b\n", "a: [", "!!python/object/apply:os.system ['true']"):
        file.write_text(text)
        with pytest.raises(UserError, match="YAML|mapping"):
            parse(SoundConfig, ["--config", str(file)])


def test_a_packaged_recipe_is_found_by_name():
    with pytest.raises(UserError, match="the recipes are .*distill"):
        parse(SoundConfig, ["--config", "no-such-recipe"])


def test_help_lists_every_option_with_its_default():
    text = usage("sound", SoundConfig)
    assert "usage: aligncap sound FILES" in text and "aligncap sound a.wav --model M" in text
    assert "--batch_size [32]  Clips at a time, 100 % of them." in text
    assert "--kind [wav; wav, flac]" in text and "--quick [true]" in text and "--seed [none]" in text
    assert "FILES [none]" in text and "--names [a b]" in text
    assert "--model [required]" in usage("needy", NeedyConfig)


def test_named_values():
    assert named_values(["a=b", "c=d=e"], "label_map") == [("a", "b"), ("c", "d=e")]
    with pytest.raises(UserErrors) as caught:
        named_values(["a", "=b", "c="], "label_map")
    assert len(caught.value.errors) == 3 and "--label_map a: write NAME=VALUE" in caught.value.errors


def test_choices_are_checked_in_python_too():
    with pytest.raises(UserErrors, match="kind='mp3': choose from wav, flac"):
        SoundConfig(kind="mp3")  # type: ignore[arg-type]
