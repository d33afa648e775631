import pytest
from config_states import config_of

from adafocus_env.settings import fields_of, is_settings
from agents.config import settings
from agents.config.settings import (
    CheckDataset,
    Evaluate,
    FillFeatureBank,
    Train,
    TrainPPO,
    TrainStages,
)  # fmt: skip
from benchmarks.rebuild_bundled import RebuildBundled
from benchmarks.skipping_study import SkippingStudy
from classifiers.errors import InputError

ONE, SHARE, POSITIVE = "must be an integer of at least 1", "must be a number of at least 0 and ", "must be a number above 0"


@pytest.mark.parametrize(
    ("schema", "key", "value", "message"),
    [
        *((TrainPPO, f"ppo.{key}", 0, ONE) for key in ("total_steps", "epochs", "n_steps", "n_epochs", "validate_every", "save_every")),
        (TrainPPO, "ppo.batch_size", 1, "must be an integer of at least 2 or null"),
        *((TrainPPO, f"ppo.{key}", value, POSITIVE)
          for key in ("learning_rate", "clip_range", "max_grad_norm", "adam_eps") for value in (0, -1.0, ".nan", ".inf")),
        *((TrainPPO, f"ppo.{key}", value, f"{SHARE}at most 1") for key in ("gamma", "gae_lambda") for value in (-0.5, 1.5)),
        *((TrainPPO, f"env.{key}", 0, ONE) for key in ("num_envs", "grid", "baseline", "video_div")),
        (TrainPPO, "env.cost_weight", -1, "must be a number of at least 0"),
        *((TrainPPO, "env.target_keep", value, "must be a number above 0 and at most 1 or null") for value in (0, 47)),
        *((TrainPPO, f"env.{key}", value, POSITIVE) for key in ("target_gflops", "cost_weight_rate", "bank_gib") for value in (0, -1)),
        (TrainPPO, "env.target_gflops", ".nan", POSITIVE),
        *((TrainPPO, f"network.{key}", 0, ONE) for key in ("channels", "features", "hidden")),
        (TrainPPO, "network.std", -0.5, POSITIVE),
        *((TrainPPO, f"data.{key}", 0, ONE) for key in ("views", "num_frames", "workers")),
        *((TrainPPO, f"data.{key}", 1, "below 1, got 1") for key in ("val", "test")),
        (TrainPPO, "data.views", "often", f"{ONE} or 'resample', got 'often'"),
        (TrainPPO, "log", "[tensorbord]", "must be a list, each 'tensorboard' or 'wandb', got 'tensorbord'"),
        *((TrainPPO, f"architecture.{key}", 0, ONE) for key in ("hidden_size", "size", "glance_size")),
        (TrainPPO, "architecture.shift", 0.6, f"{SHARE}at most 0.5 or null"),
        *((TrainPPO, f"stages.glancer.{key}", 0, ONE) for key in ("batch_size", "frames", "accumulate")),
        *((TrainPPO, f"stages.finetune.{key}", 1, f"{SHARE}below 1") for key in ("momentum", "dropout")),
        (TrainPPO, "stages.glancer.optimizer", "lion", "must be 'adamw' or 'sgd', got 'lion'"),
        (TrainPPO, "stages.glancer.schedule", "steps", "got 'steps'; did you mean 'step'"),
        (TrainPPO, "stages.glancer.precision", "float8", "got 'float8'; did you mean 'float32'"),
        *((Train, f"algo.{key}", 0, ONE) for key in ("total_steps", "validate_every", "save_every")),
        *((TrainStages, key, 4, "must be an integer of at least 0 and at most 3, got 4") for key in ("first", "last")),
        (TrainStages, "rounds", -1, "must be an integer of at least 0, got -1"),
        *((TrainStages, f"joint.{key}", 0, ONE) for key in ("patience", "total_steps", "epochs")),
        *((TrainStages, f"joint.{key}", 0, POSITIVE) for key in ("policy_learning_rate", "head_learning_rate")),
        (TrainStages, "joint.learning_rate", -1, "must be a number of at least 0 or null, got -1"),
        (Evaluate, "keep", 1.5, "must be a number above 0 and at most 1 or null"),
        (Evaluate, "budget", 0, POSITIVE),
        (Evaluate, "typed", "{}", "typed is not a setting"),
        (FillFeatureBank, "grid", 0, ONE),
        (CheckDataset, "workers", 0, ONE),
        (SkippingStudy, "keeps", "[0]", "must be a list, each a number above 0 and at most 1, got 0"),
        (RebuildBundled, "task", "trakc", "got 'trakc'; did you mean 'track'"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(schema, key, value, message):
    with pytest.raises(InputError) as problem:
        config_of(schema, f"{key}={value}".replace(" ", ""))
    assert str(problem.value).startswith(key) and message in str(problem.value)


def test_every_setting_has_a_help_text():
    for name in settings.__all__:
        for key, field in fields_of(getattr(settings, name)).items():
            assert field.description and (is_settings(field.annotation) or not field.description.endswith(".")), f"{name}.{key}"
