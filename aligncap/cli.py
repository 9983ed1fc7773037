"""The `aligncap` command: the list of commands. Each is a configuration and a function of its own module."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from aligncap.utils.errors import UserError, nearest


class Command(NamedTuple):
    """Where a command lives: `function(config)` of `module`, `config` being an instance of `kind`."""

    module: str
    kind: str
    function: str
    summary: str


COMMANDS: dict[str, Command] = {
    "models fetch": Command("models.hub", "FetchConfig", "run_fetch", "fetch pretrained models"),
    "models list": Command("models.hub", "ListConfig", "run_list", "list pretrained models"),
    "models convert": Command(
        "models.funasr", "ConvertConfig", "run_convert", "emotion2vec of FunASR to safetensors"
    ),
    "prepare": Command(
        "data.corpora.prepare", "PrepareConfig", "run_prepare", "a corpus folder to a manifest"
    ),
    "validate": Command("data.validate", "ValidateConfig", "run_validate", "every error of a manifest"),
    "split": Command("data.split", "SplitConfig", "run_split", "split a manifest by speaker"),
    "join": Command("data.split", "JoinConfig", "run_join", "several manifests in one"),
    "shard": Command("data.shards", "ShardConfig", "run_shard", "the sound of a manifest in tar shards"),
    "annotate": Command("text.annotate", "AnnotateConfig", "run_annotate", "measure cues and write captions"),
    "clues": Command("text.clues", "CluesConfig", "run_clues", "emotion clues and acoustic prompts"),
    "train teacher": Command(
        "training.teacher", "TeacherConfig", "run_teacher", "text LLM: transcript + clues -> caption"
    ),
    "train align": Command(
        "training.align", "AlignConfig", "run_align", "the projector alone, before decoding"
    ),
    "train sft": Command(
        "training.sft", "SpeechSFTConfig", "run_sft", "cross-entropy on captions from speech"
    ),
    "train distill": Command(
        "training.distill", "DistillConfig", "run_distill", "KL to the teacher, from speech"
    ),
    "train dpo": Command("training.dpo", "SpeechDPOConfig", "run_dpo", "DPO on judged caption pairs"),
    "merge": Command("models.merge", "MergeConfig", "run_merge", "fold the adapter in"),
    "caption": Command("inference.batch", "CaptionConfig", "run_caption", "say how voices sound"),
    "timeline": Command(
        "inference.timeline", "TimelineConfig", "run_timeline", "emotion through a long recording"
    ),
    "serve": Command(
        "serve.command", "ServeConfig", "run_serve", "HTTP API and page for people and programs"
    ),
    "calibrate": Command(
        "inference.calibrate", "CalibrateConfig", "run_calibrate", "fit on dev how sure captions are"
    ),
    "candidates": Command(
        "preferences.candidates", "CandidatesConfig", "run_candidates", "several sampled captions a clip"
    ),
    "judge": Command("preferences.judge", "JudgeConfig", "run_judge", "score candidates"),
    "agree": Command("preferences.agreement", "AgreeConfig", "run_agree", "how far two judges agree"),
    "pairs": Command("preferences.pairs", "PairsConfig", "run_pairs", "preference pairs of scored captions"),
    "evaluate": Command(
        "evaluation.evaluate", "EvaluateConfig", "run_evaluate", "score captions and write a report"
    ),
    "zeroshot": Command(
        "evaluation.zero_shot", "ZeroShotConfig", "run_zeroshot", "corpora that training never touched"
    ),
    "probe": Command(
        "evaluation.probe", "ProbeConfig", "run_probe", "linear probe on the encoder, the baseline"
    ),
    "people": Command(
        "evaluation.people", "PeopleConfig", "run_people", "cues and claims against people's words"
    ),
    "curves": Command("evaluation.report.pictures", "CurvesConfig", "run_curves", "training curves of runs"),
    "lab diagnose": Command(
        "lab.diagnose", "DiagnoseConfig", "run_diagnose", "does it hear, and what does it say instead?"
    ),
    "lab conflict": Command(
        "lab.conflict", "ConflictConfig", "run_conflict", "voice against text: who wins, where and why"
    ),
    "lab states": Command(
        "lab.states", "StatesConfig", "run_states", "where speech and text lie in the LLM's spaces"
    ),
    "senses ck": Command("senses.ck", "CKConfig", "run_ck", "CK+48's faces as a file of moments"),
    "senses face": Command("senses.face", "FaceConfig", "run_face", "emotion from faces"),
    "senses score": Command("senses.score", "ScoreConfig", "run_score", "any sense's scores of moments"),
    "senses fuse": Command("senses.fusion", "FuseConfig", "run_fuse", "late fusion of senses' scores"),
    "senses combine": Command(
        "senses.combine", "CombineConfig", "run_combine", "made moments of words, voice and face"
    ),
    "senses gate": Command("senses.gated", "GateConfig", "run_gate", "gated fusion of senses' features"),
    "senses goemotions": Command(
        "senses.goemotions", "GoEmotionsConfig", "run_goemotions", "GoEmotions to files of moments"
    ),
    "senses captions": Command(
        "senses.captions", "CaptionScoresConfig", "run_captions", "the captioner's confidence as scores"
    ),
    "senses text": Command("senses.text", "TextConfig", "run_text", "emotion from what is said"),
    "senses voice": Command("senses.voice", "VoiceConfig", "run_voice", "emotion from how it is said: ACRNN"),
    "senses voice-grid": Command(
        "senses.voice_grid", "VoiceGridConfig", "run_voice_grid", "learning rate × batch × smoothing of it"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1: errors in the data, or files that failed; 2: a mistake of the user's; 130: stopped.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _quiet()
    try:
        code = _run(argv)
        sys.stdout.flush()  # a closed pipe shows here, not at exit
        return code
    except UserError as error:
        for line in str(error).splitlines():
            print(f"aligncap: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # an OSError too, so it comes first
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        remedy = "free space, or choose another folder"
        print(f"aligncap: {error.filename or 'writing'}: {error.strerror}; {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("aligncap: stopped; the same command goes on from what was kept", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    words = argv[:2] if " ".join(argv[:2]) in COMMANDS else argv[:1]
    name = " ".join(words)
    if name in COMMANDS:
        command = COMMANDS[name]
        from aligncap.utils.locks import locked
        from aligncap.utils.options import parse, usage

        module = importlib.import_module(f"aligncap.{command.module}")
        kind: Any = getattr(module, command.kind)
        rest = argv[len(words) :]
        if {"-h", "--help"} & set(rest):
            print(usage(name, kind))
            return 0
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not getattr(kind, "MANY_PROCESSES", True):
            raise UserError(f"{name}: runs in one process; start it without a launcher")
        config = parse(kind, rest)
        with locked(getattr(config, "out", None) or getattr(config, "output_dir", None)):
            return getattr(module, command.function)(config)
    group = [key for key in COMMANDS if key.startswith(f"{name} ")]
    asked = {"-h", "--help", "help"} & {*argv[:1], *argv[1:2]}
    if asked or not argv or (group and len(argv) == 1):
        print(_listing(group))
        return 0 if asked else 2
    if argv[0] == "--version":
        from aligncap import __version__

        print(__version__)
        return 0
    near = nearest(" ".join(argv[:2]) if group else name, group or COMMANDS)
    raise UserError(f"{' '.join(argv[:2]) if group else name}: no such command{near}; see aligncap --help")


def _listing(names: Sequence[str]) -> str:
    lines = ["usage: aligncap COMMAND [--option value …]", ""]
    lines += [f"  {name:14} {COMMANDS[name].summary}" for name in names or COMMANDS]
    lines += ["", "Every command has its own --help with examples. Start with `bash scripts/quickstart.sh`."]
    return "\n".join(lines)


def _quiet() -> None:
    """Our messages on the terminal; libraries' warnings and, without a terminal, their progress bars not."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("aligncap").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it does without
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
