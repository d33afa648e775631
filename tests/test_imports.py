import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

MAY_IMPORT = {
    "classifiers": set(),
    "adafocus_env": {"classifiers"},
    "agents": {"classifiers", "adafocus_env", "configs"},
    "benchmarks": {"classifiers", "adafocus_env", "agents", "configs"},
}

FOLDERS_OF_AGENTS = (
    "config", "policies", "evaluation", "runs", "rl", "supervised", "pipeline", "prediction", "page", "watching", "exporting",
)  # fmt: skip


def imported_packages(path):
    """Return the first word of every import in a file, at any level."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, line {node.lineno}"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    files = list(Path(importlib.import_module(package).__file__).parent.rglob("*.py"))
    assert len(files) > 5
    for path in files:
        ours = set(imported_packages(path)) & {*MAY_IMPORT, "configs", "tests"}
        assert ours <= {package} | MAY_IMPORT[package], f"{path} imports {sorted(ours)}"


LEVELS = ("cache_dir terminal distributed transfers action action_checks waiting", "videos", "demo", "clips", "features", "")
"""The modules and folders of adafocus_env, from the lowest level on; the last level has all other modules."""


def env_imports():
    """Return the modules of adafocus_env that each module of adafocus_env imports, at any level."""
    root = Path(importlib.import_module("adafocus_env").__file__).parent
    names = {path: ".".join(("adafocus_env", *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for path, name in names.items()}
    imports = {}
    for name, path in modules.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
        targets = {node.module for node in nodes} | {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        imports[name] = targets & set(modules) - {"adafocus_env"}
    return imports


def level_of(module):
    parts = module.split(".")
    return next((number for number, names in enumerate(LEVELS) if parts[1:] and parts[1] in names.split()), len(LEVELS) - 1)


def test_folders_of_adafocus_env_import_from_lower_ones():
    imports = env_imports()
    assert {level_of(name) for name in imports} == set(range(len(LEVELS)))
    upward = [(name, other) for name, others in imports.items() for other in others if level_of(other) > level_of(name)]
    assert upward == []


def test_modules_of_adafocus_env_do_not_import_in_circles():
    imports = env_imports()
    assert len(imports) > 30
    while free := [name for name, others in imports.items() if not others & set(imports)]:
        for name in free:
            del imports[name]
    assert not imports, f"these import each other: {sorted(imports)}"


def imported_below(path, package):
    """Return the first word below ``package`` of every import from the package in a file, at any level."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module != package else [f"{package}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith(f"{package}."))


@pytest.mark.parametrize("folder", FOLDERS_OF_AGENTS)
def test_folders_of_agents_import_one_way(folder):
    files = list((Path(importlib.import_module("agents").__file__).parent / folder).glob("*.py"))
    assert len(files) > 4
    allowed = {*FOLDERS_OF_AGENTS[: FOLDERS_OF_AGENTS.index(folder) + 1]}
    for path in files:
        assert set(imported_below(path, "agents")) <= allowed, path


def test_workers_that_decode_and_render_start_without_torch():
    videos = ", ".join(f"adafocus_env.videos.{name}" for name in ("readers", "decoding", "class_folders"))
    modules = f"adafocus_env, {videos}, adafocus_env.demo.renderer, classifiers"
    code = f"import sys, {modules}; print(sorted({{'torch', 'torchvision', 'stable_baselines3'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_inference_starts_without_the_compiler_of_pytorch():
    """The import of the compiler takes as long as that of PyTorch; torchvision also imports the compiler."""
    code = "import sys, adafocus_env.env; from agents import Predictor; Predictor.load('demo').flops(); "
    code += "print(sorted({'torch._dynamo', 'torchvision'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_lazy_names_of_classifiers():
    import classifiers
    from classifiers import checkpoint, classifier

    assert [getattr(classifiers, name) for name in ("load", "save", "list_classifiers")] == [
        checkpoint.load, checkpoint.save, checkpoint.list_classifiers
    ]  # fmt: skip
    assert (classifiers.Classifier, classifiers.Architecture) == (classifier.Classifier, classifier.Architecture)
    with pytest.raises(AttributeError, match="module 'classifiers' has no attribute 'laod'"):
        classifiers.laod


@pytest.mark.parametrize("package", ["adafocus_env", "agents", "classifiers"])
def test_public_names_are_listed_and_exist(package):
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module)) and all(hasattr(module, name) for name in module.__all__)
    assert Path(module.__file__).with_name("py.typed").is_file()


def test_dir_lists_names_that_are_not_loaded_yet():
    listed = "{'load_policy', 'Predictor'} <= set(dir(agents)), 'load' in dir(classifiers)"
    code = f"import agents, classifiers, sys; print({listed}, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True True False"
