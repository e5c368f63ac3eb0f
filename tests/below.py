"""What lies below this project and takes long to import, for the process that `tests.forked` forks.

It may import nothing of this project: planted faults need its modules to be new.
"""

import gc

import anomalib.models
import numba
import pytest
import scipy.ndimage
import sklearn.neighbors
import timm
import torchvision

__all__ = ["anomalib", "numba", "pytest", "scipy", "sklearn", "timm", "torchvision"]

numba.njit(lambda x: x)(0)  # loads what every compiled function needs
gc.collect()
gc.freeze()  # no fork looks through these objects again
