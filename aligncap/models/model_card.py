"""The model card (README.md) of a checkpoint, written from the records that lie beside its weights.

`run.json` tells base models and training, `provenance.json` the data, and the `metrics.json` of `aligncap
evaluate`, where somebody put it into the model's folder, the scores and what was proved about listening.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aligncap.data.provenance import Provenance, read_provenance
from aligncap.models.hub import defaults, is_hub_name
from aligncap.utils.io import Row, data_path, load_data, write_text

MARK = "<!-- Written by aligncap and again at every save; delete this line to keep your own changes. -->"
# what the cards have in them that transformers and peft write of themselves
AUTOMATIC = ("This model card has been automatically generated", "# Model Card for Model ID")
TASK = "audio-text-to-text"


def write_model_card(folder: str | Path, *sources: str | Path, name: str | None = None) -> None:
    """Write `folder`/README.md as `model_card` has it, unless a person wrote the one that is there."""
    path = Path(folder) / "README.md"
    if not path.is_file() or any(m in path.read_text(encoding="utf-8") for m in (MARK, *AUTOMATIC)):
        write_text(path, model_card(folder, *sources, name=name))


def model_card(*folders: str | Path, name: str | None = None) -> str:
    """Markdown with a YAML header. Each record is that of the first of `folders` that has it.

    Args:
        name: of the model; by default that of the first folder.

    Raises:
        UserError: a provenance.json is broken.
    """
    import jinja2
    from huggingface_hub import EvalResult, ModelCardData

    places = [Path(folder) for folder in folders if str(folder)]
    name = name or places[0].resolve().name
    runs: list[Row] = next((chain for place in places if (chain := list(_runs(place)))), [])
    provenance = next((p for place in places if (p := read_provenance(place)) is not None), Provenance())
    metrics = next((m for place in places if (m := read_record(place / "metrics.json"))), {})
    found = {k: v for k, v in metrics.items() if isinstance(v, dict) and {"value", "low", "high"} <= v.keys()}
    scores = {k: v for k, v in found.items() if v["value"] is not None}
    signature = {"clips": "?", "speakers": "?", "corpora": [], "interval": "?"} | metrics.get("signature", {})
    # The oldest run counts: later ones name a checkpoint in place of the pretrained model.
    parts = {k: v for run in runs[::-1] for k, v in _texts(run.get("config")).items()}
    corpora = _corpora(provenance)
    licences = {corpus["hub"] for corpus in corpora}
    languages = {*signature.get("languages", []), *(x for corpus in corpora for x in corpus["languages"])}
    tested = ", ".join(signature["corpora"]) or "not known"
    header = ModelCardData(
        base_model=[x for k in ("encoder", "llm") if (x := _hub_name(parts.get(k)))] or None,
        language=sorted(languages) or None,
        library_name="transformers",
        license=next(iter(licences)) if len(licences) == 1 else "other" if licences else None,
        model_name=name,
        pipeline_tag=TASK,
        tags=["aligncap", "speech-emotion-captioning"],
        eval_results=[EvalResult(TASK, tested, tested, k, v["value"]) for k, v in scores.items()] or None,
    )
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": _cell, "number": lambda x: "?" if x is None else f"{x:.3f}"}
    return environment.from_string(data_path("model_card.md.j2").read_text(encoding="utf-8")).render(
        header=f"---\n{header}\n---",
        mark=MARK,
        name=name,
        steps=[run["verb"] for run in runs],
        encoder=_described(parts.get("encoder")),
        llm=_described(parts.get("llm")),
        corpora=corpora,
        clips=len(provenance.clips),
        unknown=sorted(provenance.unknown),
        scores=scores,
        signature=signature,
        listening=metrics.get("listening_verdict", []) if metrics.get("listening") else [],
        made_with=", ".join(" ".join(pair) for pair in _texts((runs or [{}])[-1].get("versions")).items()),
    )


def _cell(text: object) -> str:
    """Text in one line that neither a table nor HTML takes for its own."""
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def read_record(path: Path) -> Row:
    """The JSON object in a file; empty where there is none or the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(found: object) -> dict[str, str]:
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _runs(folder: Path, run: Row | None = None, seen: frozenset[Path] = frozenset()) -> Iterator[Row]:
    """Records of the runs that the model in `folder` stands on, oldest first, its own `run` last.

    A merged model's record holds that of its checkpoint (`checkpoint_run`); others name the folder that they
    started from.
    """
    run = read_record(folder / "run.json") if run is None else run
    if not isinstance(run.get("verb"), str) or folder.resolve() in seen:
        return
    config = _texts(run.get("config"))
    if config.get("start"):  # which has the parts that these options name where there is no start
        run = run | {"config": {k: v for k, v in config.items() if k not in ("llm", "encoder")}}
        config = run["config"]
    starts = {Path(config[key]): None for key in ("start", "llm", "checkpoint", "model") if config.get(key)}
    if isinstance(run.get("checkpoint_run"), dict):
        starts = {folder / "checkpoint": run["checkpoint_run"]}
    for start, record in starts.items():
        yield from _runs(start, record, seen | {folder.resolve()})
    yield run


def _corpora(provenance: Provenance) -> list[Row]:
    """A row a corpus: what `data/licences.yaml` knows of it, and the number of its speakers in training."""
    speakers = Counter(speaker.partition("/")[0] for speaker in provenance.speakers)
    known = load_data("licences.yaml")
    plain = {"licence": "not known", "hub": "other", "languages": []}
    return [
        {"title": corpus, **plain, **known.get(corpus, {}), "speakers": speakers[corpus]}
        for corpus in sorted(provenance.corpora)
    ]


def _hub_name(model: str | None) -> str | None:
    """A base model's name on the hub, where it has one."""
    if model in defaults():
        return str(defaults()[model]["weights"]).partition(",")[0]
    return model if model and is_hub_name(model) and not Path(model).exists() else None


def _described(model: str | None) -> str:
    if model in defaults():
        return f"{model}: {defaults()[model]['weights']} ({defaults()[model]['licence']})"
    return (model if is_hub_name(model) else Path(model).name) if model else "not known"
