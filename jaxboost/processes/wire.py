"""Messages between processes: JSON objects over TCP, each after its length."""

import json
import socket
import struct
from typing import Any

# No message is near this.
MAX_BYTES = 64 << 20
# Nor a greeting near this: so many bytes are taken from a stranger.
GREETING_BYTES = 4096
_LENGTH = struct.Struct("!I")


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends one message. Raises OSError if the other side is gone."""
    body = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(body)) + body)


class Reader:
    """Takes messages out of the bytes that arrive at a connection.

    Attributes:
      most: the most bytes of a message.
    """

    def __init__(self, most: int = MAX_BYTES) -> None:
        self.most = most
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
            if length > self.most:
                raise ValueError("these are no messages of jaxboost")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                break
            try:
                message = json.loads(bytes(self._bytes[_LENGTH.size : end]))
            except RecursionError:
                raise ValueError("these are no messages of jaxboost") from None
            if not isinstance(message, dict):
                raise ValueError("these are no messages of jaxboost")
            messages.append(message)
            del self._bytes[:end]
        return messages
