"""The array twin of the arithmetic that kernel formulas are written in."""

from __future__ import annotations

import numpy as np

from sim.cost.kernels.arithmetic import Arithmetic

ARRAY = Arithmetic(np.maximum, np.minimum, np.where, lambda condition: bool(np.all(condition)), np.exp)
