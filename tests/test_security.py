"""No code reads a file, or the answer of a worker, in a way that can run code."""

import ast
import importlib
from pathlib import Path

import pytest

FROM_THE_MAIN_PROCESS = {"decoding.py": ["connection.recv()"]}
"""A worker unpickles its tasks, which the main process sends. The answers take the other way."""

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def unsafe_lines(code):
    """Yield the unsafe imports and calls in a module."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            unsafe = any(module.split(".")[0] in UNSAFE_MODULES for module in modules)
        else:
            unsafe = isinstance(node, ast.Call) and _is_unsafe(node)
        if unsafe:
            yield ast.unparse(node)


def _is_unsafe(call):
    name, given = ast.unparse(call.func), {each.arg: ast.unparse(each.value) for each in call.keywords}
    return (
        (name == "torch.load" and given.get("weights_only") != "True")
        or (name in ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec", "os.system", "OmegaConf.load"))
        or (name.endswith((".recv", ".load_module")))  # the first is `Connection.recv`, which unpickles
        or "True" in (given.get("allow_pickle"), given.get("shell"))
    )


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from marshal import loads", "import a, joblib", "torch.load(file)", "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)", "yaml.load(text, Loader)", "connection.recv()", "eval(text)", "run(text, shell=True)",
    ],
)  # fmt: skip
def test_unsafe_lines_are_found(line):
    assert list(unsafe_lines(f"def f():\n    {line}")) == [line]


def test_safe_lines_are_not_found():
    lines = "torch.load(f, weights_only=True)", "np.load(f)", "yaml.safe_load(t)", "connection.recv_bytes()", "model.eval()"
    assert not list(unsafe_lines("\n".join(lines)))


@pytest.mark.parametrize("package", ["classifiers", "adafocus_env", "agents", "benchmarks", "examples"])
def test_no_module_reads_anything_that_can_run_code(package):
    root = Path(__file__).parents[1] / package if package == "examples" else Path(importlib.import_module(package).__file__).parent
    files = list(root.rglob("*.py"))
    assert len(files) > 5
    found = {file.name: lines for file in files if (lines := list(unsafe_lines(file.read_text(encoding="utf-8"))))}
    assert found == (FROM_THE_MAIN_PROCESS if package == "adafocus_env" else {})
