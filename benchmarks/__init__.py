"""Benchmarks of speed and memory, and the studies. Run from a checkout; they are not installed with the packages.

Benchmarks compare every figure with a limit that is measured in the same run:

    python -m benchmarks                    all of them; writes benchmarks/results/*.json and benchmarks/RESULTS.md
    python -m benchmarks.inference          one of them: main_job, inference, skipping, steps, data, training, growth, gpu
    python -m benchmarks --quick            tiny sizes, to see that they run; prints, and writes only if --out is set

Studies train policies and compare them: compare_algorithms, learning_study, skipping_study, task_scores. leaderboard adds a policy to
the table of scores, figure draws it. rebuild_bundled trains the bundled
classifiers, published_flops counts the published networks.
"""
