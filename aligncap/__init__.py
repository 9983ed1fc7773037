"""AlignCap: speech emotion captioning, from a corpus folder to a scored report.

Importing it registers the model with transformers' Auto classes.
"""

from multiprocessing import parent_process
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "AlignCapConfig",
    "AlignCapForConditionalGeneration",
    "AlignCapModel",
    "AlignCapProcessor",
    "Captioner",
]

if parent_process() is None:  # workers that only measure audio need not load torch, which takes seconds
    import aligncap.models  # noqa: F401


def __getattr__(name: str) -> Any:
    if name == "Captioner":
        from aligncap.inference.captioner import Captioner

        return Captioner
    if name in __all__:
        import aligncap.models

        return getattr(aligncap.models, name)
    raise AttributeError(f"module 'aligncap' has no attribute {name!r}")
