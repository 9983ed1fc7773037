r"""Train on any number of devices: what `aligncap train` does, as a script for accelerate.

    accelerate launch --config_file configs/accelerate/cpu2.yaml scripts/train.py distill --config distill
    accelerate launch --config_file configs/accelerate/gpu8.yaml -m aligncap train distill --config distill
    python scripts/train.py sft --config sft

The second form needs no checkout but for the launch configuration, which is in the package's `_configs` too.
"""

import sys

from aligncap.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
