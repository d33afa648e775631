"""Connect to a Ray cluster: the one that the environment variable RAY_ADDRESS names, or a local one that is started and shut down."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from classifiers.errors import InputError, count_of, refuse_if

TIME_LIMIT = 5.0  # seconds until a cluster must have answered; Ray itself would try for minutes
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # opens a gRPC connection: preface, empty settings
_SETTINGS = 4  # type of the frame with which a gRPC server answers, in the fourth byte


def check_installed() -> None:
    """Check that Ray Data is installed.

    Raises:
        InputError: If a package is missing.
    """
    missing = [name for name in ("ray", "pandas", "pyarrow") if importlib.util.find_spec(name) is None]
    refuse_if(missing, f"engine=ray needs {', '.join(missing)}: pip install 'adafocus-env[ray]', or choose engine=local")


@contextmanager
def connected() -> Iterator[str]:
    """Connect to the cluster while the body runs, and yield a description of the cluster. An existing connection is used and stays open.

    Raises:
        InputError: If the cluster cannot be reached or started.
    """
    import ray

    if ray.is_initialized():
        yield _description()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # otherwise, Ray prints its repairs as errors
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("auto", "local"):
        check_reachable(address)
    dashboard = False if address == "local" else None  # None: as the existing cluster has it
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    except (OSError, RuntimeError, ValueError) as problem:  # no cluster on this machine; another version of Ray or Python
        ray.shutdown()
        reason = " ".join(str(problem).split())
        raise InputError(f"RAY_ADDRESS={address}: cannot connect to Ray ({reason}); {_ADVICE}") from problem
    try:
        yield _description()
    finally:
        ray.shutdown()


_ADVICE = "start a cluster (ray start --head), correct RAY_ADDRESS, or unset it to use a local cluster"


def check_reachable(address: str) -> None:
    """Check that a gRPC server, as Ray's head node is one, answers at an address.

    Args:
        address: HOST:PORT.

    Raises:
        InputError: If the address is invalid, or if no such server answers within `TIME_LIMIT`.
    """
    host, _, port = address.rpartition(":")
    refuse_if(
        "://" in address or not host or not port.isdecimal() or int(port) > 65535,
        f"RAY_ADDRESS must be HOST:PORT, auto or local, got {address!r}; give the address of the head node, such as 10.0.0.1:6379",
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIME_LIMIT) as connection:
            connection.settimeout(TIME_LIMIT)
            connection.sendall(_HELLO)
            with connection.makefile("rb") as stream:
                answer = stream.read(4)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise InputError(f"RAY_ADDRESS={address}: the cluster cannot be reached ({reason}); {_ADVICE}") from problem
    encrypted = os.environ.get("RAY_USE_TLS", "0") not in ("", "0")  # then the server does not answer in plain text
    refuse_if(not encrypted and answer[3:4] != bytes([_SETTINGS]), f"RAY_ADDRESS={address}: another server answers, not Ray; {_ADVICE}")


def _description() -> str:
    import ray

    resources, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    units = ((int(resources.get(name, 0)), name) for name in ("CPU", "GPU"))
    return ", ".join([f"Ray: {count_of(nodes, 'node')}", *(count_of(count, name) for count, name in units if count)])
