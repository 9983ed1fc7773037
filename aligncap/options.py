"""Options of every verb but `train`, whose options are dataclasses (`aligncap.training`)."""

from __future__ import annotations

import argparse
import os


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number above 0")
    return int(word)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="aligncap",
        description="Train a machine to say how a voice sounds, and measure it.",
        epilog="Start with `bash scripts/quickstart.sh`. Each verb has its own --help with an example.",
    )
    verbs = top.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, text: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  aligncap {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(verb=name)
        return sub

    v = verb("models", "fetch or list pretrained models", "fetch whisper-base")
    v.add_argument("action", choices=["fetch", "list"])
    v.add_argument("names", nargs="*", help="default: the three default models")

    v = verb("prepare", "a corpus folder to a manifest", "ravdess ~/corpora/ravdess --out ravdess.jsonl")
    v.add_argument(
        "corpus", help="ravdess, nemo, crema-d, emodb, esd, …, csv, jsonl, or made (synthetic speech)"
    )
    v.add_argument("folder")
    v.add_argument("--out", required=True, help="manifest to write")
    v.add_argument("--columns", nargs="+", metavar="FIELD=COLUMN", help="for csv and jsonl")

    v = verb("validate", "every fault of a manifest, with file and line", "ravdess.jsonl")
    v.add_argument("manifest")
    v.add_argument("--shallow", action="store_true", help="do not decode the audio")

    v = verb("split", "split by speaker", "ravdess.jsonl --by speaker --dev 2 --test 4 --out runs/data")
    v.add_argument("manifest")
    v.add_argument("--by", choices=["speaker"], default="speaker")
    v.add_argument("--dev", type=int, default=2, help="number of dev speakers")
    v.add_argument("--test", type=int, default=4, help="number of test speakers")
    v.add_argument("--dev-speakers", nargs="+")
    v.add_argument("--test-speakers", nargs="+")
    v.add_argument("--seed", type=int, help="shuffle the speakers; default: the last ones are test")
    v.add_argument("--out", required=True, help="folder for train.jsonl, dev.jsonl, test.jsonl")

    v = verb(
        "annotate",
        "measure cues and write captions",
        "ravdess.jsonl --references 5 --out captioned.jsonl",
    )
    v.add_argument("manifest")
    v.add_argument("--references", type=int, default=5, help="captions a clip")
    v.add_argument("--out", required=True)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    v.add_argument("--report", metavar="FOLDER", help="pictures of every cue by emotion")
    v.add_argument("--paraphrase", metavar="MODEL", help="reword through an OpenAI-compatible endpoint")
    v.add_argument("--base-url", help="of that endpoint; the key comes from OPENAI_API_KEY")

    v = verb("clues", "emotion clues and acoustic prompts", "captioned.jsonl --out clued.jsonl")
    v.add_argument("manifest")
    v.add_argument("--out", required=True)
    v.add_argument("--parser", default="default", help="default, rules, or a spaCy model folder")

    verb(
        "train",
        "train teacher | sft | distill | prefer",
        "distill --config configs/recipes/distill.yaml",
    )

    v = verb("build", "an untrained model from parts", "--llm smollm2-135m-instruct --out runs/untrained")
    v.add_argument("--encoder", default="whisper-base", help="any Whisper: name, folder or hub id")
    v.add_argument("--llm", default="smollm2-135m-instruct", help="any causal LM: name, folder or hub id")
    v.add_argument("--encoder-layer", default="4", help="last, mix, or a number of layers")
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--out", required=True)

    v = verb("merge", "fold the adapter in", "runs/distill --out runs/model")
    v.add_argument("checkpoint")
    v.add_argument("--out", required=True)

    v = verb("caption", "say how voices sound", "--model runs/model clip.wav folder/")
    v.add_argument("files", nargs="*", help="sound files or folders")
    v.add_argument("--model", required=True)
    v.add_argument("--manifest")
    v.add_argument("--out", help="captions.jsonl; without it, a table")
    v.add_argument("--batch-size", type=_positive, default=32)
    v.add_argument("--beams", type=_positive, default=1)
    v.add_argument("--max-new-tokens", type=_positive, default=48)
    v.add_argument("--temperature", type=float, help="sample at this temperature; default: greedy")
    v.add_argument("--top-p", type=float, default=0.9)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    v.add_argument("--device", default="auto")
    v.add_argument("--wrong-audio", type=int, metavar="SEED", help="each clip hears another's audio")

    v = verb(
        "evaluate",
        "score captions and write a report",
        "captions.jsonl --references test.jsonl --out report/",
    )
    v.add_argument("captions")
    v.add_argument("--references", required=True, help="manifest with captions")
    v.add_argument("--out", required=True, help="folder of the report")
    v.add_argument("--name", default="model", help="name of the system in the report")
    v.add_argument(
        "--system", nargs="+", metavar="NAME=CAPTIONS", help="more systems; a name again is another seed"
    )
    v.add_argument("--wrong-audio", nargs="+", metavar="CAPTIONS", help="captions of shuffled clips")
    v.add_argument("--probe", metavar="JSON", help="output of `aligncap probe`, as a yardstick")
    v.add_argument(
        "--label-map", nargs="+", metavar="SAID=LABEL", help="count an emotion as another, e.g. calm=neutral"
    )
    v.add_argument("--resamples", type=int, default=1000)
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--audio", choices=["copy", "link", "embed"], default="copy", help="players in the report")
    v.add_argument("--wordnet", choices=["auto", "require", "none"], default="auto", help="METEOR's synonyms")
    v.add_argument("--allow-missing", action="store_true")
    v.add_argument("--show", type=int, default=3, metavar="N", help="captions printed beside a reference")
    v.add_argument("--title", default="Speech emotion captions")

    v = verb(
        "probe",
        "linear probe on the encoder, the yardstick",
        "--train train.jsonl --dev dev.jsonl --test test.jsonl",
    )
    v.add_argument("--train", required=True)
    v.add_argument("--dev", required=True)
    v.add_argument("--test", required=True, nargs="+")
    v.add_argument("--encoder", default="whisper-base")
    v.add_argument("--cache-dir", default="runs/cache")
    v.add_argument("--out", help="JSON to write")
    return top
