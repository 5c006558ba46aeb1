"""Experiment tracking: every finished stage as a run in MLflow or in Weights & Biases.

The store stays the ledger; a tracker is only told, and losing one costs no result. A tracker's
library is imported when it is asked for.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.stages.stage import Stage

PARAMS = ("kind", "model", "attack", "defense", "aux", "aux_size", "weight_factor", "epoch")
PARAMS = (*PARAMS, "seed", "sample_seed", "task")
_LOSS = re.compile(r"loss\.")
_MLFLOW_BATCH = 1000  # metrics that a server takes at once
_WANDB_NAME = 128  # characters
