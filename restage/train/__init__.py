"""Trains the edit model on image pairs."""

from restage.train.batches import ExampleMix, LossWeights
from restage.train.edit_model import TrainConfig, load_start, train_edit_model
from restage.train.examples import ExactPair, TrainingPair
from restage.train.stage import run_train

__all__ = [
    "ExactPair",
    "ExampleMix",
    "LossWeights",
    "TrainConfig",
    "TrainingPair",
    "load_start",
    "run_train",
    "train_edit_model",
]
