"""The model and where its weights come from.

Importing this package makes transformers' Auto classes know AlignCap, at no cost: the module that registers a
class is imported right after the module of transformers that it registers with. The modules named below
may therefore import the core of transformers alone, and no model, trainer or pipeline of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_AUTO = "transformers.models.auto"
_REGISTERING = {  # a module of transformers: ours that registers with it, at its end
    f"{_AUTO}.configuration_auto": "aligncap.models.configuration_aligncap",
    f"{_AUTO}.feature_extraction_auto": "aligncap.models.feature_extraction_emotion2vec",
    f"{_AUTO}.modeling_auto": "aligncap.models.modeling_aligncap",
    f"{_AUTO}.processing_auto": "aligncap.models.processing_aligncap",
}


class _RegisterAfterImport(MetaPathFinder):
    """Finds the modules of transformers that hold Auto classes, and has ours imported after each of them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = _REGISTERING.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if ours else None
        if ours is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(ours)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register_with_transformers() -> None:
    """For modules of transformers that are loaded already, at once; for the others, when they are."""
    sys.meta_path.insert(0, _RegisterAfterImport())
    for theirs, ours in _REGISTERING.items():
        if theirs in sys.modules:
            importlib.import_module(ours)


_register_with_transformers()
