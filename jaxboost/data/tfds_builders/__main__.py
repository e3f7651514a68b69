"""The command that prepares a data set; see the package's docstring."""

import argparse
import os
import sys
from collections.abc import Sequence

from jaxboost import io
from jaxboost.data.sources.tfds_source import import_tfds
from jaxboost.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the data set that the arguments name.

    A user's mistake, or a full or read-only disk, ends the process with one line and exit code 2; Ctrl-C with 130.
    """
    parser = argparse.ArgumentParser(prog="python -m jaxboost.data.tfds_builders", description="Prepares a TFDS set.")
    parser.add_argument("--name", required=True, help="lidc_shapes, medmnist/FLAG (28 pixels) or medmnist/FLAG_SIZE")
    parser.add_argument("--data_dir", required=True, help="folder of the result, TFDS's data_dir")
    parser.add_argument(
        "--root", default="", help="folder of the MedMNIST files or the LIDC shapes; else MEDMNIST_ROOT, or ~/.medmnist"
    )
    options = parser.parse_args(arguments)
    folder = io.user_path(options.data_dir)
    try:
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f"--data_dir {folder} is a file: give a folder")
        tfds = import_tfds()
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        # Imported here, because the import fails if the package is missing.
        from jaxboost.data.tfds_builders.builders import build

        print(build(options.name, data_dir=options.data_dir, root=options.root))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not io.is_of_disk(error):
            raise
        print(f"error: {io.refused(folder, error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C: run the same command again", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
