"""Import path of version 0.1: `infer` is in `agents.evaluation.inference`."""

from agents.evaluation.inference import Inference, infer, infer_batches, infer_clips

__all__ = ["Inference", "infer", "infer_batches", "infer_clips"]
