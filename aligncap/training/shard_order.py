"""The order in which rows of a manifest in shards are learnt from: shard by shard, mixed within a window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from aligncap.training.config import RunConfig

WINDOW = 16_384  # rows: WebDataset's users take 1,000 to 10,000; rows are places here, and cost nothing


class ShardOrder(Sampler[int]):
    """Every row once: shards in random order, in each its rows in random order, and these mixed with those of
    the shards beside it.

    So that few shards are read at a time. A row's place in the mixed order is its place before plus a random
    number below `window`, then sorted: what a shuffle buffer of that many rows does, without holding any.
    All of it follows from seed and epoch, and a run that goes on skips to its place without reading rows.

    Args:
        shards: (rows,), of each row the number of its shard; rows without one (-1) are a shard by themselves.
        window: rows over which neighbours are spread; at least all rows: any order is as likely.
    """

    def __init__(self, shards: np.ndarray, *, seed: int = 0, window: int = WINDOW) -> None:
        self.shards, self.seed, self.window, self.epoch = shards, seed, window, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.shards)

    def order(self) -> np.ndarray:
        """(rows,): the rows of the epoch in their order."""
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.shards))
        known, shard = np.unique(self.shards, return_inverse=True)
        turn = rng.permutation(len(known))[shard.reshape(-1)]
        ordered = shuffled[np.argsort(turn[shuffled], kind="stable")]
        places = np.arange(len(ordered)) + rng.uniform(0, self.window, len(ordered))
        return ordered[np.argsort(places, kind="stable")]

    def __iter__(self) -> Iterator[int]:
        # Not tolist(): a list of a million numbers is as large as what the arrays save.
        return map(int, self.order())


def shard_order(args: RunConfig, dataset: Any) -> ShardOrder | None:
    """The order of a dataset whose rows lie in shards; None: of others, or where the options ask for one."""
    shards = getattr(dataset, "shards", None)
    if shards is None or args.train_sampling_strategy != "random":
        return None
    return ShardOrder(shards, seed=args.seed if args.data_seed is None else args.data_seed)
