"""scripts/train.py with FSDP2 on CPU processes.

accelerate 1.15 shards on accelerators alone: on CPU processes AcceleratorState drops the FSDP plugin and says
nothing, and the run is DDP. torch's fully_shard itself runs on gloo, so the lines that are missing there are
made up for here; all else is what runs on GPUs.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

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

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
