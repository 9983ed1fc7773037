"""The `aligncap` command: one verb a function; parse, call, print."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aligncap.errors import Faults, UserError
from aligncap.options import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns 0, 1 (faults were found or some files failed), 2 (a mistake of the user's) or 130.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _quiet()
    try:
        if argv[:1] == ["train"]:
            return train(argv[1:])
        arguments = parser().parse_args(argv)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and arguments.verb not in SHARED:
            raise UserError(
                f"{arguments.verb}: runs in one process; a launcher is for {', '.join(SHARED)} and train"
            )
        return VERBS[arguments.verb](arguments)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"aligncap: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"aligncap: {error.filename or 'writing'}: {error.strerror}; "
            "free space, or choose another folder",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "aligncap: stopped; what was finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _quiet() -> None:
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("aligncap").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def _print(item: Any) -> None:
    from rich.console import Console

    Console().print(item)


def models(a: argparse.Namespace) -> int:
    from rich.table import Table

    from aligncap.models.sources import fetch, listing

    if a.action == "fetch":
        for name in a.names or [row["name"] for row in listing() if not row["extra"]]:
            print(f"{name}: {fetch(name)}")
        return 0
    table = Table("name", "kind", "licence", "state", "where")
    for row in listing():
        table.add_row(*(str(row[k]) for k in ("name", "kind", "licence", "state", "where")))
    _print(table)
    return 0


def prepare(a: argparse.Namespace) -> int:
    from aligncap.corpora import prepare

    columns = _pairs(a.columns, "--columns")
    print(prepare(a.corpus, a.folder, a.out, columns=columns or None).summary())
    return 0


def validate(a: argparse.Namespace) -> int:
    from aligncap.manifest import examine

    found = examine(a.manifest, deep=not a.shallow)
    for line in found.faults + [f"note: {note}" for note in found.notes]:
        print(line)
    print(f"{a.manifest}: {found.clips} clips, {len(found.faults)} faults, {len(found.notes)} notes")
    return 1 if found.faults else 0


def split(a: argparse.Namespace) -> int:
    from aligncap.manifest import read_manifest, rebase, write_manifest
    from aligncap.splits import split_by_speaker

    parts = split_by_speaker(
        read_manifest(a.manifest),
        a.dev,
        a.test,
        a.seed,
        dev_speakers=a.dev_speakers,
        test_speakers=a.test_speakers,
    )
    for name, utterances in parts.items():
        out = Path(a.out) / f"{name}.jsonl"
        write_manifest(out, rebase(utterances, a.manifest, out))
        speakers = sorted({str(u.speaker) for u in utterances})
        print(f"{out}: {len(utterances)} clips of {len(speakers)} speakers: {', '.join(speakers)}")
    return 0


def annotate(a: argparse.Namespace) -> int:
    from aligncap.captions.annotate import annotate
    from aligncap.captions.cue_report import write_cue_report
    from aligncap.manifest import read_manifest, rebase, write_manifest

    done, faults = annotate(
        a.manifest, read_manifest(a.manifest), references=a.references, seed=a.seed, workers=a.workers
    )
    if a.paraphrase:
        from aligncap.captions.paraphrase import paraphrase

        made = paraphrase([c for u in done for c in u.captions], a.paraphrase, base_url=a.base_url)
        reworded = iter(made.captions)
        for u in done:
            u.captions = [next(reworded) for _ in u.captions]
        print(f"paraphrased: {made.reworded} captions; kept as they were: {dict(made.kept_original)}")
    if done:
        write_manifest(a.out, rebase(done, a.manifest, a.out))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{a.out}: {len(done)} clips, {sum(len(u.captions) for u in done)} captions, {len(faults)} faults")
    if a.report and done:
        print(f"cues by emotion: {write_cue_report(done, Path(a.report))}")
    return 1 if faults else 0


def clues(a: argparse.Namespace) -> int:
    from aligncap.captions.clues import ClueParser
    from aligncap.manifest import read_manifest, rebase, write_manifest
    from aligncap.prompts.acoustic import acoustic_prompt

    utterances = read_manifest(a.manifest)
    parser = ClueParser(None if a.parser == "rules" else a.parser)
    found = iter(parser.parse([c for u in utterances for c in u.captions]))
    for u in utterances:
        u.clues = [next(found) for _ in u.captions]
        u.p_act = [acoustic_prompt(c) for c in u.clues]
    write_manifest(a.out, rebase(utterances, a.manifest, a.out))
    total = sum(len(c) for u in utterances for c in u.clues)
    empty = sum(not c for u in utterances for c in u.clues)
    print(
        f"{a.out}: {total} clues in {sum(len(u.captions) for u in utterances)} captions, "
        f"{empty} captions without any"
    )
    return 0


def train(argv: list[str]) -> int:
    """`aligncap train VERB --config X.yaml [--key value …]`; also what scripts/train.py calls."""
    from aligncap.training.arguments import AlignArguments, TeacherArguments, parse, usage
    from aligncap.training.prefer_arguments import PreferArguments
    from aligncap.training.verbs import ARGUMENTS

    if not argv or argv[0] in ("-h", "--help"):
        print(usage(ARGUMENTS))
        return 0 if argv else 2
    if argv[0] not in ARGUMENTS:
        raise UserError(f"train {argv[0]}: choose one of {', '.join(ARGUMENTS)}")
    if {"-h", "--help"} & set(argv):
        print(usage({argv[0]: ARGUMENTS[argv[0]]}))
        return 0
    arguments: Any = parse(ARGUMENTS[argv[0]], argv[1:])
    run: Callable[[Any], Path | None]
    if isinstance(arguments, PreferArguments):
        from aligncap.training.prefer import train_prefer as run
    elif isinstance(arguments, TeacherArguments):
        from aligncap.training.teacher import train_teacher as run
    elif isinstance(arguments, AlignArguments):
        from aligncap.training.speech import train_align as run
    else:
        from aligncap.training.speech import train_speech as run
    folder = run(arguments)
    if folder is None:
        return 130
    if arguments.process_index == 0:
        print(f"trained: {folder}")
    return 0


def build(a: argparse.Namespace) -> int:
    from transformers import set_seed

    from aligncap.heard import heard_in_training, write_heard
    from aligncap.models.building import build
    from aligncap.models.checkpoints import save_whole

    set_seed(a.seed)
    layer = int(a.encoder_layer) if a.encoder_layer.isdigit() else a.encoder_layer
    model, processor = build(a.encoder, a.llm, encoder_layer=layer)
    processor.save_pretrained(a.out)
    save_whole(model, a.out)
    write_heard(a.out, heard_in_training([], [a.llm]))
    print(f"built, untrained: {a.out}")
    return 0


def merge(a: argparse.Namespace) -> int:
    from aligncap.models.checkpoints import merge

    print(f"merged: {merge(a.checkpoint, a.out)}")
    return 0


def caption(a: argparse.Namespace) -> int:
    from rich.table import Table

    from aligncap.manifest import read_manifest
    from aligncap.models.caption_files import jobs_of_files, jobs_of_manifest, with_condition
    from aligncap.models.captioner import Captioner
    from aligncap.models.captioning import caption_jobs
    from aligncap.models.checkpoints import model_key
    from aligncap.models.precision import dtype_name
    from aligncap.models.speakers import FEWEST
    from aligncap.processes import launched

    if bool(a.files) == bool(a.manifest):
        raise UserError("name sound files or folders, or one --manifest M.jsonl")
    if a.wrong_audio is not None and a.heard not in ("right", "wrong"):
        raise UserError(f"--wrong-audio is --heard wrong, not --heard {a.heard}; give one of them")
    if a.same_speaker and a.manifest:
        raise UserError("--same-speaker is for files; a manifest names its speakers itself")
    heard = "wrong" if a.wrong_audio is not None else a.heard
    draw = a.seed if a.wrong_audio is None else a.wrong_audio
    jobs = jobs_of_manifest(a.manifest) if a.manifest else jobs_of_files(a.files, a.same_speaker)
    every = jobs
    jobs = with_condition(jobs, read_manifest(a.manifest) if a.manifest else (), heard, draw)
    if a.same_speaker and len(jobs) < FEWEST:
        raise UserError(f"--same-speaker needs {FEWEST} clips or more to know a voice; leave it out")
    options = {"num_beams": a.beams, "max_new_tokens": a.max_new_tokens}
    if a.temperature:
        options |= {"do_sample": True, "temperature": a.temperature, "top_p": a.top_p, "top_k": 0}
    dtype = dtype_name(a.dtype, a.device)
    settings = {
        "model": model_key(a.model),
        "dtype": dtype,
        "heard": [heard, draw],
        "seed": a.seed,
        "emotions": a.emotions,
        **options,
    }
    group, device = launched(a.device)
    captioner = Captioner.from_pretrained(a.model, device=device, dtype=dtype)
    if a.emotions:
        options |= captioner.naming_only(a.emotions)
    out = Path(a.out) if a.out else None
    rows, faults = caption_jobs(
        captioner, jobs, out, settings, a.batch_size, every=every, seed=a.seed, group=group, **options
    )
    if _silent():
        return 0
    if not a.out:
        if sys.stdout.isatty():
            table = Table("clip", "caption")
            for row in rows:
                table.add_row(row["audio"], row["caption"])
            _print(table)
        else:
            for row in rows:
                print(f"{row['audio']}\t{row['caption']}")
    for fault in faults:
        print(fault, file=sys.stderr)
    where = f"{a.out}: " if a.out else ""
    print(f"{where}{len(rows)} captions, {len(faults)} files could not be captioned", file=sys.stderr)
    return 1 if faults else 0


def candidates(a: argparse.Namespace) -> int:
    from aligncap.models.precision import dtype_name
    from aligncap.preferences.candidates import write_candidates

    rows, faults = write_candidates(
        a.model,
        a.manifest,
        a.out,
        num=a.num,
        temperature=a.temperature,
        top_p=a.top_p,
        seed=a.seed,
        max_new_tokens=a.max_new_tokens,
        batch_size=a.batch_size,
        dtype=dtype_name(a.dtype, a.device),
        device=a.device,
        limit=a.limit,
    )
    if _silent():
        return 0
    for fault in faults:
        print(fault, file=sys.stderr)
    texts = len({(row["id"], row["caption"]) for row in rows})
    print(f"{a.out}: {len(rows)} candidates, {texts} different, {len(faults)} clips left out")
    return 1 if faults else 0


def _silent() -> bool:
    """Whether another process of the launch speaks for this one."""
    return os.environ.get("RANK", "0") != "0"


def judge(a: argparse.Namespace) -> int:
    if a.agree:
        return _agree(a)
    from aligncap.models.sources import DEFAULT_LLM
    from aligncap.preferences.judge import compare_candidates, judge_candidates
    from aligncap.preferences.judges.limits import Limits
    from aligncap.preferences.judges.session import Endpoint

    if not a.candidates:
        raise UserError("name a candidates file, or two scored ones with --agree A B")
    _refuse_flags_of_other_judges(a)
    shared: dict[str, Any] = {
        "manifest": a.manifest,
        "references": a.references,
        "model": a.model,
        "temperature": a.temperature if a.temperature >= 0 else None,
        "max_tokens": a.max_tokens,
        "limits": Limits(a.rpm, a.tpm, a.concurrency, a.retries, a.timeout, max_cost=a.max_cost, poll=a.poll),
        "endpoint": Endpoint(a.base_url, price_in=a.price_in, price_out=a.price_out),
        "cache": a.cache,
        "batch": a.batch,
        "dry_run": a.dry_run,
        "seed": a.seed,
        "say": lambda line: print(line, file=sys.stderr),
    }
    if a.compare:
        done = compare_candidates(a.candidates, a.out, pairs_per_clip=a.pairs_per_clip, **shared)
    else:
        if a.judge == "rubric":
            shared["fluency_model"] = None if a.no_fluency else DEFAULT_LLM
        done = judge_candidates(
            a.candidates, a.out, a.judge, form=a.form, filled=a.filled, rater=a.rater, **shared
        )
    if _silent():
        return 0
    for line in done.lines():
        print(line)
    return 0 if done.complete else 1


def _refuse_flags_of_other_judges(a: argparse.Namespace) -> None:
    own = {
        "openai": "model base_url compare dry_run max_cost price_in price_out rpm tpm batch cache",
        "human": "form filled rater",
        "rubric": "no_fluency",
    }
    faults = [
        f"--{name.replace('_', '-')}: is for --judge {judge}"
        for judge, names in own.items()
        for name in names.split()
        if judge != a.judge and getattr(a, name)
    ]
    if faults:
        raise Faults(faults)


def _agree(a: argparse.Namespace) -> int:
    from aligncap.preferences.agreement import agree_files
    from aligncap.preferences.agreement_report import tables

    result = agree_files(*a.agree, pairwise=a.pairwise, out=a.out, resamples=a.resamples, seed=a.seed)
    for part in tables(result):
        _print(part)
    return 0


def pairs(a: argparse.Namespace) -> int:
    from aligncap.preferences.pair_report import tables
    from aligncap.preferences.pairs import pairs_file

    report = pairs_file(
        a.scored,
        a.out,
        manifest=a.manifest,
        kinds=a.kinds,
        chosen=a.chosen,
        min_margin=a.min_margin,
        max_similarity=a.max_similarity,
        max_length_ratio=a.max_length_ratio,
        per_clip=a.per_clip,
        balance_lengths=not a.no_balance_lengths,
        balance_emotions=a.balance_emotions,
        seed=a.seed,
    )
    for part in tables(report):
        _print(part)
    print(f"pairs: {a.out}")
    return 0


def evaluate(a: argparse.Namespace) -> int:
    from aligncap.evaluation.scoring import score_files

    systems = [(a.name, [a.captions])]
    grouped: dict[str, list[str]] = {}
    for name, captions in _named(a.system, "--system"):
        grouped.setdefault(name, []).append(captions)
    if a.name in grouped:
        systems[0][1].extend(grouped.pop(a.name))
    listening: dict[str, list[str]] = {}
    for name, captions in _named(a.listening, "--listening"):
        listening.setdefault(name, []).append(captions)
    table, samples, path = score_files(
        [*grouped.items(), *systems],
        a.references,
        Path(a.out),
        listening=listening,
        similarity=a.similarity,
        coco=a.coco,
        protocol=a.protocol,
        wrong_audio=a.wrong_audio,
        probe=a.probe,
        label_map=_pairs(a.label_map, "--label-map"),
        resamples=a.resamples,
        seed=a.seed,
        audio=a.audio,
        wordnet=a.wordnet,
        allow_missing=a.allow_missing,
        title=a.title,
        show=a.show,
        against=a.against,
    )
    _print(table)
    for sample in samples:
        print(sample)
    print(f"report: {path}")
    return 0


def join(a: argparse.Namespace) -> int:
    from aligncap.join import join_manifests

    joined = join_manifests(a.manifests, a.out)
    print(f"{a.out}: {len(joined)} clips of {', '.join(sorted({u.corpus for u in joined}))}")
    return 0


def zeroshot(a: argparse.Namespace) -> int:
    from aligncap.evaluation.zero_shot import zero_shot

    table = zero_shot(
        a.model,
        a.manifest,
        a.out,
        captions=_named(a.captions, "--captions"),
        captions_dir=a.captions_dir,
        trained_on=a.trained_on,
        label_maps=_named(a.label_map, "--label-map"),
        labels=a.labels,
        only_labels=a.only_labels,
        heard_instead=a.heard,
        probes=a.probe,
        limit=a.limit,
        name=a.name,
        resamples=a.resamples,
        seed=a.seed,
        wordnet=a.wordnet,
        audio=a.audio,
        dtype=a.dtype,
        device=a.device,
        batch_size=a.batch_size,
        max_new_tokens=a.max_new_tokens,
    )
    _print(table)
    print(f"zero-shot: {Path(a.out) / 'zero_shot.md'}")
    return 0


def probe(a: argparse.Namespace) -> int:
    from rich.table import Table

    from aligncap.io import write_json
    from aligncap.probing.linear import probe

    result = probe(Path(a.train), Path(a.dev), [Path(t) for t in a.test], a.encoder, Path(a.cache_dir))
    if a.out:
        write_json(a.out, result)
    names = ["dev", *(Path(t).stem for t in a.test)]
    for part, title in ((result, ""), (result["relative"], ", relative to the speaker")):
        table = Table("layer", *(f"UAR {n}" for n in names), title=f"linear probe on {a.encoder}{title}")
        for row in part["layers"]:
            mark = " (best on dev)" if row["layer"] == part["best_layer"] else ""
            table.add_row(f"{row['layer']}{mark}", *(f"{row[n]:.3f}" for n in names))
        _print(table)
    return 0


def states(a: argparse.Namespace) -> int:
    from aligncap.probing.state_pictures import states_table, write_states

    models: dict[str, Path] = {}
    for word in a.model:
        name, _, folder = word.rpartition("=")
        name = name or Path(folder).name
        if name in models:
            raise UserError(f"--model {word}: the name {name} is taken; write ANOTHER={folder}")
        models[name] = Path(folder)
    content = write_states(
        models,
        Path(a.manifest),
        Path(a.out),
        limit=a.limit,
        dtype=a.dtype,
        device=a.device,
        batch_size=a.batch_size,
        seed=a.seed,
    )
    _print(states_table(content))
    print(f"pictures: {a.out}/states.png, {a.out}/states_centred.png")
    return 0


def curves(a: argparse.Namespace) -> int:
    from aligncap.evaluation.curves import named_runs, training_curves

    print(f"curves: {training_curves(named_runs(a.runs), Path(a.out))}")
    return 0


def _named(words: Sequence[str] | None, option: str) -> list[tuple[str, str]]:
    pairs = []
    for word in words or ():
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise UserError(f"{option} {word}: write NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _pairs(words: Sequence[str] | None, option: str) -> dict[str, str]:
    return dict(_named(words, option))


SHARED = ("caption", "candidates", "judge")  # whose work processes share
VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    verb.__name__: verb
    for verb in (
        models,
        prepare,
        validate,
        split,
        annotate,
        clues,
        build,
        merge,
        caption,
        candidates,
        judge,
        pairs,
        evaluate,
        join,
        zeroshot,
        probe,
        states,
        curves,
    )
}

if __name__ == "__main__":
    sys.exit(main())
