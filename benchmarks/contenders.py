"""One training step in jaxboost and in PyTorch, from the same weights, on the same batch.

Every class here is made in a separate process (`benchmarks.process`) and imports its framework there.
"""

import dataclasses
import pathlib
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import restated

LEARNING_RATE, WEIGHT_DECAY, BETAS, EPS = 1e-4, 0.05, (0.9, 0.999), 1e-8
CLASSES = 5
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained: backbone, kind of booster, the LLaMA family that gives the shapes, and batch size."""

    model: str
    boost: str
    family: str
    batch: int
    path: str = "auto"
    dtype: str = "float32"
    tf32: bool = False  # on a GPU: matrix products of float32 may round their operands to 10 bits
    sdpa: bool = False  # PyTorch's encoder computes attention by its fused function
    channels_last: bool = False  # PyTorch's images and 2D kernels lie in memory with the channels last

    @property
    def image_size(self) -> int:
        from jaxboost.models.backbones import BACKBONES

        backbone = BACKBONES[self.model]
        return 224 if backbone.arguments.get("patch") in (16, 32) or self.model in restated.timm_names() else 28

    @property
    def classes(self) -> int:
        """The number of classes."""
        return CLASSES

    def images(self) -> np.ndarray:
        """Random uint8 images or volumes with one channel."""
        from jaxboost.models.backbones import BACKBONES

        shape = (self.batch, *[self.image_size] * BACKBONES[self.model].ndim, 1)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def labels(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, CLASSES, (self.batch, 1), np.int32)

    def build(self, rngs: Any) -> Any:
        """Our classifier with random weights."""
        import jax.numpy as jnp

        from jaxboost.models.classifier import BoostSpec, build
        from jaxboost.models.llama import FAMILIES

        return build(
            self.model,
            boost=BoostSpec(kind=self.boost, config=FAMILIES[self.family], path=self.path),
            classes=CLASSES,
            image_size=self.image_size,
            mean=MEAN,
            std=STD,
            dtype=jnp.dtype(self.dtype),
            rngs=rngs,
        )


class Weights:
    """Draws a model's initial weights once and writes them for both frameworks."""

    def write(self, case: Case, folder: str) -> None:
        import jax
        import torch
        from flax import nnx

        from jaxboost.models.frozen import split

        states = jax.device_get(jax.jit(lambda: split(case.build(nnx.Rngs(0)))[1:])())
        (pathlib.Path(folder) / "weights.pickle").write_bytes(pickle.dumps(states, protocol=5))
        torch.save(restated.state(case, *states), pathlib.Path(folder) / "weights.pt")

    def gradient_norms(self, case: Case, folder: str) -> dict[str, float]:
        """The norms of what `Jaxboost.write_gradients` wrote, by PyTorch's names."""
        gradients = pickle.loads((pathlib.Path(folder) / "gradients.pickle").read_bytes())
        return {name: tensor.norm().item() for name, tensor in restated.state(case, gradients, {}, {}).items()}


class Jaxboost:
    """The package's own training step."""

    def __init__(self, case: Case, folder: str):
        import jax
        from flax import nnx

        from jaxboost.config import table
        from jaxboost.models.frozen import split
        from jaxboost.training import program, step

        jax.config.update("jax_enable_compilation_cache", False)
        # Said to both frameworks, because their defaults differ on a GPU.
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if case.tf32 else "highest")
        self._batch_size, self._dtype, self._folder = case.batch, case.dtype, folder
        graphdef = split(nnx.eval_shape(lambda: case.build(nnx.Rngs(0))))[0]
        params, frozen, stats = pickle.loads((pathlib.Path(folder) / "weights.pickle").read_bytes())
        config = table.get_config()
        config.update_from_flattened_dict(
            {
                "model.image_size": case.image_size,
                "model.mean": MEAN,
                "model.std": STD,
                "optim.lr": LEARNING_RATE,
                "optim.schedule": "constant",
                "optim.weight_decay": WEIGHT_DECAY,
                "optim.b1": BETAS[0],
                "optim.b2": BETAS[1],
                "optim.eps": EPS,
                "train.epochs": 1000,
                "train.batch_size": case.batch,
            }
        )
        objective = step.Objective(task="multi-class", classes=CLASSES, mean=MEAN, std=STD)
        made = program.make_program(config, graphdef, objective, steps_per_epoch=1)
        self._frozen = jax.device_put(frozen, made.replicated)
        self._state = made.init_state(jax.device_put(params, made.replicated), jax.device_put(stats, made.replicated))
        self._batch = step.put({"image": case.images(), "label": case.labels()}, made.by_batch)
        self._step, self._key = made.train_step, jax.random.key(0)

    def compile(self) -> dict[str, float]:
        """Traces and compiles the step."""
        from jaxboost.training.flops import count_flops

        arguments = (self._state, self._frozen, self._batch, self._key)
        start = time.perf_counter()
        compiled = self._step.lower(*arguments).compile()
        seconds = time.perf_counter() - start
        flops = count_flops(self._step, *arguments)
        self._step = compiled
        return {"compile_s": seconds, "flops_per_image": flops / self._batch_size}

    def step(self) -> float:
        """Runs one step, waits for it, and returns its loss."""
        import jax

        self._state, metrics = self._step(self._state, self._frozen, self._batch, self._key)
        jax.block_until_ready(self._state)
        return float(metrics["loss"])

    def write_gradients(self) -> None:
        """Writes the gradients of the first step. After it, AdamW's first moment is 1 - b1 times these."""
        import jax
        import optax

        moment = jax.device_get(optax.tree_utils.tree_get(self._state.opt_state, "mu"))
        gradients = jax.tree.map(lambda leaf: leaf / (1 - BETAS[0]), moment)
        (pathlib.Path(self._folder) / "gradients.pickle").write_bytes(pickle.dumps(gradients, protocol=5))

    def time_steps(self, count: int) -> float:
        """Mean seconds of a step over `count` steps."""
        return _time(self.step, count)

    def device_peak_mb(self) -> float:
        """Largest memory on the device, in MB; 0 on a CPU, which has no count of its own."""
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e6

    def product(self) -> float:
        """FLOP/s of one matrix product in the dtype of the case."""
        import jax
        import jax.numpy as jnp

        size = _product_size(jax.default_backend() == "cpu")
        a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(self._dtype))
        multiply = jax.jit(lambda a: a @ a)
        multiply(a).block_until_ready()
        start = time.perf_counter()
        multiply(a).block_until_ready()
        return 2 * size**3 / (time.perf_counter() - start)


class TorchEager:
    """Our PyTorch restatement of the reference, or timm's model, every operation separate, as its authors run it.

    With `Case.dtype` bfloat16 under autocast: weights, optimiser and loss stay float32, as in jaxboost.
    """

    def __init__(self, case: Case, folder: str):
        import torch

        from tests.reference import rllm

        self._batch_size, self._dtype = case.batch, case.dtype
        if case.sdpa:
            rllm.Attention.forward = _fused_attention
        state = torch.load(pathlib.Path(folder) / "weights.pt", weights_only=True)
        self._module = restated.module(case, state)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._module.to(self._device)
        torch.set_float32_matmul_precision("high" if case.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = case.tf32
        # Loaded tensors need no gradient of their own.
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(not name.startswith("boost.block."))
        trained = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        still = [p for name, p in trained.items() if not restated.decays(name, p.ndim)]
        decaying = [p for name, p in trained.items() if restated.decays(name, p.ndim)]
        self._optimizer = torch.optim.AdamW(
            [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": still, "weight_decay": 0.0}],
            lr=LEARNING_RATE,
            betas=BETAS,
            eps=EPS,
            fused=self._device == "cuda",  # one kernel for all parameters
        )
        self._images = torch.from_numpy(case.images()).to(self._device)
        self._format = torch.contiguous_format
        if case.channels_last:
            self._format = torch.channels_last
            self._module.to(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(case.labels()[:, 0]).long().to(self._device)
        self._pixels = rllm.pixels
        self._call = self._module

    def compile(self) -> dict[str, float]:
        """Counts the step's operations by running its forward and backward pass once, without an update."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self._loss().backward()
        self._optimizer.zero_grad()
        return {"compile_s": 0.0, "flops_per_image": counter.get_total_flops() / self._batch_size}

    def step(self) -> float:
        self._optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def gradient_norms(self) -> dict[str, float]:
        """The norms of the last step's gradients, by name."""
        parameters = self._module.named_parameters()
        return {name: weight.grad.norm().item() for name, weight in parameters if weight.grad is not None}

    def time_steps(self, count: int) -> float:
        return _time(self.step, count)

    def device_peak_mb(self) -> float:
        """As `Jaxboost.device_peak_mb`."""
        import torch

        return torch.cuda.max_memory_allocated() / 1e6 if self._device == "cuda" else 0.0

    def _loss(self) -> Any:
        import torch
        from torch.nn import functional

        images = self._pixels(self._images, MEAN, STD).contiguous(memory_format=self._format)
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._dtype == "bfloat16"):
            logits = self._call(images)
        return functional.cross_entropy(logits.float(), self._labels)

    def product(self) -> float:
        """As `Jaxboost.product`."""
        import torch

        size = _product_size(self._device == "cpu")
        a = torch.randn((size, size), device=self._device).to(getattr(torch, self._dtype))
        # An entry is read to wait for the product, which takes no time beside it.
        torch.matmul(a, a)[0, 0].item()
        start = time.perf_counter()
        torch.matmul(a, a)[0, 0].item()
        return 2 * size**3 / (time.perf_counter() - start)


class TorchCompile(TorchEager):
    """The same module under `torch.compile`."""

    mode = "default"

    def compile(self) -> dict[str, float]:
        """Compiles by a forward and backward pass; the time of a second pass is subtracted."""
        import torch

        counted = super().compile()
        self._call = torch.compile(self._module, mode=self.mode)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            self._loss().backward()
            times.append(time.perf_counter() - start)
            self._optimizer.zero_grad()
        return counted | {"compile_s": times[0] - times[1]}


class TorchAutotune(TorchCompile):
    """The same module under `torch.compile` with the kernels that it finds fastest; compiling takes minutes."""

    mode = "max-autotune"


def _fused_attention(module: Any, x: Any) -> Any:
    """The forward pass of `rllm.Attention` by PyTorch's fused function."""
    from torch.nn import functional

    from tests.reference import rllm

    q, k, v = (rllm.split_heads(part, module.heads) for part in module.qkv(x).chunk(3, dim=-1))
    return module.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _product_size(on_cpu: bool) -> int:
    """Side of the matrices of `product`: so large that an accelerator's launch takes no part of the time."""
    return 2048 if on_cpu else 8192


def _time(function: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count
