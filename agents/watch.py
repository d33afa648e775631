"""Show episodes of a policy as moving pictures, with the patches and with the confidence after every frame.

    python -m agents.watch id=AdaFocusMover-v1                     the bundled policy in a window, or as a GIF without a display
    python -m agents.watch run=DIR out=episodes.mp4                the policy of a run, on the test clips
    python -m agents.watch id=AdaFocus-v1 policy=saliency          a baseline: random, centre, saliency, oracle, …
    python -m agents.watch run=DIR policy=random clips=[3,14]      on these clips
    python -m agents.watch id=AdaFocus-v1 episodes=12 at_once=4    four side by side, three times in sequence
"""

from agents.config.command import run_command
from agents.config.settings import Watch


def main(config: Watch) -> None:
    """Show or write the episodes."""
    from agents.watching.run import watch  # imported here, so that --help does not import PyTorch

    watch(config)


if __name__ == "__main__":
    run_command(main, Watch, "watch")
