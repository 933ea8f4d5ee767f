"""Training: the loop and what it needs; only this package knows ranks."""

from foreact.train.config import TrainConfig
from foreact.train.ema import EMA, EMAConfig
from foreact.train.evaluation import Evaluator
from foreact.train.loop import TrainResult, train

__all__ = ["EMA", "EMAConfig", "Evaluator", "TrainConfig", "TrainResult", "train"]
