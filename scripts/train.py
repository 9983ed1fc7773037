r"""Train on any number of devices: what `aligncap train` does, as a script for accelerate.

accelerate launch --config_file configs/accelerate/cpu2.yaml \
    scripts/train.py distill --config configs/recipes/distill.yaml
accelerate launch --config_file configs/accelerate/gpu8.yaml \
    scripts/train.py distill --config configs/recipes/distill.yaml
python scripts/train.py sft --config configs/recipes/sft.yaml
"""

import sys

from aligncap.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
