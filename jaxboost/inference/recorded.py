"""Checks that the model which is built for a finished run is the one that its result.json tells of."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost import schema
from jaxboost.convert import argument_types
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.frozen import count
from jaxboost.runs import workdir
from jaxboost.runs.result import RunResult
from jaxboost.systems import System
from jaxboost.systems.weights import RANDOM


def check_trained(folder: pathlib.Path, config: ConfigDict, trained: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError if the arguments of a pretrained part in result.json do not fit its model."""
    where = f"{folder / workdir.RESULT}: the arguments of"
    fix = "bring it back from a backup, or train again"
    if (block := trained.get("block")) and config.boost.trainable:
        schema.parse(argument_types.Llama, block.get("arguments"), where=f"{where} block", fix=fix)
        if block.get("layers") is None:
            raise UserError(f"{folder / workdir.RESULT}: the block has no layers: {fix}")
    if qformer := trained.get("qformer"):
        schema.parse(argument_types.QFormer, qformer.get("arguments"), where=f"{where} qformer", fix=fix)
    if encoder := trained.get("encoder"):
        arguments = encoder.get("arguments") or {}
        differing = BACKBONES[config.model.backbone].differing(arguments)
        eps = arguments.get("eps")
        has_eps = "eps" in BACKBONES[config.model.backbone].traits.open
        if has_eps and not (isinstance(eps, int | float) and 0 < eps <= 1):
            differing.append(f"eps {eps}, not a small number")
        if encoder["source"] != RANDOM and differing:
            raise UserError(f"{where} encoder are not those of {config.model.backbone}: {', '.join(differing)}: {fix}")


def check_size(folder: pathlib.Path, built: System, result: RunResult) -> None:
    """Raises UserError if the model does not have as many parameters as result.json says, before it is created."""
    expected = {"trainable": result.parameters.trainable, "frozen": result.parameters.frozen}
    for name, weights in (("trainable", built.params), ("frozen", built.frozen)):
        if (found := count(weights)) != expected[name]:
            raise UserError(
                f"{folder}: the model of config.json has {found:,} {name} parameters, that of result.json"
                f" {expected[name]:,}: one of the files was altered: bring it back from a backup"
            )


def check_fingerprints(folder: pathlib.Path, built: System, fingerprints: Mapping[str, str], result: RunResult) -> None:
    """Raises UserError if frozen weights are not those that the run was trained with."""
    for part in built.pretrained:
        expected, found = (result.parts[part.role] or {}).get("sha256", ""), fingerprints[part.role]
        if found == expected:
            continue
        where = f"{folder} was trained with the {part.role} {expected[:12] or '(none)'}, not {found[:12]}"
        if part.about["source"] == RANDOM:
            made_on = result.versions
            raise UserError(
                f"{where}: random frozen weights can differ between devices and versions, and those of the run"
                f" were made on {made_on.get('device')} with jax {made_on.get('jax')}: predict there,"
                " or export the run there"
            )
        before = (result.parts[part.role] or {}).get("loaded_sha256")
        if before and before == part.about.get("loaded_sha256"):
            raise UserError(
                f"{where}: the block is the same, but its control was drawn otherwise: numpy's random numbers may"
                " differ between versions: predict where the run was made, or export the run there"
            )
        raise UserError(
            f"{where}: give the folder of the weights that it was trained with, with --set FIELD=DIR"
            " (in Python: moved=['FIELD=DIR'])"
        )
