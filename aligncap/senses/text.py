"""`aligncap senses text`: emotion from what is said, by any encoder or LLM that classifies sequences."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from aligncap.models.hub import load_pretrained, resolve
from aligncap.models.precision import pick_device
from aligncap.senses.linear import fit_linear
from aligncap.senses.measures import macro_f1_of
from aligncap.senses.moments import SEVEN, Moment
from aligncap.senses.outcome import read_parts, write_outcome
from aligncap.senses.sense import FILE, Reading, save_tensors
from aligncap.utils.errors import UserError
from aligncap.utils.f1 import f1_sums, macro_f1
from aligncap.utils.io import Row, write_json
from aligncap.utils.options import Config, NaturalInt, NonNegativeFloat, PositiveInt, option
from aligncap.utils.progress import track
from aligncap.utils.run_record import file_hashes
from aligncap.utils.tensor_cache import digest

HEAD = "head.safetensors"  # of a linear sense; another's head is among the backbone's weights
PENALTIES = (1e-4, 1e-3, 1e-2)  # of a linear head's squared weights; the one that is best on dev is taken
_log = logging.getLogger(__name__)


@dataclass
class TextConfig(Config):
    """Train the sense of text: a pretrained encoder or LLM with a head for the seven emotions.

    A stage is WHAT:EPOCHS:LEARNING_RATE. WHAT is "head" (the head alone), "last-N" (and the last N layers) or
    "all"; with --lora_rank, adapters are what is trained of the layers. Of each stage the checkpoint that is
    best on dev goes on. The same command takes up the last checkpoint where it was stopped.

    Examples:
        aligncap senses text --manifest train.jsonl --dev dev.jsonl --test test.jsonl --out runs/text
        aligncap senses text --config senses/text-distilbert
        aligncap senses text --linear --layers 15 --manifest train.jsonl --dev dev.jsonl --out runs/linear
    """

    manifest: str = option(help="Moments to train on.")
    dev: str = option(help="Moments that choose the checkpoint, by macro F1.")
    out: str = option(help="Folder of the sense, its scores, metrics.json and confusion.png.")
    test: str | None = option(None, "Moments to score in the end.")
    model: str = option("smollm2-135m-instruct", "Backbone: a default model, a folder or a hub name.")
    layers: PositiveInt | None = option(None, "Its first so many layers alone; none: all.")
    stages: list[str] = option(["all:1:5e-4"], "WHAT:EPOCHS:LEARNING_RATE, one after another.")
    lora_rank: NaturalInt = option(16, "Of the adapters; 0: the layers' own weights are trained.")
    linear: bool = option(False, "Instead of stages: a linear head on the mean of the frozen last states.")
    class_weights: bool = option(False, "Weigh emotions alike, however rare they are.")
    limit: PositiveInt | None = option(None, "Train on so many moments, drawn by --seed; none: all.")
    batch_size: PositiveInt = option(32, "Texts in a step.")
    max_tokens: PositiveInt = option(128, "Longer texts are cut.")
    weight_decay: NonNegativeFloat = option(0.01, "Of AdamW.")
    checks: PositiveInt = option(2, "Times in a stage that dev is read and a checkpoint kept.")
    precision: Literal["float32", "bfloat16"] = option("float32", "Of training, and of what is kept.")
    device: str = option("auto", "auto (the GPU where there is one), cpu, cuda or cuda:NUMBER.")
    seed: NaturalInt = option(0, "Of the head, the order, dropout and --limit.")

    def own_errors(self) -> list[str]:
        errors = [] if self.stages or self.linear else ["stages: none; give one or more"]
        for word in self.stages:
            try:
                stage_of(word)
            except UserError as error:
                errors.append(str(error))
        return errors


class Stage(NamedTuple):
    """What is trained, how long and how fast; `last` is the number of layers, None: all."""

    last: int | None
    epochs: float
    learning_rate: float


def stage_of(word: str) -> Stage:
    """
    >>> stage_of("last-2:1:5e-5")
    Stage(last=2, epochs=1.0, learning_rate=5e-05)

    Raises:
        UserError: not of this form.
    """
    what, _, rest = word.partition(":")
    number = "0" if what == "head" else what.removeprefix("last-")
    try:
        epochs, rate = map(float, rest.split(":"))
        if (what != "all" and not number.isdecimal()) or not (0 < epochs < np.inf and 0 < rate < np.inf):
            raise ValueError
    except ValueError:
        form = "WHAT:EPOCHS:LEARNING_RATE with head, last-N or all, such as last-2:1:5e-5"
        raise UserError(f"stages={word}: write {form}") from None
    return Stage(None if what == "all" else int(number), epochs, rate)


def run_text(config: TextConfig) -> int:
    """`aligncap senses text`."""
    device = pick_device(config.device)
    files = {"train": config.manifest, "dev": config.dev, "test": config.test}
    parts = read_parts(files, "text")
    if config.limit and config.limit < len(parts["train"]):
        rng = np.random.default_rng(config.seed)
        drawn = sorted(rng.choice(len(parts["train"]), config.limit, replace=False).tolist())
        parts["train"] = [parts["train"][i] for i in drawn]
    torch.manual_seed(config.seed)
    train = train_linear if config.linear else train_stages
    sense = train(config, parts["train"], parts["dev"], device)
    out = Path(config.out)
    sense.save(out, {"model": config.model})
    write_outcome(out, "senses text", asdict(config), files, parts, sense)
    shutil.rmtree(_work(config).parent, ignore_errors=True)
    return 0


# ---- backbones


def load_backbone(name: str, layers: int | None, dtype: torch.dtype, linear: bool = False) -> tuple[Any, Any]:
    """A pretrained model, with a fresh head for SEVEN unless `linear`, and its tokenizer.

    Raises:
        UserError: no such model, fewer layers than asked for, or a tokenizer that cannot pad.
    """
    folder = resolve(name)
    config = load_pretrained(AutoConfig, folder)
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise UserError(f"layers={layers}: {name} has {config.num_hidden_layers}")
        config.num_hidden_layers = layers
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = kinds[:layers]
    if not linear:
        config.id2label = dict(enumerate(SEVEN))
        config.label2id = {label: number for number, label in config.id2label.items()}
    tokenizer = load_pretrained(AutoTokenizer, folder)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"{name}: its tokenizer has no token to pad with")
    config.pad_token_id = tokenizer.pad_token_id
    kind = AutoModel if linear else AutoModelForSequenceClassification
    return load_pretrained(kind, folder, config=config, dtype=dtype), tokenizer


def last_layers(model: Any, count: int) -> list[nn.Module]:
    """The last `count` layers of the backbone of a classifier.

    Raises:
        UserError: it has fewer, or none that can be told.
    """
    number = model.config.num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    if not lists or count > number:
        raise UserError(f"stages=last-{count}: the model has {number} layers")
    return list(lists[0])[number - count :]


# ---- training


def train_stages(
    config: TextConfig, train: Sequence[Moment], dev: Sequence[Moment], device: str
) -> TextSense:
    """Fine-tune in stages, each with a schedule of its own (warm-up over 6 %, then linearly to 0)."""
    dtype = getattr(torch, config.precision)
    model, tokenizer = load_backbone(config.model, config.layers, torch.float32)
    if config.lora_rank:
        from peft import LoraConfig, TaskType, get_peft_model

        lora = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=config.lora_rank,
            lora_alpha=2 * config.lora_rank,
            lora_dropout=0.05,
            target_modules="all-linear",
        )
        model = get_peft_model(model, lora)
    base = model.get_base_model() if config.lora_rank else model
    trainable = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    for number, word in enumerate(config.stages):
        stage, place = stage_of(word), _work(config) / f"stage-{number}"
        if (place / "done.safetensors").is_file():
            load_model(model, place / "done.safetensors")
            continue
        chosen = {id(t) for layer in last_layers(base, stage.last or 0) for t in layer.parameters()}
        body = {id(t) for t in base.base_model.parameters()}
        for name, tensor in model.named_parameters():
            wanted = stage.last is None or id(tensor) in chosen or id(tensor) not in body
            tensor.requires_grad_(name in trainable and wanted)
        _train_stage(config, stage, place, model, tokenizer, train, dev, device)
        save_model(model, str(place / "done.safetensors"))
    whole = model.merge_and_unload() if config.lora_rank else model
    return TextSense(whole.to(dtype), tokenizer, None, config.max_tokens, device)


def _work(config: TextConfig) -> Path:
    """Folder of checkpoints, of another name for other options or files."""
    own = {k: v for k, v in asdict(config).items() if k not in ("out", "test", "device")}
    same = digest(own, sorted(file_hashes([config.manifest, config.dev]).values()))
    return Path(config.out) / "checkpoints" / same


def _train_stage(
    config: TextConfig,
    stage: Stage,
    place: Path,
    model: Any,
    tokenizer: Any,
    train: Sequence[Moment],
    dev: Sequence[Moment],
    device: str,
) -> None:
    weight = _class_weights(train).to(device) if config.class_weights else None

    def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:
        return functional.cross_entropy(outputs["logits"].float(), labels, weight)

    def metrics_of(found: EvalPrediction) -> dict[str, float]:
        # the Trainer sorts by length; labels come in the order of predictions, moments do not
        truth = np.asarray(found.label_ids)
        sums = f1_sums(truth.tolist(), np.asarray(found.predictions).argmax(1).tolist(), range(len(SEVEN)))
        return {"macro_f1": float(macro_f1(sums.sum(0)))}

    steps = int(-(-len(train) // config.batch_size) * stage.epochs)
    every = max(1, steps // config.checks)
    arguments = TrainingArguments(
        output_dir=str(place),
        num_train_epochs=stage.epochs,
        learning_rate=stage.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=0.06,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=every,
        save_steps=every,
        logging_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        bf16=config.precision == "bfloat16",
        use_cpu=device == "cpu",
        seed=config.seed,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
    )
    trainer = Trainer(
        model,
        arguments,
        DataCollatorWithPadding(tokenizer),
        train_dataset=_rows(tokenizer, train, config.max_tokens),
        eval_dataset=_rows(tokenizer, dev, config.max_tokens),
        compute_loss_func=loss_of,
        compute_metrics=metrics_of,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(place)) if place.is_dir() else None)
    for row in trainer.state.log_history:
        if "eval_macro_f1" in row:
            _log.info("%s, step %d: dev macro F1 %.3f", place.name, row["step"], row["eval_macro_f1"])


def _rows(tokenizer: Any, moments: Sequence[Moment], max_tokens: int) -> list[Row]:
    texts = [str(m.text) for m in moments]
    ids = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
    return [{"input_ids": i, "labels": SEVEN.index(str(m.label))} for i, m in zip(ids, moments, strict=True)]


def _class_weights(moments: Sequence[Moment]) -> Tensor:
    """By which each of SEVEN counts alike, 1 on average over moments; 0 of one without examples."""
    counts = Counter(str(m.label) for m in moments)
    shares = [len(moments) / (len(counts) * counts[e]) if counts[e] else 0.0 for e in SEVEN]
    return torch.tensor(shares)


def train_linear(
    config: TextConfig, train: Sequence[Moment], dev: Sequence[Moment], device: str
) -> TextSense:
    """Logistic regression on the mean over tokens of the frozen backbone's last states, standardised."""
    model, tokenizer = load_backbone(
        config.model, config.layers, getattr(torch, config.precision), linear=True
    )
    head = nn.Linear(model.config.hidden_size, len(SEVEN))
    sense = TextSense(model, tokenizer, head, config.max_tokens, device)
    x, x_dev = sense.means(train).numpy(), sense.means(dev)
    labels = [str(m.label) for m in train]
    best, kept = -1.0, {}
    for penalty in PENALTIES:
        state = fit_linear(x, labels, penalty, config.class_weights)
        head.load_state_dict(state)
        with torch.no_grad():
            score = macro_f1_of(dev, head.cpu()(x_dev).numpy())
        _log.info("penalty %g: dev macro F1 %.3f", penalty, score)
        if score > best:
            best, kept = score, state
    head.load_state_dict(kept)
    head.to(device)
    return sense


# ---- the trained sense


class TextSense:
    """A trained classifier of texts; see `sense.Sense`.

    Args:
        model: a classifier of sequences or, with a `head` of its own, a backbone.
        head: of the mean over tokens of the backbone's last states.
    """

    kind = "text"

    def __init__(
        self, model: Any, tokenizer: Any, head: nn.Linear | None, max_tokens: int, device: str
    ) -> None:
        self.model, self.tokenizer, self.head = model.eval().to(device), tokenizer, head
        self.max_tokens, self.device = max_tokens, device
        self.width = int(model.config.hidden_size)
        if head is not None:
            head.to(device)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TextSense:
        """That of a folder; what can go wrong is told by `sense.load_sense`."""
        device = pick_device(device)
        settings = json.loads((folder / FILE).read_text(encoding="utf-8"))
        dtype = getattr(torch, settings["precision"])
        kind = AutoModel if settings["linear"] else AutoModelForSequenceClassification
        model = load_pretrained(kind, folder, dtype=dtype)
        head = nn.Linear(model.config.hidden_size, len(SEVEN)) if settings["linear"] else None
        if head is not None:
            head.load_state_dict(load_file(folder / HEAD))
        return cls(model, load_pretrained(AutoTokenizer, folder), head, settings["max_tokens"], device)

    def save(self, folder: Path, more: Row) -> None:
        """Write backbone, head, tokenizer and settings; `more` is what else sense.json says."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.head is not None:
            save_tensors(folder / HEAD, self.head.state_dict())
        precision = str(self.model.dtype).removeprefix("torch.")
        settings = {"linear": self.head is not None, "max_tokens": self.max_tokens, "precision": precision}
        write_json(folder / FILE, {"kind": "text", **settings, **more})

    def read(self, moments: Sequence[Moment]) -> Reading:
        """Probabilities, and the last state of each token as features."""
        scores = np.full((len(moments), len(SEVEN)), np.nan)
        features = [torch.zeros(0, self.width) for _ in moments]
        for place, share, states in self._each(moments, "reading"):
            scores[place], features[place] = share, states
        return Reading(scores, features)

    def means(self, moments: Sequence[Moment]) -> Tensor:
        """Mean over tokens of the last states, (n, width); 0 of a moment without text."""
        found = torch.zeros(len(moments), self.width)
        for place, _, states in self._each(moments, "means of frozen states"):
            found[place] = states.mean(0)
        return found

    @torch.no_grad()
    def _each(self, moments: Sequence[Moment], title: str) -> Iterator[tuple[int, np.ndarray, Tensor]]:
        """Place, probabilities (7,) and states (tokens, width) of each moment with text, by length."""
        said = [i for i, m in enumerate(moments) if m.text]
        texts = [str(moments[i].text) for i in said]
        rows = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"] if said else []
        ids_of = {i: ids for i, ids in zip(said, rows, strict=True) if ids}
        order = sorted(ids_of, key=lambda i: (len(ids_of[i]), i))
        for start in track(range(0, len(order), 32), None, title):
            places = order[start : start + 32]
            batch = self.tokenizer.pad({"input_ids": [ids_of[i] for i in places]}, return_tensors="pt")
            ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
            found = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states = found.hidden_states[-1].float()
            if self.head is None:
                logits = found.logits.float()
            else:
                own = mask[..., None].float()
                logits = self.head((states * own).sum(1) / own.sum(1))
            shares = logits.softmax(1).cpu().double().numpy()
            for row, place in enumerate(places):
                yield place, shares[row], states[row][mask[row].bool()].cpu()
