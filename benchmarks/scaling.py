"""Times a training step of 1, 2 and 4 processes on this machine, side by side in one run.

    python -m benchmarks.scaling [--counts 1,2,4] [--model vit3d] [--batch 16] [--rounds 3] [--json FILE]

Each group of processes trains the same model on the same batch of `--batch` images, of which each process has a share.
Their losses over the first steps have to agree to 1e-5, relatively, before anything is timed. Then the groups take
turns, and medians over the turns are compared. On a CPU every process has one device, and all share the cores: the
ratio then says what the exchange between processes costs, not what more machines gain. The GPUs of a machine are
divided among the processes of a group.

`stop_us` is what a step pays to ask whether all processes should stop, in microseconds.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import socket
import statistics
import threading
import time
from typing import Any

from absl import flags

from benchmarks.contenders import CLASSES, MEAN, STD, Case
from benchmarks.figures import check_figures, write_figures
from benchmarks.process import Remote
from jaxboost.cli import app
from jaxboost.errors import UserError

WARM_STEPS = 3
TURN_SECONDS = 1.0  # a turn is as many steps as fill this
TOLERANCE = 1e-5
_POLLS = 100_000


class Process:
    """One process of a group."""

    def __init__(self, case: Case, count: int, index: int, port: int):
        from jaxboost.processes import joining, launch

        found = launch.Launch(
            count=count, index=index, host="127.0.0.1", ports=(port,), key="scaling", found_by="the benchmark"
        )
        self._index, self._stack = index, contextlib.ExitStack()
        start_jax = self._stack.enter_context(joining.joined(found, joining.Options(), app.in_words))
        start_jax()
        self._make(case)

    def _make(self, case: Case) -> None:
        import jax
        from flax import nnx

        from jaxboost.config import table
        from jaxboost.models.frozen import split
        from jaxboost.processes import arrays
        from jaxboost.training import program, step

        graphdef = split(nnx.eval_shape(lambda: case.build(nnx.Rngs(0))))[0]
        config = table.get_config()
        config.update_from_flattened_dict({"model.image_size": case.image_size, "train.batch_size": case.batch})
        objective = step.Objective(task="multi-class", classes=CLASSES, mean=MEAN, std=STD)
        made = program.make_program(config, graphdef, objective, steps_per_epoch=1)
        draw = jax.jit(lambda: split(case.build(nnx.Rngs(0)))[1:3], out_shardings=made.replicated)
        params, self._frozen = draw()
        self._state = made.init_state(params, {})
        batch = arrays.own({"image": case.images(), "label": case.labels()})
        self._batch = step.put(batch, made.by_batch)
        self._step, self._key = made.train_step, arrays.put(jax.random.key(0), made.replicated)

    def step(self) -> float:
        """Runs one step, waits for it, and returns its loss."""
        import jax

        self._state, metrics = self._step(self._state, self._frozen, self._batch, self._key)
        jax.block_until_ready(self._state)
        return float(metrics["loss"])

    def time_steps(self, count: int) -> float:
        """Mean seconds of a step over `count` steps."""
        start = time.perf_counter()
        for _ in range(count):
            self.step()
        return (time.perf_counter() - start) / count

    def time_polls(self) -> float:
        """Mean seconds of asking whether all should stop."""
        from jaxboost import stopping

        with stopping.deferred():
            start = time.perf_counter()
            for _ in range(_POLLS):
                stopping.received()
            return (time.perf_counter() - start) / _POLLS

    def devices(self) -> int:
        """Number of devices of all processes."""
        import jax

        return jax.device_count()

    def close(self) -> None:
        """Ends together with the others, a moment after this call has returned."""
        if self._index:
            # Process 0 waits for the others' end, and JAX's own end would wait for process 0.
            threading.Timer(0.5, os._exit, (0,)).start()
        self._stack.close()


class Group:
    """The processes of one contender, which do everything at the same time."""

    def __init__(self, case: Case, count: int, stack: contextlib.ExitStack):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self._remotes = [stack.enter_context(Remote(Process, case, count, index, port)) for index in range(count)]
        self._pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(count))

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """The results of all processes."""
        return list(self._pool.map(lambda remote: remote.call(method, *arguments), self._remotes))


def compare(case: Case, counts: list[int], rounds: int) -> dict[str, Any]:
    """Runs the comparison and returns what --json writes."""
    if unfit := [count for count in counts if case.batch % count]:
        raise UserError(f"--batch {case.batch} is no multiple of {unfit[0]} processes")
    with contextlib.ExitStack() as stack:
        groups = {count: Group(case, count, stack) for count in counts}
        losses = {count: [group.call("step")[0] for _ in range(WARM_STEPS)] for count, group in groups.items()}
        _check_losses(losses)
        seconds: dict[int, list[float]] = {count: [] for count in counts}
        turn = dict.fromkeys(counts, 1)
        for number in range(rounds + 1):
            for count, group in groups.items():
                elapsed = max(group.call("time_steps", turn[count]))
                if number:
                    seconds[count].append(elapsed)
                else:  # how many steps make a turn
                    turn[count] = max(1, math.ceil(TURN_SECONDS / elapsed))
        results = {
            str(count): {
                "devices": group.call("devices")[0],
                "step_s": statistics.median(seconds[count]),
                "step_s_all": seconds[count],
                "images_per_second": case.batch / statistics.median(seconds[count]),
                "stop_us": 1e6 * max(group.call("time_polls")),
                "losses": losses[count],
            }
            for count, group in groups.items()
        }
        for group in groups.values():
            group.call("close")
    first = results[str(counts[0])]["step_s"]
    for result in results.values():
        result["ratio"] = first / result["step_s"]
    return dataclasses.asdict(case) | {"processes": results}


def _check_losses(losses: dict[int, list[float]]) -> None:
    first, reference = next(iter(losses.items()))
    for count, values in losses.items():
        if not all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(values, reference, strict=True)):
            raise AssertionError(f"losses differ: {first} processes {reference}, {count} processes {values}")


def as_text(summary: dict[str, Any]) -> str:
    """A table of the groups."""
    lines = [
        f"{summary['model']}, boost {summary['boost']} ({summary['family']}), batch {summary['batch']}",
        f"{'processes':>9} {'devices':>8} {'step s':>8} {'images/s':>9} {'ratio':>6} {'stop us':>8}",
    ]
    for count, result in summary["processes"].items():
        lines.append(
            f"{count:>9} {result['devices']:8} {result['step_s']:8.4f} {result['images_per_second']:9.1f}"
            f" {result['ratio']:6.2f} {result['stop_us']:8.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    counts = flags.DEFINE_list("counts", ["1", "2", "4"], "numbers of processes; the first is compared with")
    model = flags.DEFINE_string("model", "vit3d", "backbone")
    boost = flags.DEFINE_string("boost", "rllm", "kind of booster, or none")
    family = flags.DEFINE_string("family", "llama-tiny", "shapes of the LLaMA layer")
    batch = flags.DEFINE_integer("batch", 16, "images in a step of all processes together", lower_bound=1)
    rounds = flags.DEFINE_integer("rounds", 3, "turns of each", lower_bound=1)
    json_file = flags.DEFINE_string("json", "", "file for the figures")

    def main() -> None:
        check_figures(json_file.value, "--json")
        numbers = [int(each) for each in counts.value if each.isdecimal() and int(each)]
        if len(numbers) != len(counts.value) or not numbers:
            raise UserError(f"--counts={','.join(counts.value)}: give numbers such as 1,2,4")
        case = Case(model=model.value, boost=boost.value, family=family.value, batch=batch.value)
        summary = compare(case, numbers, rounds.value)
        print(as_text(summary))
        if json_file.value:
            write_figures(json_file.value, summary)

    app.run(main)
