"""What speed is claimed of this project, each claim against a limit that is measured in the same run.

    python -m benchmarks                    everything; writes benchmarks/results/*.json and benchmarks/RESULTS.md
    python -m benchmarks.inference          one of them: inference, env_steps, steps, bank_filling, ppo, stages, decode, transforms, memory,
                                            growth
    python -m benchmarks --quick            tiny sizes, to see that all of it runs; prints, and writes only where out says

Not installed with the packages: run it from the checkout.
"""
