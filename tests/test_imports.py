"""Imports go one way: models, data <- convert <- training <- analysis, and heavy packages stay where they belong."""

import ast
import dataclasses
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
STANDARD = frozenset(sys.stdlib_module_names)

# For each part of the package, what of the package it may import. `cli` is for what a user can start.
ALLOWED = {
    "models": {"models"},
    "data": {"data", "errors", "io"},
    "convert": {"convert", "models", "data", "errors", "io", "outputs", "schema"},
    "training": {
        *("training", "exported", "predictions", "convert", "models", "data", "errors", "io", "schema"),
        *("outputs", "stopping"),
    },
    "analysis": {"analysis", "training", "convert", "models", "data", "errors", "cli", "io", "schema"},
    "predictions": {"data", "io"},
    # Without the models and the training: an export is used where they are not wanted.
    "exported": {"predictions", "data", "errors", "io", "schema"},
    "predict": {"exported", "predictions", "training", "data", "errors", "io", "outputs", "cli"},
    "errors": set(),
    "io": {"errors"},
    "schema": {"errors"},
    "stopping": set(),
    "outputs": {"errors", "io"},
    "cli": {"errors", "io", "stopping"},
    "": set(),
}
EXPORTED_MAY_USE = STANDARD | {"jax", "numpy", "pydantic", "safetensors", "tqdm"}
MODELS_MAY_USE = STANDARD | {"jax", "flax", "numpy"}
DATA_MAY_NOT_USE = {"jax", "jaxlib", "flax", "optax", "orbax", "torch"}
ORBAX_ONLY_IN = {
    "jaxboost/convert/store.py",
    "jaxboost/training/checkpoints/checkpointer.py",
    "jaxboost/training/checkpoints/stored.py",
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, by its absolute dotted name; `lazy`: in a function, or for type checkers alone."""

    module: str
    line: int
    lazy: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports(source: str) -> Iterator[Import]:
    """Every import of a module's source. Of `from a import b` both a and a.b, for b may be a module.

    Raises ValueError for a relative import, which the style forbids.
    """

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"relative import in line {node.lineno}")
            yield Import(node.module, node.lineno, lazy)
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, lazy)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy or is_type_checking_only(node, child))

    yield from visit(ast.parse(source), False)


def is_type_checking_only(node: ast.AST, child: ast.AST) -> bool:
    """Whether child is in the body (not the else) of `if TYPE_CHECKING:`."""
    return (
        isinstance(node, ast.If)
        and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        and child in node.body
    )


def violations(path: str, source: str) -> list[str]:
    """Broken rules of one module; `path` is relative to the repository, with slashes."""
    parts = path.removeprefix("jaxboost/").removesuffix(".py").split("/")
    part = "" if parts == ["__init__"] else parts[0]
    found = []
    for imported in imports(source):
        where = f"{path}:{imported.line}: "
        package = imported.package
        if package == "jaxboost":
            target = imported.module.split(".")[1:2]
            if target and (ROOT / "jaxboost" / target[0]).exists() | (ROOT / f"jaxboost/{target[0]}.py").exists():
                if target[0] not in ALLOWED[part]:
                    found.append(f"{where}{part or 'jaxboost'} may not import {imported.module}")
            elif target:
                found.append(f"{where}{imported.module} does not exist")
        elif part == "models" and package not in MODELS_MAY_USE:
            found.append(f"{where}models may not import {package}")
        elif part in ("exported", "predictions") and package not in EXPORTED_MAY_USE:
            found.append(f"{where}{part} may not import {package}")
        elif part == "data" and package in DATA_MAY_NOT_USE:
            found.append(f"{where}data may not import {package}")
        elif package in ("tests", "benchmarks"):
            found.append(f"{where}nothing may import {package}")
        elif package == "torch" and (part != "convert" or not imported.lazy):
            found.append(f"{where}torch may be imported only inside functions of convert")
        elif package == "orbax" and path not in ORBAX_ONLY_IN:
            found.append(f"{where}orbax may be imported only in {' and '.join(sorted(ORBAX_ONLY_IN))}")
    return found


MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxboost").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_module_keeps_the_rules(path: str) -> None:
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_every_part_has_a_rule() -> None:
    parts = {path.split("/")[1].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert parts <= set(ALLOWED)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("jaxboost/models/vit.py", "import ml_collections", "models may not import ml_collections"),
        ("jaxboost/models/vit.py", "from jaxboost.data import source", "models may not import jaxboost.data"),
        ("jaxboost/models/vit.py", "from jaxboost import errors", "models may not import jaxboost.errors"),
        ("jaxboost/models/vit.py", "def f():\n    import torch", "models may not import torch"),
        (
            "jaxboost/inference/exported.py",
            "from jaxboost.models import vit",
            "exported may not import jaxboost.models",
        ),
        ("jaxboost/inference/exported.py", "def f():\n    from flax import nnx", "exported may not import flax"),
        (
            "jaxboost/evaluation/prediction_table.py",
            "from jaxboost.training import step",
            "predictions may not import jaxboost.training",
        ),
        ("jaxboost/data/readers/npz.py", "import jax.numpy as jnp", "data may not import jax"),
        ("jaxboost/data/readers/npz.py", "def f():\n    import torch", "data may not import torch"),
        ("jaxboost/data/readers/npz.py", "from jaxboost.models import vit", "data may not import jaxboost.models"),
        ("jaxboost/convert/store.py", "import torch", "torch may be imported only inside functions of convert"),
        ("jaxboost/convert/store.py", "if True:\n    import torch", "torch may be imported only inside"),
        (
            "jaxboost/convert/store.py",
            "if TYPE_CHECKING:\n    pass\nelse:\n    import torch",
            "torch may be imported only",
        ),
        ("jaxboost/convert/store.py", "import jaxboost.training", "convert may not import jaxboost.training"),
        ("jaxboost/convert/gguf.py", "from orbax import checkpoint", "orbax may be imported only in"),
        ("jaxboost/training/loop.py", "import orbax.checkpoint as ocp", "orbax may be imported only in"),
        ("jaxboost/training/loop.py", "import jaxboost.analysis", "training may not import jaxboost.analysis"),
        ("jaxboost/training/loop.py", "def f():\n    import torch", "torch may be imported only inside functions of"),
        ("jaxboost/analysis/tables.py", "from benchmarks import x", "nothing may import benchmarks"),
        ("jaxboost/analysis/tables.py", "import tests.reference", "nothing may import tests"),
        ("jaxboost/errors.py", "import jaxboost.cli.app", "errors may not import jaxboost.cli.app"),
        ("jaxboost/__init__.py", "from jaxboost import models", "jaxboost may not import jaxboost.models"),
        ("jaxboost/training/loop.py", "import jaxboost.elsewhere", "jaxboost.elsewhere does not exist"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, message: str) -> None:
    assert message in "\n".join(violations(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jaxboost/models/vit.py", "import math\nimport jax\nfrom flax import nnx\nfrom jaxboost.models import layers"),
        ("jaxboost/data/readers/npz.py", "import numpy\nfrom jaxboost.errors import UserError\nimport grain"),
        ("jaxboost/convert/store.py", "import orbax.checkpoint as ocp\ndef f():\n    import torch"),
        ("jaxboost/convert/store.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        (
            "jaxboost/training/checkpoints/checkpointer.py",
            "import orbax.checkpoint as ocp\nfrom jaxboost.convert import store",
        ),
        ("jaxboost/analysis/tables.py", "import jaxboost.training\nfrom jaxboost import cli"),
    ],
)
def test_what_the_rules_allow_passes(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_relative_imports_are_refused() -> None:
    with pytest.raises(ValueError, match="relative import in line 1"):
        violations("jaxboost/models/vit.py", "from . import layers")
