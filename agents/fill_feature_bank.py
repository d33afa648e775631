"""Fill a feature bank on disk in advance, so that training and evaluation with ``bank=DIR`` run only the head.

    python -m agents.fill_feature_bank classifier=demo out=DIR [data=demo] [data.root=DIR] [split=all] [shard=1/4]

All settings that change clips or features must be equal here and in the training command. Their defaults are equal. An interrupted command
resumes when it is run again, and several commands may run at once. The size of the bank is printed before features are computed.
``shard=I/N`` fills the I-th of N shards of the same bank, for the jobs of a scheduler. On a machine with eight GPUs

    torchrun --nproc_per_node=8 -m agents.fill_feature_bank …

divides the work among the GPUs. The progress bar shows the work of the first GPU.
"""

from adafocus_env.settings import EnvSettings
from agents.config.command import run_command
from agents.config.settings import FillFeatureBank


def main(config: FillFeatureBank) -> None:
    """Fill the banks of the requested splits."""
    from adafocus_env.fill_bank import fill_feature_bank  # imported here, so that --help does not import PyTorch

    env = EnvSettings(
        action=config.action, grid=config.grid, video_div=config.video_div, bank=config.out, bank_dtype=config.bank_dtype
    )
    fill_feature_bank(config.classifier, config.data, env, split=config.split, shard=config.shard, device=config.device)


if __name__ == "__main__":
    run_command(main, FillFeatureBank, "fill_feature_bank")
