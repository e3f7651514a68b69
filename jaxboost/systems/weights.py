"""Parts of a model with pretrained weights: converted ones, or their random control."""

import dataclasses
import functools
import logging
import os
import pathlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost import convert, io, processes
from jaxboost.convert import store
from jaxboost.convert.placing import Placement, Quantize
from jaxboost.errors import UserError
from jaxboost.models.frozen import Tree
from jaxboost.processes import arrays

RANDOM = "random"
# The pretrained parts of R-LLM, those of PneumoLLM, CLIP's text encoder, an LLM's question, and BLIP-2's Q-Former.
ROLES = ("encoder", "block", "vision", "llama", "text", "question", "qformer")
# Kind of weights in messages -> the value of --part of `jaxboost convert`.
_PARTS = {"encoder": "encoder", "block": "block", "Q-Former": "qformer"}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A part of a model that starts with converted weights, or with frozen random ones as the control.

    Attributes:
      role: its name in result.json, one of ROLES.
      paths: where its weights are in the model's tree of weights.
      statistics: where its running statistics are in the model's tree of statistics, if they are loaded.
      trainable: whether its weights are trained too.
      partly: whether some of its weights are trained, those that the model has among its trained ones; `trainable` is
        False then.
      about: the entry of result.json about them, without the fingerprint.
      text: their description in the log.
      load: placement -> (a tree for each path, then for each of `statistics`; fingerprint); None for random weights.
      kept_dtype: of a partly trained part, the dtype that its loaded frozen weights are cast to; None: as they are.
      shards: whether large weights are split over the devices instead of copied to each.
      quantize: quantizes the matrices of its layers; None: they are not quantized.
    """

    role: str
    paths: tuple[tuple[str, ...], ...]
    trainable: bool
    about: Mapping[str, Any]
    text: str
    load: Callable[[Placement], tuple[tuple[dict[str, Any], ...], str]] | None
    statistics: tuple[tuple[str, ...], ...] = ()
    partly: bool = False
    kept_dtype: str | None = None
    shards: bool = False
    quantize: Quantize | None = None

    def in_memory(self, weights: Tree) -> Tree:
        """The part's weights as they are in memory in a run; under `jax.eval_shape` their shapes."""
        quantize = self.quantize
        if quantize is None:
            return weights
        return jax.tree.map(lambda leaf: quantize(leaf) if leaf.ndim == 3 else leaf, weights)


def as_trained(weights: dict[str, Any]) -> dict[str, Any]:
    """Casts weights to float32, which the optimiser's small steps need."""
    return cast(weights, jnp.dtype("float32"))


def cast(weights: Tree, dtype: jnp.dtype) -> dict[str, Any]:
    """Casts all weights of a tree."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), weights)


def digest(weights: Mapping[str, Any]) -> str:
    """Fingerprint of weights that have no manifest."""
    leaves, _ = jax.tree.flatten_with_path(weights)
    return store.fingerprint({jax.tree_util.keystr(path): np.asarray(arrays.on_host(leaf)) for path, leaf in leaves})


def empty(field: str) -> UserError:
    """The mistake of a config field for weights that are needed, but not named."""
    return UserError(f'config field {field} is empty: give the folder that `jaxboost convert` made, or "random"')


def stored_dtype(computed: str, *, trainable: bool) -> str:
    """The dtype in which weights are converted for a computation; trained ones start from exact weights."""
    return "float32" if trainable else computed


def warn_if_rounded(what: str, folder: pathlib.Path, dtype: str) -> None:
    """Warns that trained weights start from rounded ones, if a folder of converted weights has them in `dtype`.

    It may have been converted for a run that does not train them.
    """
    if dtype != "float32":
        warn_once(
            f"the {what} at {folder} is trained, and starts from weights rounded to {dtype}: convert it again with"
            " --dtype float32, into another folder"
        )


@functools.cache
def warn_once(text: str) -> None:
    """Warns once in a process: the parts of a run read a manifest several times."""
    logger.warning("%s", text)


def find_converted(
    what: str,
    folder: str,
    source: str,
    layers: str,
    *,
    dtype: str,
    convert_missing: bool,
    adapter: str = "",
    instead: str = "",
) -> pathlib.Path:
    """The folder of converted weights. A missing one is converted first if the config asks for that.

    Args:
      what: the kind of weights, for messages: "block", "encoder" or "Q-Former".
      folder: path of the folder, as the config has it.
      source: what they are converted from, "" if the config names nothing.
      layers: the value of --layers of `jaxboost convert`.
      dtype: the value of --dtype of `jaxboost convert`.
      convert_missing: whether a missing folder is converted from the source.
      adapter: the value of --adapter of `jaxboost convert`, "" for none.
      instead: what else the user can do, for the end of the message.

    Raises:
      UserError: it is missing, and the config does not ask to convert it.
    """
    path = io.user_path(folder)

    def convert_it() -> None:
        if os.path.exists(path):
            return
        if not (convert_missing and source):
            more = (f" --adapter {adapter}" if adapter else "") + (f" --dtype {dtype}" if dtype != "float32" else "")
            raise UserError(
                f"no {what} at {path}: make it with `jaxboost convert --source {source or 'SOURCE'}"
                f" {_flags(what, layers)}{more} --out {path}`{instead}"
            )
        text = {"all": "all layers", "-1": "the last layer"}.get(layers, f"layer {layers}")
        logger.info("no %s at %s: converting %s of %s", what, path, text, source)
        try:
            convert.convert(source, layers, path, dtype=dtype, adapter=adapter or None, part=_PARTS[what])
        except UserError:
            # Several runs of a sweep may convert it at the same time: all use the result of the first that finishes.
            if not os.path.exists(path):
                raise
            logger.info("another process has made %s in the meantime: it is used", path)

    # One process converts it, while the others wait.
    processes.first("converted weights", convert_it)
    if not os.path.exists(path):
        raise UserError(
            f"no {what} at {path} on {socket.gethostname()}, though process 0 has it: put it on a disk that all"
            " processes share, or convert it on each host"
        )
    return path


def _flags(what: str, layers: str) -> str:
    """What says in a command of `jaxboost convert` what is converted."""
    # A BLIP-2 needs --part, and it is right for every source. Only a block has layers to choose.
    return f"--part {_PARTS[what]}" + (f" --layers {layers}" if what == "block" else "")


def check_same(
    what: str,
    field: str,
    named: str,
    finished: Mapping[str, Any] | None,
    fingerprint: Callable[[pathlib.Path], str],
    folder: pathlib.Path,
) -> None:
    """Raises UserError if a finished run in `folder` used other weights than the config now names, or if it names none.

    Args:
      what: the kind of weights, for the message: "block" or "encoder".
      field: the config field that names the weights.
      named: its value, the folder of weights, or "random". A folder that is no longer there is not compared.
      finished: the entry of result.json about the weights; None if the run had none.
      fingerprint: folder of weights -> their fingerprint.
      folder: of the run.
    """
    if finished is None:
        return
    if not named:
        raise empty(field)
    was_random = finished["source"] == RANDOM
    path = io.user_path(named)
    same = was_random == (named == RANDOM)
    if same and not was_random and os.path.exists(path):
        # Under a control the part's own fingerprint is that of the changed weights.
        same = fingerprint(path) == finished.get("loaded_sha256", finished["sha256"])
    if not same:
        digits = f" ({finished['sha256'][:12]})" if finished["sha256"] else ""
        raise UserError(
            f"{folder} is a finished run with the {what} from {finished['source']}{digits}, not with {named}:"
            " give another --workdir"
        )
