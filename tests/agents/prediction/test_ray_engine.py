"""Predictions on Ray. All tests but one run the stages of the pipeline in this process, without Ray."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from predictions import lines_of, make_run
from videos import cut_in_half, square_frames, write_video

import agents
from agents.config.command import run_command
from agents.config.settings import Predict
from agents.predict import main
from agents.prediction import ray_cluster, ray_engine
from agents.prediction.ray_cluster import check_installed, check_reachable
from agents.prediction.ray_engine import Networks, Recipe, decode_block
from classifiers.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def config(run):
    return Predict(run=str(run), source="videos", engine="ray", window=0.4, stride=0.2, batch_size=4)


@pytest.fixture
def recipe(config, run):
    return Recipe.of(config, agents.Predictor.load(run), "cpu")


def test_the_stages_of_the_pipeline_predict_what_the_local_engine_does(tmp_path, config, recipe):
    videos = [str(write_video(tmp_path / f"{number}.mp4", square_frames(count))) for number, count in enumerate((5, 30, 17))]
    videos.insert(1, str(cut_in_half(write_video(tmp_path / "cut.mp4", square_frames(60)))))
    predictor = recipe.load()
    local = {found.file: found for found in predictor.predict_all(videos, window=0.4, stride=0.2, num_workers=1)}
    base = predictor.request(window=0.4, stride=0.2, fps=25.0)
    rows = {"number": range(len(videos)), "path": [os.fsencode(video) for video in videos]}
    windows = [item for batch in decode_block(rows, base, 96, 60.0) for item in batch["item"]]
    networks, items = Networks(recipe), []
    for start in reversed(range(0, len(windows), 4)):  # Ray returns batches in any order
        items += networks(ray_engine._column(windows[start : start + 4]))["item"].tolist()
    found = {each.file: each for each in predictor.collect(videos, [*items, *items[:1]])}  # and perhaps a block twice
    assert found.keys() == {*videos} and found[videos[1]] == local[videos[1]] and "is truncated" in found[videos[1]].reason
    assert len(found[videos[2]].windows) > 1
    for file in {*videos} - {videos[1]}:
        one, other = found[file], local[file]
        assert one.classes[0] == other.classes[0] and one.boxes == pytest.approx(other.boxes, nan_ok=True)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_an_actor_does_not_run_other_weights(recipe):
    assert recipe.load().classifier.fingerprint() == recipe.weights[0]
    with pytest.raises(InputError, match=r"the weights in .*run must be the same on all nodes, got others on one node; use a folder"):
        replace(recipe, weights=("", "")).load()


def test_reasons_name_the_path_that_the_user_gave(tmp_path):
    failure = ray_engine.Failure(f"cannot read the video {tmp_path}/a.mp4: it is empty")
    assert ray_engine._with_path(failure, f"{tmp_path}/a.mp4", "a.mp4").reason == "cannot read the video a.mp4: it is empty"
    assert ray_engine._with_path(1, "", "") == 1


def test_a_mistake_in_an_actor_is_found_among_the_causes():
    outer = RuntimeError("Ray")
    outer.cause = ValueError("user code")
    outer.cause.__cause__ = InputError("policy=DIR is missing")
    assert str(ray_engine._mistake(outer)) == "policy=DIR is missing"
    assert ray_engine._mistake(problem := RuntimeError("bug")) is problem


@pytest.mark.parametrize(
    ("resources", "given", "expected"),
    [
        ({"CPU": 1.0}, {}, (1, "cpu")),
        ({"CPU": 9.0}, {}, (4, "cpu")),
        ({"CPU": 9.0}, {"actors": 2}, (2, "cpu")),
        ({"CPU": 9.0, "GPU": 3.0}, {}, (3, "cuda")),
        ({"CPU": 9.0, "GPU": 3.0}, {"device": "cpu"}, (4, "cpu")),
        ({"CPU": 9.0}, {"device": "cuda"}, "device=cuda: the Ray cluster has no GPU; use device=auto"),
        ({"CPU": 9.0}, {"device": "cuda:1"}, "device must be auto, cpu or cuda with engine=ray, got 'cuda:1'; Ray gives every process one"),
        ({"GPU": 2.0}, {"actors": 3}, "actors must be at most the 2 GPUs of the Ray cluster, got 3; leave it out"),
    ],
)
def test_every_gpu_has_an_actor(monkeypatch, config, resources, given, expected):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cluster_resources=lambda: resources))
    if isinstance(expected, tuple):
        assert ray_engine._actors(replace(config, **given)) == expected
    else:
        with pytest.raises(InputError, match=expected):
            ray_engine._actors(replace(config, **given))


@pytest.mark.parametrize(
    ("videos", "cpus", "tasks"), [(1, 8, 1), (60, 2, 8), (320, 2, 10), (320, 100, 320), (10**6, 64, 2000), (10**6, 10**4, 2000)]
)
def test_tasks_are_large_but_every_cpu_has_some(videos, cpus, tasks):
    assert ray_engine._num_tasks(videos, cpus) == tasks


def test_ray_must_be_installed(tmp_path, monkeypatch, capsys):
    find = ray_cluster.importlib.util.find_spec
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None if name in ("ray", "pandas") else find(name))
    with pytest.raises(InputError, match=r"engine=ray needs ray, pandas.*: pip install 'adafocus-env\[ray\]', or choose engine=local"):
        check_installed()
    with pytest.raises(SystemExit) as ended:
        run_command(main, Predict, "predict", arguments=["classifier=demo", f"source={tmp_path}", "engine=ray"])
    assert ended.value.code == 2 and "pip install 'adafocus-env[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["nowhere", ":6379", "host:port", "127.0.0.1:99999", "ray://127.0.0.1:10001"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(InputError, match=rf"RAY_ADDRESS must be HOST:PORT, auto or local, got '{address}'; give the address of the head"):
        check_reachable(address)


@contextmanager
def server(answer):
    """Run a server that answers the first bytes of its only client, or says nothing; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with listening.accept()[0] as client:
                client.recv(1)
                client.sendall(answer)
                client.recv(100) if answer else time.sleep(0.5)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_a_cluster_that_does_not_answer_is_named_at_once(monkeypatch):
    monkeypatch.setattr(ray_cluster, "TIME_LIMIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(InputError, match=rf"RAY_ADDRESS={address}: the cluster cannot be reached \(Connection refused\); start a cluster"):
        check_reachable(address)
    with server(b"") as address, pytest.raises(InputError, match=rf"RAY_ADDRESS={address}: the cluster cannot be reached \(timed out\)"):
        check_reachable(address)
    with server(b"HTTP/1.1 400") as address, pytest.raises(InputError, match=rf"{address}: another server answers, not Ray; start a"):
        check_reachable(address)
    with server(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address:
        check_reachable(address)


def predict(out, *more, **env):
    command = [sys.executable, "-m", "agents.predict", "classifier=demo", "source=videos", f"out={out}", "batch_size=1"]
    return subprocess.Popen([*command, "window=0.5", "stride=0.25", *more], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_dies_loses_nothing(tmp_path, monkeypatch):
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(agents.__file__).parents[1]))  # which the nodes inherit
    for number in range(24):
        write_video(Path("videos", f"{number:02d}.mp4"), square_frames(60 + number))
    Path("videos/broken.mp4").write_bytes(b"no video")
    local = predict("local")
    assert "1 video failed" in local.communicate()[0] and local.returncode == 1
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    node = {"num_cpus": 1, "object_store_memory": 150 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False, "_system_config": soon})
    try:
        doomed = cluster.add_node(**node)
        cluster.wait_for_nodes()
        on_ray = predict("ray", "engine=ray", RAY_ADDRESS=cluster.address)
        written = Path("ray/predictions.jsonl")
        while on_ray.poll() is None and not (written.exists() and written.read_bytes().count(b"\n") >= 4):
            time.sleep(0.02)
        before = written.read_bytes().count(b"\n")
        cluster.remove_node(doomed, allow_graceful=False)
        printed = on_ray.communicate()[0]
    finally:
        cluster.shutdown()
    assert 4 <= before < 24, "the node died too late for this test"
    assert on_ray.returncode == 1 and "Ray: 2 nodes, 2 CPUs" in printed and "1 video failed" in printed
    found, expected = (sorted(lines_of(Path(name)), key=lambda line: line["file"]) for name in ("ray", "local"))
    assert [line["file"] for line in found] == [f"videos/{number:02d}.mp4" for number in range(24)]
    assert json.dumps(found) == json.dumps(expected)
