"""A frozen LLM layer as a booster for biomedical image classifiers, in JAX and Flax.

    import jaxboost

    block = jaxboost.load_block("blocks/smollm2")  # frozen LLM layers, made by jaxboost.convert
    boost = jaxboost.Boost("rllm", width=384, block=block, rngs=rngs)  # a module for your own Flax NNX model
    model = jaxboost.build("vit_s", classes=2, image_size=224, block=block, rngs=rngs)  # or a complete classifier

    result = jaxboost.train(jaxboost.load_config("quickstart"), "runs/mine")  # the same as `jaxboost train`
    run = jaxboost.open_run("runs/mine")
    probabilities = run.predict(images)
    model = jaxboost.exported.load("MODEL")  # the same for an export, without the code of models and training

Names are imported on first use: `import jaxboost` alone imports neither jax nor numpy.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxboost import exported
    from jaxboost.api import build, load_block, train
    from jaxboost.config import load_config
    from jaxboost.convert.conversion import convert
    from jaxboost.errors import UserError
    from jaxboost.inference.open_run import open_run
    from jaxboost.models.backbones import BACKBONES
    from jaxboost.models.boost import Boost
    from jaxboost.models.llama import LlamaBlock

__all__ = [
    "BACKBONES",
    "Boost",
    "LlamaBlock",
    "UserError",
    "build",
    "convert",
    "exported",
    "load_block",
    "load_config",
    "open_run",
    "train",
]

_MODULES = {
    "BACKBONES": "jaxboost.models.backbones",
    "Boost": "jaxboost.models.boost",
    "LlamaBlock": "jaxboost.models.llama",
    "UserError": "jaxboost.errors",
    "load_config": "jaxboost.config",
    "open_run": "jaxboost.inference.open_run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return metadata.version("jaxboost")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("convert", "exported"):  # modules; `convert` can be called
        return importlib.import_module(f"jaxboost.{name}")
    value = getattr(importlib.import_module(_MODULES.get(name, "jaxboost.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
