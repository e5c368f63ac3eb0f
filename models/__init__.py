"""Detectors: the registry, the base class, weights, and one file per method."""
