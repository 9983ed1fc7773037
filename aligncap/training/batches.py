"""Batches of rows of like length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from aligncap.training.config import RunConfig
from aligncap.training.packing import fill_rows, packed_size, row_width

Spans = list[tuple[int, int]]
DESCRIBED = 500  # batches from which the share of padding is said


def padded_size(lengths: np.ndarray) -> int:
    """Tokens of one batch, padding included; `lengths` are (rows, 2): tokens of prompt and of response.

    >>> padded_size(np.array([[5, 1], [3, 4]]))
    18
    """
    return len(lengths) * int(lengths.max(0).sum())


def padding_share(
    lengths: np.ndarray, batches: Sequence[Sequence[int] | np.ndarray], packed: bool = False, width: int = 0
) -> float:
    """Share of padding in all tokens of `batches` of indices into `lengths` (rows, 2).

    >>> padding_share(np.array([[5, 1], [3, 4]]), [[0, 1]])  # 13 tokens in 18 places
    0.2777777777777778
    >>> padding_share(np.array([[5, 1], [3, 4]]), [[0, 1]], packed=True)
    0.0

    Args:
        packed, width: whether and into what the rows of a batch are packed, see `packing.plan_rows`.
    """
    real = sum(int(lengths[batch].sum()) for batch in batches)
    sizes = (
        packed_size(lengths[batch].sum(1).tolist(), width) if packed else padded_size(lengths[batch])
        for batch in batches
    )
    return 1 - real / sum(sizes)


def places(lengths: np.ndarray, slabs: int) -> np.ndarray:
    """Place of each row in an order whose neighbours are alike in prompt and in response.

    Rows of like prompts form slabs of about equal number; each slab is sorted by response, up and down in
    turn, so that two slabs meet in like responses (after sort-tile-recursive packing, Leutenegger et al.
    1997). Rows of the same two lengths share a place.

    >>> places(np.array([[9, 1], [9, 5], [2, 5], [2, 1], [2, 1]]), slabs=2).tolist()
    [3, 2, 1, 0, 0]
    """
    prompts, responses = lengths.T
    slab = np.searchsorted(np.sort(prompts), prompts) * slabs // len(prompts)
    keys = np.stack([slab, np.where(slab % 2, -responses, responses), prompts], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def cut(lengths: np.ndarray, rows: int, tokens: int) -> Spans:
    """Cut rows, in their order, into batches [start, stop).

    Each holds at most `rows` rows and `tokens` tokens, padding included; 0: no such limit. A row longer than
    `tokens` stands alone.

    >>> cut(np.array([[3, 1], [3, 2], [9, 1], [9, 9]]), rows=0, tokens=10)
    [(0, 2), (2, 3), (3, 4)]
    """
    spans: Spans = []
    start = prompt = response = 0
    for place, (own_prompt, own_response) in enumerate(lengths.tolist()):
        prompt, response = max(prompt, own_prompt), max(response, own_response)
        count = place - start + 1
        full = 0 < rows < count or 0 < tokens < count * (prompt + response)
        if full and count > 1:
            spans.append((start, place))
            start, prompt, response = place, own_prompt, own_response
    return [*spans, (start, len(lengths))]


def round_up(spans: Spans, lengths: np.ndarray, multiple: int) -> Spans:
    """Halve the largest batches until their number is a multiple of `multiple`, or all are single rows."""
    spans = list(spans)
    while len(spans) % multiple and len(spans) < len(lengths):
        sizes = [padded_size(lengths[a:b]) if b - a > 1 else 0 for a, b in spans]
        largest = int(np.argmax(sizes))
        start, stop = spans[largest]
        middle = (start + stop) // 2
        spans[largest : largest + 1] = [(start, middle), (middle, stop)]
    return spans


class LengthBuckets(Sampler[list[int]]):
    """A batch sampler: each row once an epoch, in batches of rows of like length, the batches shuffled.

    The rows of a batch change from epoch to epoch as far as others of the same lengths can take their places,
    and where batches begin and end does not: each epoch has the same number of batches, by which the Trainer
    counts its steps and finds its place when it resumes. All of it follows from seed and epoch.

    Rows that will be packed need not be alike: `packing.fill_rows` packs those of the whole epoch, and a
    batch is some of what it fills. The same in every epoch, but that rows of as many tokens change places.

    Args:
        lengths: (rows, 2), tokens of each row's prompt and response.
        rows: rows of a batch, 0: as many as `tokens` allow.
        tokens: budget of a batch, padding included; 0: none.
        multiple: the number of batches is a multiple of it (processes × accumulation steps), so that all
            processes and all steps get equally many; only rows fewer than it leave it smaller.
        packed: the rows of a batch will be packed, into rows of `width` tokens.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        rows: int = 0,
        tokens: int = 0,
        multiple: int = 1,
        seed: int = 0,
        packed: bool = False,
    ) -> None:
        if not (tokens if packed else rows or tokens):
            raise ValueError("rows or tokens must limit a batch; where rows are packed, tokens")
        self.lengths, self.packed, self.seed, self.epoch = lengths, packed, seed, 0
        self.slots, self.width = np.arange(len(lengths)), 0
        if packed:
            self._pack(tokens, multiple)
            return
        best = None
        for slabs in (2**k for k in range(len(lengths).bit_length())):
            place = places(lengths, slabs)
            ordered = lengths[np.argsort(place, kind="stable")]
            spans = cut(ordered, rows, tokens)
            size = sum(padded_size(ordered[a:b]) for a, b in spans)
            if best is None or size < best:
                best, self.place, self.spans = size, place, round_up(spans, ordered, multiple)

    def _pack(self, tokens: int, multiple: int) -> None:
        totals = self.lengths.sum(1)
        rng = np.random.default_rng(self.seed)
        self.width = row_width(rng.permutation(totals).tolist(), tokens)
        self.place = np.unique(totals, return_inverse=True)[1].reshape(-1)
        ordered = totals[np.argsort(self.place, kind="stable")]
        rows = fill_rows(ordered.tolist(), self.width)
        rows = [rows[i] for i in rng.permutation(len(rows))]
        self.slots = np.concatenate([np.array(row) for row in rows])
        ends = np.cumsum([len(row) for row in rows])
        stops = [*ends[tokens // self.width - 1 : -1 : tokens // self.width].tolist(), len(totals)]
        found = list(zip([0, *stops], stops, strict=False))
        self.spans = round_up(
            found, self.lengths[np.argsort(self.place, kind="stable")][self.slots], multiple
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.lengths))
        order = shuffled[np.argsort(self.place[shuffled], kind="stable")][self.slots]
        for batch in rng.permutation(len(self.spans)):
            start, stop = self.spans[batch]
            yield order[start:stop].tolist()

    def summary(self, teacher: np.ndarray | None = None) -> dict[str, float]:
        """`summary` of this epoch's batches."""
        return summary(self.lengths, list(self), teacher, self.packed, self.width, self.seed)


def shuffled_batches(rows: int, batches: int, seed: int) -> list[np.ndarray]:
    """`rows` rows in so many batches, whatever their lengths: what others are held against."""
    return np.array_split(np.random.default_rng(seed).permutation(rows), batches)


def summary(
    lengths: np.ndarray,
    batches: Sequence[Sequence[int] | np.ndarray],
    teacher: np.ndarray | None = None,
    packed: bool = False,
    width: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """Rows, batches, mean rows of a batch, share of padding, and that of shuffled batches of plain rows.

    Padding is that of the first `DESCRIBED` batches, which stand in no order.

    Args:
        lengths: (rows, 2), tokens of each row's prompt and response.
        batches: of indices into it.
        teacher: lengths of what the teacher reads beside each row, in the layout of `lengths`.
        packed, width: whether and into what rows of a batch are packed, see `packing.plan_rows`; the
            teacher's find their own width.
    """
    found: dict[str, float] = {
        "rows": len(lengths),
        "batches": len(batches),
        "rows_per_batch": len(lengths) / len(batches),
    }
    shuffled = shuffled_batches(len(lengths), len(batches), seed)[:DESCRIBED]
    for name, read in (("", lengths), ("teacher_", teacher)):
        if read is not None:
            own = 0 if name else width
            found[f"{name}padding"] = padding_share(read, batches[:DESCRIBED], packed, own)
            found[f"{name}padding_shuffled"] = padding_share(read, shuffled)
    return {name: round(value, 4) for name, value in found.items()}


def row_lengths(dataset: Any) -> np.ndarray:
    """(rows, 2): tokens of each row's prompt and response, from `dataset.lengths()` or from its rows."""
    if hasattr(dataset, "lengths"):
        return dataset.lengths()
    return np.array([(len(row["prompt_ids"]), len(row["response_ids"])) for row in dataset])


def length_buckets(args: RunConfig, dataset: Any) -> LengthBuckets | None:
    """The batches that the options ask for; None: the Trainer's own."""
    if not args.tokens_per_batch and not args.length_buckets:
        return None
    return LengthBuckets(
        row_lengths(dataset),
        rows=0 if args.tokens_per_batch else args.train_batch_size,
        tokens=args.tokens_per_batch,
        multiple=args.world_size * args.gradient_accumulation_steps,
        seed=args.seed if args.data_seed is None else args.data_seed,
        packed=args.packing,
    )


def bucket_loader(
    accelerator: Accelerator, args: RunConfig, rows: Dataset[Any], buckets: LengthBuckets, collator: Any
) -> DataLoader:
    """The loader of these batches, shared out among processes."""
    names = "num_workers pin_memory persistent_workers multiprocessing_context prefetch_factor in_order"
    options: Any = {name: getattr(args, f"dataloader_{name}") for name in names.split()}
    options |= {"batch_sampler": buckets, "collate_fn": collator}
    loader = accelerator.prepare(DataLoader(rows, **options))
    # accelerate and the Trainer wrap batch samplers, for processes and to resume; through all wrappers an
    # epoch reaches only what is named here.
    loader.set_sampler(buckets)
    return loader


def describe(args: RunConfig, dataset: Any, buckets: LengthBuckets | None) -> tuple[dict[str, float], str]:
    """`summary` of a run's batches, and the same in words; the Trainer's own batches where `buckets` is None.

    Those are described by others that are shuffled as they are.
    """
    teacher = getattr(dataset, "teacher_lengths", lambda: None)()
    lengths = row_lengths(dataset) if buckets is None else buckets.lengths
    if buckets is not None:
        found = buckets.summary(teacher)
    else:
        batches = shuffled_batches(len(lengths), -(-len(lengths) // args.train_batch_size), args.seed)
        found = summary(lengths, batches, teacher, args.packing, seed=args.seed)
    padding = "; ".join(
        f"{who}padding {found[name]:.1%}, in shuffled batches {found[f'{name}_shuffled']:.1%}"
        for who, name in (("", "padding"), ("the teacher's ", "teacher_padding"))
        if name in found
    )
    counts = f"{found['rows']:.0f} rows in {found['batches']:.0f} batches"
    words = (
        f"{counts}, {found['rows_per_batch']:.1f} rows each{', packed' if args.packing else ''}; {padding}"
    )
    budget, tokens = args.tokens_per_batch, lengths.sum(1)
    if budget and (over := int((tokens > budget).sum())):
        words += f"; {over} rows are longer than tokens_per_batch={budget}, up to {tokens.max()}"
    return found, words
