"""A cache of tensors on disk: a folder of safetensors shards, named by a hash of what made them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, workplace, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
SHARD_ROWS = 256
AUDIO_VERSION = 1  # raise when loading, levelling or log-mel change what they give


def digest(*parts: object) -> str:
    """Hash of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def fingerprint(model: PreTrainedModel) -> str:
    """Hash of a transformers model: its weights, as they are in memory, and its configuration.

    The folder that it was loaded from, which transformers keeps in the configuration, does not count.
    """

    def without_folder(config: Row) -> Row:
        pairs = ((k, without_folder(v) if isinstance(v, dict) else v) for k, v in config.items())
        return {key: value for key, value in pairs if key != "_name_or_path"}

    return digest(without_folder(model.config.to_dict()), hash_of(model.state_dict()))


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:24]


class TensorCache:
    """Read-mostly mapping from a key to a tensor, over the shards of one folder."""

    def __init__(self, folder: Path, description: Row) -> None:
        self.folder = folder
        self.description = description
        self._where: dict[str, Path] = {}
        self._open: dict[tuple[int, Path], safe_open] = {}
        self.reread()

    def reread(self) -> None:
        """Take up shards that other processes have written."""
        for shard in sorted(set(self.folder.glob("*.safetensors")) - set(self._where.values())):
            self._register(shard)

    def _register(self, shard: Path) -> None:
        with safe_open(shard, "pt") as file:
            self._where.update(dict.fromkeys(file.keys(), shard))

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def __getitem__(self, key: str) -> Tensor:
        return self._file(key).get_tensor(key)

    def rows(self, key: str) -> int:
        """First dimension of a tensor, from its shard's header: the tensor is not read."""
        return int(self._file(key).get_slice(key).get_shape()[0])

    def _file(self, key: str) -> safe_open:
        if key not in self._where:
            raise KeyError(f"{self.folder}: no row {key}; the cache was not filled for these settings")
        # A handle opened before a fork must not be shared with the child.
        handle = (os.getpid(), self._where[key])
        if handle not in self._open:
            self._open[handle] = safe_open(self._where[key], "pt")
        return self._open[handle]

    def write(self, rows: dict[str, Tensor]) -> None:
        """Add one shard, atomically."""
        if not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "cache.json").exists():
            write_json(self.folder / "cache.json", self.description)
        shard = self.folder / f"{digest(sorted(rows))}.safetensors"
        with workplace(shard) as temporary:
            save_file({k: v.contiguous() for k, v in rows.items()}, temporary / shard.name)
            os.replace(temporary / shard.name, shard)
        self._register(shard)


def require_space(folder: Path, size: float, what: str, remedy: str, group: Group = ALONE) -> None:
    """Before anything long: the disk has room for `size` bytes, which the first process tells if many.

    Raises:
        UserError: it has not.
    """
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    told = f"{what}: {size / 1e9:.1f} GB; {place} has {free / 1e9:.1f} GB free"
    if size > free:
        raise UserError(f"{told}; {remedy}")
    if size > 1e9 and group.rank == 0:
        _log.info("%s", told)


def fill(
    cache: TensorCache,
    keys: Iterable[str],
    compute: Callable[[Sequence[str]], dict[str, Tensor]],
    batch: int,
    title: str,
    group: Group = ALONE,
) -> None:
    """Compute the rows that `cache` lacks, `batch` keys at a time, shard by shard, shared over `group`.

    Rows that are there are left out of the batches, since a cache serves many manifests.
    """
    missing = [k for k in dict.fromkeys(keys) if k not in cache]
    batches = [missing[start : start + batch] for start in range(0, len(missing), batch)]
    group.share_out(cache, batches, compute, title, SHARD_ROWS)
