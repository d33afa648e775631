import json
import shutil

import pytest
import torch
from conftest import random_classifier
from predictions import make_run, one_cell
from tiny_algorithms import learn, settings
from videos import write_video

from agents.policies.model_on_glances import ModelOnGlances
from agents.policies.networks import load_policy, save_policy
from agents.prediction.checkpoints import check_plugin, load_checkpoints
from agents.prediction.predictor import Predictor
from classifiers import checkpoint
from classifiers.classifier import ClipFormat
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
CPU = torch.device("cpu")


def test_a_card_says_how_clips_are_made(tmp_path):
    classifier = random_classifier()
    classifier.clip_format = ClipFormat(12, glance_frames=8, margin=1.5)
    checkpoint.save(classifier, tmp_path)
    assert checkpoint.load(tmp_path).clip_format == ClipFormat(12, 8, 1.5)
    assert Predictor(checkpoint.load(tmp_path), one_cell(0)).classifier.clip_format.num_frames == 12, "also when it is optimized"


@pytest.mark.parametrize(("data", "expected"), [("folder", ClipFormat()), (None, ClipFormat()), ("demo-hard", ClipFormat(margin=1.0))])
def test_cards_of_earlier_versions_have_the_defaults_of_their_time(tmp_path, data, expected):
    checkpoint.save(random_classifier(), tmp_path, data=data)
    card = json.loads((tmp_path / "card.json").read_text())
    del card["clip_format"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert checkpoint.load(tmp_path).clip_format == expected


@pytest.mark.parametrize(("field", "value"), [("num_frames", 0), ("glance_frames", -1), ("margin", 0.5)])
def test_a_format_out_of_range_is_refused(field, value):
    with pytest.raises(InputError, match=rf"{field} must be at least \d, got {value}"):
        ClipFormat(**{field: value})


def test_what_the_head_receives_for_skipped_frames_is_read_from_the_policy(tmp_path):
    run = make_run(tmp_path / "run")
    save_policy(one_cell(3, skips=True), run / "checkpoints" / "best", {"skipped": "last"})
    assert load_checkpoints(run, None, CPU)[2] == "last"


def test_a_policy_may_lie_beside_its_classifier_or_be_given(tmp_path):
    run = make_run(tmp_path / "run", policy=one_cell(5)) / "checkpoints"
    shutil.copytree(run / "classifier", tmp_path / "both")
    with pytest.raises(InputError, match="both has no policy: add the folder of one, such as RUN/checkpoints/best, as policy=DIR"):
        load_checkpoints(tmp_path / "both", None, CPU)
    classifier, policy, _ = load_checkpoints(tmp_path / "both", run / "best", CPU)
    shutil.copytree(run / "best", tmp_path / "both", dirs_exist_ok=True)
    same, also, _ = load_checkpoints(tmp_path / "both", None, CPU)
    assert classifier.fingerprint() == same.fingerprint() and policy.actor.bias.tolist() == also.actor.bias.tolist()


def test_an_unfinished_run_offers_its_best_policy_so_far(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    offered = rf"run=\S+ is not finished: start its command again .*classifier={run}/checkpoints/classifier policy={run}/checkpoints/best$"
    with pytest.raises(InputError, match=offered):
        load_checkpoints(run, None, CPU)
    predictor = Predictor.load(run / "checkpoints" / "classifier", run / "checkpoints" / "best", "cpu")
    assert predictor.policy.card() == load_policy(run / "checkpoints" / "best").card()
    shutil.rmtree(run / "checkpoints" / "best")
    with pytest.raises(InputError, match="start its command again to finish it; it has no policy yet"):
        load_checkpoints(run, None, CPU)


def test_the_classifier_of_an_unfinished_run_is_found_where_it_was_given(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    (run / "checkpoints" / "classifier").rename(tmp_path / "given")
    (run / "config.yaml").write_text(f"data: {{num_frames: 4, glance_frames: 0}}\nclassifier: {tmp_path}/given\n")
    with pytest.raises(InputError, match=f"classifier={tmp_path}/given policy={run}/checkpoints/best"):
        load_checkpoints(run, None, CPU)


def test_a_run_without_a_policy_needs_one(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "checkpoints" / "best").rename(tmp_path / "policy")
    with pytest.raises(InputError, match=r"run=\S+ has trained no policy; add the folder of one: policy=DIR"):
        load_checkpoints(run, None, CPU)
    assert load_checkpoints(run, tmp_path / "policy", CPU)[1].grid == 7


def test_models_of_other_algorithms_are_policies_too(tmp_path, bank):
    run = make_run(tmp_path / "run", config="env: {skipped: last}\n")
    shutil.rmtree(run / "checkpoints" / "best")
    learn(tmp_path / "learned", bank, settings("dqn"))
    shutil.copytree(tmp_path / "learned" / "checkpoints" / "best", run / "checkpoints" / "best")
    _, policy, skipped = load_checkpoints(run, None, CPU)
    assert isinstance(policy, ModelOnGlances) and (policy.grid, policy.skips, skipped) == (7, False, "last")
    assert load_checkpoints(run / "checkpoints" / "classifier", run / "checkpoints" / "best", CPU)[2] == "zeros"
    found = Predictor.load(run, device="cpu")(write_video(tmp_path / "a.mp4"))
    assert len(found.frames) == 4 and all(frame.box for frame in found.frames)
    (run / "result.json").unlink()
    offer = rf"or use its best policy so far: python -m agents.predict source=VIDEO classifier=\S+ policy={run}/checkpoints/best$"
    with pytest.raises(InputError, match=offer):
        load_checkpoints(run, None, CPU)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none does not exist; give the folder of a run \(python -m agents\.list_runs lists them\)"):
        load_checkpoints(tmp_path / "none", None, CPU)


def test_a_config_that_is_not_of_a_training_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("root: runs\n")
    with pytest.raises(InputError, match=r"config\.yaml lacks 'data'; it is not the config of a training run"):
        load_checkpoints(run, None, CPU)


def test_the_plugin_of_a_run_must_be_named(tmp_path):
    run = make_run(tmp_path / "run", config="plugin: my_network\n")
    with pytest.raises(InputError, match="was made with plugin=my_network, which is imported only if you say so: add plugin=my_network"):
        check_plugin(str(run), "")
    check_plugin(str(run), "my_network")
