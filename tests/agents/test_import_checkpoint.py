"""Import, evaluation and finetuning of a file in the released format with the commands, at full size, for both families."""

import json

import pytest
import released_weights
import torch
from published_sets import make_lists, make_videos

from adafocus_env.videos.published import PUBLISHED
from agents import evaluate, train_ppo, train_stages
from agents.config.command import compose_config
from agents.config.settings import Evaluate, ImportCheckpoint, TrainPPO, TrainStages
from agents.policies.baselines import RULES
from agents.policies.networks import load_policy
from agents.released.checkpoint import import_released
from agents.runs.run_dir import RunDir
from classifiers import checkpoint
from classifiers.errors import InputError

# Few frames: the networks are those of the paper, and slow.
LENGTHS = {"activitynet": ["data.num_frames=2"], "something": ["data.num_frames=2", "data.glance_frames=8"]}
DATA = {"activitynet": "actnet", "something": "sthv2"}


def content_of(family, drawn=True):
    """Return a checkpoint for two classes."""
    content = released_weights.released(family, drawn=drawn)
    cut = {
        "activitynet": [("fc", "fc."), ("glancer", "net.classifier.1."), ("focuser", "net.fc.")],
        "something": [("fc", ""), ("glancer", "net.classifier.")],
    }
    for part, start in cut[family]:
        for name in ("weight", "bias"):
            content[part][start + name] = content[part][start + name][:2].clone()
    return content


@pytest.mark.slow
@pytest.mark.parametrize("family", ["activitynet", "something"])
def test_import_evaluate_and_go_on(tmp_path, family, monkeypatch):
    root = make_videos(make_lists(tmp_path / "data", DATA[family]), DATA[family])
    torch.save(content_of(family), tmp_path / "released.pth")
    classes = root / PUBLISHED[DATA[family]].class_file
    kept = tmp_path / "imported"
    import_released(ImportCheckpoint(str(tmp_path / "released.pth"), str(kept), classes=str(classes)))
    data = [f"data={DATA[family]}", f"data.root={root}", *LENGTHS[family], "device=cpu"]
    given = [f"classifier={kept}", f"policy={kept}"]

    out = tmp_path / "evaluated"
    evaluate.main(compose_config(Evaluate, "evaluate", [*data, *given, "bank=false", f"out={out}"]))
    found = json.loads((out / "result.json").read_text())
    assert found["classes"] == ["left turn", "right turn"] and found["metric"] == PUBLISHED[DATA[family]].metric
    assert set(found["policies"]) == {"learned", "random", "centre", "gaussian", *RULES, "glance_only", "full_frame"}
    assert len(found["policies"]["learned"]["steps"]["map"]) == (2 if family == "activitynet" else 1)

    monkeypatch.setattr("agents.pipeline.training_run.report", lambda *_, **__: {})  # its table has been measured above
    experiment = [f"experiment={DATA[family]}", *data[1:], *given]
    few = ["data.views=1", "data.val=0", "ppo.epochs=1", "env.num_envs=3", "ppo.validate_every=100"]  # no choice: the last counts
    train_ppo.main(compose_config(TrainPPO, "train_ppo", [*experiment, *few, f"run={tmp_path / 'ppo'}"]))
    before, after = load_policy(kept).state_dict(), load_policy(tmp_path / "ppo" / "checkpoints" / "best").state_dict()
    moved = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert "actor.weight" in moved and "encoder.gru.weight_ih_l0" in moved
    learned = [name for name in moved if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=0.01) for name in learned), "it goes on from the imported policy"

    last = ["first=3", "stages.finetune.epochs=1", f"run={tmp_path / 'stage3'}"]
    train_stages.main(compose_config(TrainStages, "train_stages", [*experiment, *few, *last]))
    assert [line["stage"] for line in RunDir(tmp_path / "stage3").metrics()] == [3]
    old, new = checkpoint.load(kept).state_dict(), checkpoint.load(tmp_path / "stage3" / "checkpoints" / "classifier").state_dict()
    assert {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])} == {"head"}
    assert checkpoint.read_card(tmp_path / "stage3" / "checkpoints" / "classifier").parent == checkpoint.read_card(kept).fingerprint


@pytest.mark.slow
def test_a_patch_size_that_is_not_the_checkpoints_is_refused(tmp_path):
    root = make_videos(make_lists(tmp_path / "data", "actnet"), "actnet")
    torch.save({**content_of("activitynet", drawn=False), "policy": None}, tmp_path / "released.pth")
    kept = tmp_path / "imported"
    import_released(ImportCheckpoint(str(tmp_path / "released.pth"), str(kept), classes=str(root / "classInd.txt"), patch_size=128))
    asked = ["experiment=actnet", f"data.root={root}", f"classifier={kept}", f"run={tmp_path / 'run'}"]
    with pytest.raises(InputError, match=r"patch_size=96 differs from that of classifier=.*, which was trained with patches of 128 pixels"):
        train_ppo.main(compose_config(TrainPPO, "train_ppo", asked))
