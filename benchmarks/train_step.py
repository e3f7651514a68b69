"""Times a training step against PyTorch, side by side in one run.

    python -m benchmarks.train_step [--model vit3d] [--boost rllm] [--batch 8] [--rounds 3] [--json FILE]

jaxboost, the same model without booster, our PyTorch restatement of the reference as it is and under `torch.compile`
start from the same weights and train on the same batch with the same optimiser. Their losses have to agree before
anything is timed. Then they take turns, and medians over the turns are compared.
"""

import contextlib
import dataclasses
import math
import pathlib
import statistics
import tempfile
from typing import Any

from absl import flags

from benchmarks.contenders import Case, Jaxboost, TorchCompile, TorchEager, Weights
from benchmarks.figures import check_figures, write_figures
from benchmarks.process import Remote
from jaxboost.cli import app
from jaxboost.errors import UserError, check_choice

CONTENDERS = {"jaxboost": Jaxboost, "torch_eager": TorchEager, "torch_compile": TorchCompile}
PLAIN = "jaxboost_plain"  # the same backbone without the booster
WARM_STEPS = 3
TURN_SECONDS = 1.0  # a turn is as many steps as fill this
PRODUCT_SIZE = 2048


def check(case: Case, contenders: list[str]) -> None:
    """Raises UserError if PyTorch's side does not restate this model, or another value cannot be benchmarked."""
    from jaxboost.models.backbones import BACKBONES
    from jaxboost.models.boost import KINDS, PATHS, check_path
    from jaxboost.models.llama import FAMILIES

    # PyTorch's side has the encoders that give tokens, without the options of CLIP and DINOv2.
    restated = [
        name
        for name, backbone in BACKBONES.items()
        if backbone.traits.gives_tokens and backbone.traits.defaults.keys().isdisjoint(backbone.arguments)
    ]
    check_choice(case.model, restated, "--model")
    check_choice(case.boost, KINDS, "--boost")
    check_choice(case.family, FAMILIES, "--family")
    check_choice(case.path, PATHS, "--path")
    check_choice(case.dtype, ("float32", "bfloat16"), "--dtype")
    if case.boost != "none":
        try:
            check_path(case.path, case.boost, rope=False)
        except UserError as error:
            raise UserError(f"--path {case.path}: {error}: leave it out") from error
    for name in contenders:
        check_choice(name, CONTENDERS, "--contenders")
    if not contenders:
        raise UserError(f"--contenders is empty: give some of {', '.join(CONTENDERS)}")


def compare(case: Case, contenders: list[str], rounds: int) -> dict[str, Any]:
    """Runs the comparison and returns what --json writes."""
    cases = {name: case for name in contenders}
    if case.boost != "none" and "jaxboost" in contenders:
        cases[PLAIN] = dataclasses.replace(case, boost="none")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        remotes = {}
        for name, its_case in cases.items():
            folder = pathlib.Path(temporary) / its_case.boost
            if not folder.exists():
                folder.mkdir()
                with Remote(Weights) as writer:
                    writer.call("write", its_case, str(folder))
            remotes[name] = stack.enter_context(Remote(CONTENDERS.get(name, Jaxboost), its_case, str(folder)))
        return _compare(case, remotes, rounds)


def _compare(case: Case, remotes: dict[str, Remote], rounds: int) -> dict[str, Any]:
    results = {}
    for name, remote in remotes.items():
        results[name] = remote.call("compile")
        print(f"{name} is compiled, in {results[name]['compile_s']:.1f} s", flush=True)
    losses = {name: [remote.call("step") for _ in range(WARM_STEPS)] for name, remote in remotes.items()}
    tolerance = 1e-4 if case.dtype == "float32" and not case.tf32 else 3e-2
    _check_losses({name: values for name, values in losses.items() if name != PLAIN}, tolerance)
    seconds = {name: [] for name in remotes}
    turn = {name: 1 for name in remotes}
    for remote in remotes.values():
        remote.reset_peak()
    for number in range(rounds + 1):
        for name, remote in remotes.items():
            elapsed = remote.call("time_steps", turn[name])
            if number == 0:  # how many steps make a turn
                turn[name] = max(1, math.ceil(TURN_SECONDS / elapsed))
            else:
                seconds[name].append(elapsed)
    for name, remote in remotes.items():
        results[name]["peak_mb"] = remote.peak_mb()
        results[name]["device_peak_mb"] = remote.call("device_peak_mb")
    products = [remote.call("product", PRODUCT_SIZE) for _ in range(rounds) for remote in remotes.values()]
    peak_flops = 2 * PRODUCT_SIZE**3 / min(products)
    for name, result in results.items():
        step_s = statistics.median(seconds[name])
        result |= {
            "step_s": step_s,
            "step_s_all": seconds[name],
            "images_per_second": case.batch / step_s,
            "share_of_peak": result["flops_per_image"] * case.batch / step_s / peak_flops,
            "losses": losses[name],
        }
    summary = dataclasses.asdict(case) | {"peak_gflops": peak_flops / 1e9, **results}
    ours = results.get("jaxboost")
    if ours and "torch_eager" in results:
        summary["ratio"] = results["torch_eager"]["step_s"] / ours["step_s"]
    if ours and "torch_compile" in results:
        summary["ratio_torch_compile"] = results["torch_compile"]["step_s"] / ours["step_s"]
    if PLAIN in results:
        summary["boost_over_plain"] = ours["step_s"] / results[PLAIN]["step_s"]
    return summary


def _check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """The first loss shows the same function, those after updates the same gradients and the same optimiser."""
    reference_name, reference = next(iter(losses.items()))
    for name, values in losses.items():
        if not all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(values, reference, strict=True)):
            raise AssertionError(f"losses differ: {reference_name} {reference}, {name} {values}")


def as_text(summary: dict[str, Any]) -> str:
    """A table of the contenders, and the ratios."""
    lines = [
        f"{summary['model']}, boost {summary['boost']}, batch {summary['batch']}, {summary['dtype']};"
        f" matrix products reach {summary['peak_gflops']:.0f} GFLOP/s",
        f"{'':15} {'compile s':>9} {'step s':>8} {'images/s':>9} {'peak MB':>8} {'GFLOP/image':>12} {'of peak':>8}",
    ]
    for name in (*CONTENDERS, PLAIN):
        if result := summary.get(name):
            lines.append(
                f"{name:15} {result['compile_s']:9.1f} {result['step_s']:8.3f} {result['images_per_second']:9.2f}"
                f" {result['peak_mb']:8.0f} {result['flops_per_image'] / 1e9:12.2f} {result['share_of_peak']:8.0%}"
            )
    devices = {name: summary[name]["device_peak_mb"] for name in (*CONTENDERS, PLAIN) if name in summary}
    if any(devices.values()):
        lines.append("peak memory of the device, MB: " + ", ".join(f"{name} {mb:.0f}" for name, mb in devices.items()))
    if "ratio" in summary:
        lines.append(f"jaxboost is {summary['ratio']:.2f} times as fast as torch_eager")
    if "ratio_torch_compile" in summary:
        lines.append(f"jaxboost is {summary['ratio_torch_compile']:.2f} times as fast as torch_compile")
    if "boost_over_plain" in summary:
        lines.append(f"a step takes {summary['boost_over_plain']:.2f} times as long as without the booster")
    return "\n".join(lines)


if __name__ == "__main__":
    model = flags.DEFINE_string("model", "vit3d", "backbone")
    boost = flags.DEFINE_string("boost", "rllm", "kind of booster, or none")
    family = flags.DEFINE_string("family", "llama-7b", "shapes of the LLaMA layer")
    path = flags.DEFINE_string("path", "auto", "boost.path")
    dtype = flags.DEFINE_string("dtype", "float32", "of jaxboost's computation")
    tf32 = flags.DEFINE_bool("tf32", False, "on a GPU: tensor cores for float32, in both frameworks")
    batch = flags.DEFINE_integer("batch", 8, "images in a step", lower_bound=1)
    rounds = flags.DEFINE_integer("rounds", 3, "turns of each contender", lower_bound=1)
    contenders = flags.DEFINE_list("contenders", list(CONTENDERS), "which to run")
    json_file = flags.DEFINE_string("json", "", "file for the figures")

    def main() -> None:
        check_figures(json_file.value, "--json")
        case = Case(
            model=model.value,
            boost=boost.value,
            family=family.value,
            batch=batch.value,
            path=path.value,
            dtype=dtype.value,
            tf32=tf32.value,
        )
        check(case, contenders.value)
        summary = compare(case, contenders.value, rounds.value)
        print(as_text(summary))
        if json_file.value:
            write_figures(json_file.value, summary)

    app.run(main)
