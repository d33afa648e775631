"""Benchmarks of speed and memory, and studies. Run this package from a checkout, because it is not installed with the other packages.

A benchmark compares each of its figures with a limit that is measured in the same run:

    python -m benchmarks                    all benchmarks; writes benchmarks/results/*.json and benchmarks/RESULTS.md
    python -m benchmarks.inference          one benchmark: main_job, inference, skipping, steps, data, training, growth, gpu
    python -m benchmarks --quick            tiny sizes, as a test; files are written only if --out is set

The studies compare_algorithms, learning_study, skipping_study and task_scores train and compare policies. leaderboard adds a policy to the
table of scores, and figure draws the table. rebuild_bundled trains the bundled classifiers, and published_flops counts the multiply-adds of
the published networks.
"""
