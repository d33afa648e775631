"""Generate the API reference, which lists public names by topic, with their docstrings."""

TOPICS = {
    "Environments": (
        "Importing `adafocus_env` registers the ids.",
        [
            "adafocus_env.env.AdaFocusEnv", "adafocus_env.vector_env.AdaFocusVectorEnv", "adafocus_env.sb3_env.AdaFocusVecEnv",
            "adafocus_env.normalized_score", "adafocus_env.reference_scores", "adafocus_env.ARGUMENTS",
        ],
    ),
    "Rewards, observations and actions": (
        "What an environment is made of; a plugin adds entries to the tables.",
        [
            "adafocus_env.reward.Reward", "adafocus_env.reward.REWARDS", "adafocus_env.observation.Observation",
            "adafocus_env.observation.OBSERVATIONS", "adafocus_env.action.Action", "adafocus_env.action.ActionError",
            "adafocus_env.settings.EnvSettings",
        ],
    ),
    "Videos, clips and features": (
        "From files to what the networks compute of them.",
        [
            "adafocus_env.dataset_registry.DATASETS", "adafocus_env.dataset_registry.DataSource", "adafocus_env.videos.dataset.DataSet",
            "adafocus_env.videos.class_folders.folder", "adafocus_env.demo.videos.demo", "adafocus_env.build.open_clips",
            "adafocus_env.build.build_features",
        ],
    ),
    "Classifiers": (
        "The networks, in plain PyTorch.",
        [
            "classifiers.load", "classifiers.save", "classifiers.list_classifiers", "classifiers.Classifier", "classifiers.Architecture",
            "classifiers.model_zoo.ARCHITECTURES", "classifiers.backbones.backbone.Backbone", "classifiers.backbones.backbone.BACKBONES",
            "classifiers.protocols.Head", "classifiers.errors.InputError",
        ],
    ),
    "Policies": (
        "Policy networks, and policies that learn nothing.",
        [
            "agents.load_policy", "agents.save_policy", "agents.policies.networks.NetworkArchitecture", "agents.policies.networks.NETWORKS",
            "agents.policies.networks.PolicyNetwork", "agents.policies.baselines.RandomPatch", "agents.policies.baselines.CentrePatch",
            "agents.policies.baselines.GaussianPatch", "agents.policies.baselines.FixedPatch", "agents.policies.baselines.SaliencyPatch",
            "agents.policies.baselines.RulePatch", "agents.policies.baselines.Oracle", "agents.policies.baselines.GreedyOracle",
        ],
    ),
    "Prediction": (
        "A trained policy on any video.",
        ["agents.Predictor", "agents.prediction.result.Prediction", "agents.prediction.result.FramePrediction", "agents.read_clip"],
    ),
    "Evaluation": (
        "Inference on many clips, accuracy against cost, thresholds for budgets.",
        [
            "agents.evaluation.inference.infer", "agents.evaluation.inference.infer_clips", "agents.evaluation.inference.Inference",
            "agents.evaluation.evaluate.evaluate", "agents.evaluation.evaluate.evaluate_policy", "agents.evaluation.budgets.threshold_for",
        ],
    ),
}  # fmt: skip
"""For each heading: a sentence about its content, and the dotted names below it."""


def pages() -> dict[str, str]:
    """Return a dictionary from the file name of the API reference to its text."""
    text = ["# API reference\n", "Public names. [Benchmark tasks](/tasks.md) and [Extending](/extend.md) show how they are used.\n"]
    for topic, (about, names) in TOPICS.items():
        text += [f"## {topic}\n", f"{about}\n"]
        text += [f"```{{eval-rst}}\n.. {_directive(name)}:: {name}\n{_options(name)}```\n" for name in names]
    return {"api.md": "\n".join(text)}


def _directive(name: str) -> str:
    last = name.rpartition(".")[2]
    if last.isupper():
        return "autodata"
    return {True: "autoclass", False: "autofunction"}[last[0].isupper()]


def _options(name: str) -> str:
    return {"autoclass": "   :members:\n", "autodata": "   :no-value:\n"}.get(_directive(name), "")
