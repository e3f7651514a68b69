"""Data files for the tests: the official ones where available, small ones in the same formats, and a local server."""

import contextlib
import copy
import hashlib
import http.server
import os
import pathlib
import threading
import types

import numpy as np
import pytest

from jaxboost.data.sources import medmnist


@pytest.fixture
def official_root():
    """The folder of the official files; tests never write there."""
    root = os.environ.get("MEDMNIST_ROOT", "")
    files = ("vesselmnist3d.npz", "breastmnist.npz")
    if not root or not all((pathlib.Path(root) / name).is_file() for name in files):
        pytest.skip("official MedMNIST files not found: set MEDMNIST_ROOT")
    return root


@pytest.fixture
def info(monkeypatch):
    """A copy of medmnist's table that tests can change."""
    table = copy.deepcopy(dict(medmnist.medmnist_info()))
    monkeypatch.setattr(medmnist, "medmnist_info", lambda: table)
    return table


@pytest.fixture
def write_official(info, tmp_path):
    """write_official(flag, size, **arrays) writes a small file, whose MD5 sum becomes the official one."""

    def write(flag, size, *, folder=tmp_path, **replaced):
        arrays = small_arrays(flag, size, info[flag]) | replaced
        suffix = "" if size == 28 else f"_{size}"
        path = folder / f"{flag}{suffix}.npz"
        np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
        info[flag][f"MD5{suffix}"] = hashlib.md5(path.read_bytes()).hexdigest()
        return path

    return write


def small_arrays(flag, size, entry):
    """A few samples with every class in the official layout."""
    rng = np.random.default_rng(0)
    shape = (size,) * (3 if flag.endswith("3d") else 2) + ((3,) if entry["n_channels"] == 3 else ())
    classes = len(entry["label"])
    arrays = {}
    for split, n in {"train": 3, "val": 1, "test": 2}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        if entry["task"] == "multi-label, binary-class":
            arrays[f"{split}_labels"] = rng.integers(0, 2, (n, classes), dtype=np.int64)
        else:
            arrays[f"{split}_labels"] = ((classes - 1 - np.arange(n)) % classes).astype(np.uint8)[:, None]
    return arrays


@pytest.fixture
def server(monkeypatch):
    """An HTTP server on this host: put bytes into `server.files[path]`; `server.url` is its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files, cut = {}, set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[path])))
            self.end_headers()
            self.wfile.write(files[path][: len(files[path]) // 2] if path in cut else files[path])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{httpd.server_address[1]}"
        with contextlib.ExitStack() as stack:
            stack.callback(thread.join)
            stack.callback(httpd.shutdown)
            yield types.SimpleNamespace(url=url, files=files, cut=cut)
