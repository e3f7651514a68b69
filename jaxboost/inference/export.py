"""Exports a finished run to a folder that `jaxboost.exported` reads without the code of models and training."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxboost import io, outputs
from jaxboost.data import columns as clinical
from jaxboost.errors import UserError
from jaxboost.inference import exported, open_run
from jaxboost.inference.baseline_run import BaselineRun
from jaxboost.inference.exported import CHANNELS, DESCRIPTION, FORMAT, PROGRAM, WITHOUT_COLUMNS
from jaxboost.inference.open_run import FinishedRun
from jaxboost.io import digest_of, json_sha256, to_json
from jaxboost.models.attention import portable
from jaxboost.models.frozen import merge
from jaxboost.runs import report
from jaxboost.tasks import TASKS

PLATFORMS = ("cpu", "cuda", "tpu")
# Each file's weights are in memory while it is written.
MAX_FILE_BYTES = 4 << 30

_KINDS = ("trained", "frozen", "statistics", "merged")

logger = logging.getLogger(__name__)


def export_run(run: pathlib.Path, target: pathlib.Path, moved: Sequence[str] = ()) -> None:
    """Exports the finished run in a folder: the work of `jaxboost export`.

    Args:
      run: folder of the run, or of one fold of a cross-validation.
      target: the new folder; it must not exist, nor lie in `run`.
      moved: see `open_run.open_run`.

    Raises:
      UserError: see `open_run.open_run` and `export`; or `run` is an export already.
    """
    if exported.is_export(run):
        raise UserError(f"--run {run} is an export already: give the folder of a run to export")
    check_target(target)
    if outputs.is_inside(target, run):
        raise UserError(f"the export {target} would lie in the run that is exported: give a folder elsewhere")
    opened = open_run.open_run(run, moved)
    assert isinstance(opened, FinishedRun)  # no export, see above
    export(opened, target)


def check_target(folder: pathlib.Path) -> None:
    """Raises UserError if `folder` exists already or cannot be created."""
    if os.path.lexists(folder):
        raise UserError(f"the export {folder} already exists: give another name, or remove it")
    outputs.check_folder(folder, "the export")


def export(run: FinishedRun | BaselineRun, folder: pathlib.Path) -> None:
    """Exports the run to a new folder, complete or not at all; `inference.exported` describes the files.

    The program is lowered for all PLATFORMS and for batches of any size. If the cheapest way to compute the model
    depends on the batch size, it is lowered only for the batch size of the run's evaluation.

    Args:
      run: a run that `open_run` opened.
      folder: the new folder; it must not exist.

    Raises:
      UserError: see `check_target`; the folder cannot be written; or the run is of a baseline.
    """
    check_target(folder)
    if isinstance(run, BaselineRun):
        raise UserError(f"{run.folder} is the run of a baseline, which cannot be exported: predict with the run itself")
    weights, as_trees = flat_weights(run)
    program, batch = lower(run, weights, as_trees)
    needed = {name: weights[name] for name in program.in_tree.unflatten(program.in_avals)[0][0]}
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir()
        (temporary / PROGRAM).write_bytes(program.serialize())
        files = [PROGRAM, *_write_weights(temporary, needed)]
        described = _describe(run, program, batch) | {"files": {name: digest_of(temporary / name) for name in files}}
        described = json.loads(to_json(described))
        described["sha256"] = json_sha256(described)
        (temporary / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        os.rename(temporary, folder)
    except Exception as error:
        if (cause := io.os_error(error)) is None:
            raise
        raise io.refused(f"the export {folder}", cause) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(weight.nbytes for weight in needed.values())
    logger.info("exported to %s: %d weights of %.1f MiB", folder, len(needed), size / 2**20)


def lower(
    run: FinishedRun, weights: Mapping[str, jax.Array], as_trees: Callable[[Mapping[str, Any]], tuple[Any, ...]]
) -> tuple[jax.export.Exported, int | None]:
    """Lowers the model to a program that takes only the weights that it needs.

    Args:
      run: the run.
      weights: all weights by name, the first result of `flat_weights`.
      as_trees: the second result of `flat_weights`.

    Returns:
      The program, and its batch size; None: it takes any batch size.
    """
    side, channels = run.preprocessing.image_size, CHANNELS[run.preprocessing.ndim]
    shapes = {name: jax.ShapeDtypeStruct(weight.shape, weight.dtype) for name, weight in weights.items()}
    task = TASKS[run.labels.task]

    def export_with(names: Collection[str], batch: Any, platforms: Sequence[str]) -> jax.export.Exported:
        def program(given: Mapping[str, jax.Array], images: jax.Array, *columns: jax.Array) -> jax.Array:
            # Weights that are not given are not used, so their values do not matter.
            unused = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items() if name not in given}
            *trees, precomputed = as_trees({**unused, **given})
            model = merge(run.system.graphdef, *trees)
            # A model without clinical columns does not take them.
            further = {"columns": columns[0]} if columns else {}
            return task.probabilities(model(images, precomputed, **further))

        images = jax.ShapeDtypeStruct((batch, *[side] * run.preprocessing.ndim, channels), jnp.uint8)
        F = clinical.width(run.columns)
        columns = [jax.ShapeDtypeStruct((batch, F), jnp.float32)] if F else []
        with portable():
            return jax.export.export(jax.jit(program), platforms=platforms)(
                {name: shapes[name] for name in names}, images, *columns
            )

    # With a fixed batch size jax drops unused weights; with any size it keeps all.
    fixed = export_with(shapes, run.batch_size, PLATFORMS[:1])
    # Behind the weights come the inputs.
    arguments = sorted(shapes)
    needed = [arguments[index] for index in fixed.module_kept_var_idx if index < len(arguments)]
    try:
        return export_with(needed, jax.export.symbolic_shape("batch")[0], PLATFORMS), None
    except jax.errors.InconclusiveDimensionOperation:
        logger.info(
            "the cheapest way to compute the model depends on the batch size: it is exported for batches of %d",
            run.batch_size,
        )
        return export_with(needed, run.batch_size, PLATFORMS), run.batch_size


def flat_weights(run: FinishedRun) -> tuple[dict[str, jax.Array], Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    """Returns all weights of the model by name, and a function that turns them back into the trees for `merge`.

    The last tree holds the precomputed projections: in float32, PneumoLLM's adapters are merged into the projections
    that follow them. In bfloat16 adapters stay separate.
    """
    graphdef = run.system.graphdef
    precomputed = jax.jit(lambda *trees: merge(graphdef, *trees).precompute())(*run.weights)
    leaves, structure = jax.tree.flatten_with_path((*run.weights, precomputed))
    names = [_name(path) for path, _ in leaves]
    flat = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    return flat, lambda given: jax.tree.unflatten(structure, [given[name] for name in names])


def _name(path: tuple[Any, ...]) -> str:
    return f"{_KINDS[path[0].idx]}.{jax.tree_util.keystr(path[1:], simple=True, separator='.')}"


def _write_weights(folder: pathlib.Path, weights: Mapping[str, jax.Array]) -> list[str]:
    """Writes safetensors files of up to MAX_FILE_BYTES, or one larger weight each; returns the names of the files."""
    groups: list[list[str]] = []
    size = MAX_FILE_BYTES
    for name, weight in weights.items():
        if size + weight.nbytes > MAX_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += weight.nbytes
    files = [f"weights-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        files = ["weights.safetensors"]
    for file, names in zip(files, groups, strict=True):
        # safetensors makes its files readable for their owner alone; these get the process's usual permissions.
        (folder / file).touch()
        mode = (folder / file).stat().st_mode
        save_file({name: np.asarray(weights[name], order="C") for name in names}, folder / file)
        (folder / file).chmod(mode)
    return files


def _describe(run: FinishedRun, program: jax.export.Exported, batch: int | None) -> dict[str, Any]:
    result = run.result.to_json()
    _, *shape = program.in_tree.unflatten(program.in_avals)[0][1].shape
    return {
        "format": FORMAT if run.columns else WITHOUT_COLUMNS,
        "dataset": result["dataset"],
        "task": run.labels.task,
        "classes": list(run.labels.classes),
        "threshold": result["threshold"],
        "unit": run.unit,
        "preprocessing": dataclasses.asdict(run.preprocessing),
        **({"columns": [dataclasses.asdict(column) for column in run.columns]} if run.columns else {}),
        "images": {"batch": batch, "shape": shape, "dtype": "uint8"},
        "batch_size": run.batch_size,
        "platforms": list(program.platforms),
        "provenance": {
            **{name: result[name] for name in ("model", "boost", "seed", "protocol", "warning", "selection", "test")},
            "pretrained": {role: part for role, part in run.result.parts.items() if part},
            "data_sha256": result["data_sha256"],
            "versions": result["versions"],
            "exported_with": report.versions(),
            "config": result["config"],
        },
    }
