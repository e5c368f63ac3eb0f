"""PatchCore (Roth et al., CVPR 2022): nearest neighbours in a coreset of locally aware patch features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import Config, Context, Detector, Images, ModelError, Prediction, Progress, no_progress
