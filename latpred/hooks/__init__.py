"""Runs a model with its decisions taken: hooks are attached to it, decide as it goes, and are released again."""

from latpred.hooks.answer import Answer, Heard, Listener
from latpred.hooks.attach import attach
from latpred.hooks.hooked import Hooked
from latpred.hooks.pupils import Verdict
from latpred.hooks.sampler import Sampling
from latpred.hooks.saved import load
from latpred.hooks.trainer import Trainer, Training

__all__ = ["Answer", "Heard", "Hooked", "Listener", "Sampling", "Trainer", "Training", "Verdict", "attach", "load"]
