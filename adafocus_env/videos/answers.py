"""Send the results of worker processes in a form that can be read without running code.

A file that takes over a decoder controls every byte that its worker sends, and a pickle can run any code in the process that reads it. A
result is therefore sent as a JSON object, followed by the raw bytes of its arrays.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

HEADER_LIMIT = 2**20  # bytes of the JSON object
ARRAY_LIMIT = 2**31  # bytes of one array
DTYPES = {"uint8": np.uint8, "int64": np.int64, "float64": np.float64}


@dataclass(frozen=True)
class Failure:
    """The reason why a task has no result."""

    reason: str


def send(connection: Connection, result: object) -> None:
    """Send a result, which is a plain value, an array, or a dataclass whose attributes are plain values and arrays.

    Raises:
        TypeError: if the result is something else.
    """
    values = vars(result) if is_dataclass(result) else {"": result}
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    connection.send_bytes(json.dumps([type(result).__name__, plain, {k: [v.dtype.name, v.shape] for k, v in arrays.items()}]).encode())
    for array in arrays.values():
        connection.send_bytes(array.reshape(-1).data)


def receive(connection: Connection, kinds: Sequence[type]) -> Any:
    """Return the result that `send` sent. Lists of plain values become tuples.

    Args:
        connection: the connection to the worker. Nothing that it sends is trusted.
        kinds: the dataclasses that may be sent.

    Raises:
        EOFError, OSError: if the worker has died, or sent too much.
        Exception: if the bytes are not a result; the class depends on the mistake.
    """
    kind, values, arrays = json.loads(connection.recv_bytes(HEADER_LIMIT))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, (dtype, shape) in arrays.items():
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        data = bytearray(connection.recv_bytes(min(size, ARRAY_LIMIT)))
        values[name] = np.ndarray(shape, DTYPES[dtype], data)  # raises an error if there are too few bytes
    return values[""] if "" in values else {each.__name__: each for each in kinds}[kind](**values)
