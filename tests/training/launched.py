"""Several `aligncap train` commands, one after the other, in processes that accelerate started once.

    accelerate launch --config_file configs/accelerate/cpu2.yaml tests/training/launched.py runs.json

Importing torch in two processes takes longer than to train a tiny model. `runs.json` lists the runs: their
`words`, and for one that goes on from another's checkpoint what is copied before it, as of a killed run: the
folder `of`, to the folder `to`, `without` what in it has these names.

With FSDP2: accelerate 1.15 shards on accelerators alone: on CPU processes AcceleratorState drops the FSDP
plugin and says nothing, and the run is DDP. torch's fully_shard itself runs on gloo, so the lines that are
missing there are made up for here; all else is what runs on GPUs.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from aligncap.cli import main

plain = AcceleratorState.__init__


@functools.wraps(plain)
def sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    first = not self._shared_state
    plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if first and fsdp_plugin is not None:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


AcceleratorState.__init__ = sharded


def run(words: list[str], of: str = "", to: str = "", without: tuple[str, ...] = ()) -> int:
    if of:
        if os.environ.get("RANK", "0") == "0":
            shutil.copytree(of, to, ignore=lambda folder, names: without if folder == of else ())
        torch.distributed.barrier()  # the group stands since the run before
    return main(["train", *words])


if __name__ == "__main__":
    for chosen in json.loads(Path(sys.argv[1]).read_text()):
        if code := run(**chosen):
            sys.exit(code)
