"""A repository on the Hugging Face hub; only the needed bytes are fetched."""

import contextlib
from collections.abc import Iterator

import numpy as np
from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jaxboost.convert.formats.huggingface import Folder
from jaxboost.convert.formats.places import REPOSITORY_ID
from jaxboost.errors import UserError

# Large tensors come in pieces, so that a retry repeats little.
_PIECE_BYTES = 32 * 2**20
_TIMEOUT_SECONDS = 30
# huggingface_hub has changed its HTTP client between releases; its HTTP error derives from the client's base error,
# which failed connections share.
_HTTP_ERRORS = tuple(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


class HubFolder(Folder):
    """The files of one commit; the counterpart of `huggingface.LocalFolder`."""

    source_format = "hub"
    local_path = None

    def __init__(self, source: str):
        """Looks up the commit and its files.

        Args:
          source: "owner/name" or "owner/name@revision".

        Raises:
          UserError: the repository is unknown, gated or out of reach; and later, if a file cannot be read.
        """
        match = REPOSITORY_ID.fullmatch(source)
        self._repository, revision = match["repository"], match["revision"]
        with self._explained():
            info = HfApi().model_info(self._repository, revision=revision, timeout=_TIMEOUT_SECONDS)
        self._commit = info.sha
        self.files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        self.source = f"{self._repository}@{self._commit}"
        self._file_system = HfFileSystem()
        self._opened = {}

    def where(self, name: str) -> str:
        """The file's name in messages."""
        return f"{self._repository}/{name}"

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return self._open(name).size

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes [start, stop) of a file as a uint8 array."""
        file, out = self._open(name), np.empty(stop - start, np.uint8)
        for offset in range(0, out.size, _PIECE_BYTES):
            length = min(_PIECE_BYTES, out.size - offset)
            with self._explained():
                file.seek(start + offset)
                piece = file.read(length)
            if len(piece) != length:
                raise UserError(f"{self.where(name)}: the hub sent {len(piece)} bytes instead of {length}: try again")
            out[offset : offset + length] = np.frombuffer(piece, np.uint8)
        return out

    def _open(self, name: str):
        if name not in self._opened:
            with self._explained():
                # Without a cache each read is one request for exactly its bytes; the default reads 5 MB ahead.
                self._opened[name] = self._file_system.open(
                    f"{self._repository}@{self._commit}/{name}", "rb", block_size=_PIECE_BYTES, cache_type="none"
                )
        return self._opened[name]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        page = f"{constants.ENDPOINT}/{self._repository}"
        elsewhere = "or download the repository elsewhere and pass its folder"
        try:
            yield
        except GatedRepoError as error:
            raise UserError(
                f"{self._repository} is gated: accept its licence at {page}, then log in with `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise UserError(f"{self._repository} has no such revision: see {page}/tree/main") from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"there is no repository {self._repository} at {constants.ENDPOINT}: check the id; "
                "if it is private, log in with `hf auth login`"
            ) from error
        except OfflineModeIsEnabled as error:
            raise UserError(
                f"{self._repository} cannot be fetched in offline mode: unset HF_HUB_OFFLINE, {elsewhere}"
            ) from error
        except HFValidationError as error:
            raise UserError(f"{self._repository!r} cannot be the id of a repository: check the id") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            fix = "log in again with `hf auth login`" if status in (401, 403) else f"try again later, {elsewhere}"
            raise UserError(f"{page} answered with status {status}: {fix}") from error
        except (*_HTTP_ERRORS, FileNotFoundError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{page} is out of reach ({reason}): check the network, {elsewhere}") from error
