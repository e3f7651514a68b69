"""Messages between processes: JSON objects over TCP, each after its length."""

import json
import socket
import struct
from typing import Any

# No message is near this; a stranger's bytes are refused by it.
MAX_BYTES = 64 << 20
_LENGTH = struct.Struct("!I")


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends one message. Raises OSError if the other side is gone."""
    body = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(body)) + body)


class Reader:
    """Takes messages out of the bytes that arrive at a connection."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are whole by now.

        Raises:
          ValueError: these are not the bytes of another process of ours.
        """
        self._bytes += data
        messages = []
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            if length > MAX_BYTES:
                raise ValueError("these are no messages of jaxboost")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                break
            message = json.loads(bytes(self._bytes[_LENGTH.size : end]))
            if not isinstance(message, dict):
                raise ValueError("these are no messages of jaxboost")
            messages.append(message)
            del self._bytes[:end]
        return messages
