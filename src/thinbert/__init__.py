"""Thin BERT-family encoders on the CPU you have: load, run, evaluate and ask compressed question-answering models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thinbert.errors import Error, InputError, ModelError

if TYPE_CHECKING:
    from thinbert.api import Answer, Model, load
    from thinbert.pipelines import pipeline

__version__ = "0.2.0.dev0"
__all__ = ["Answer", "Error", "InputError", "Model", "ModelError", "__version__", "load", "pipeline"]

_LAZY = {"Answer": "thinbert.api", "Model": "thinbert.api", "load": "thinbert.api", "pipeline": "thinbert.pipelines"}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # numpy and the tokenizer load with the first model, not with `import thinbert`
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'thinbert' has no attribute {name!r}")
