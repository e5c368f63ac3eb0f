"""Detectors: the base class, the registry, weights and the feature cache; methods lie in rooms by kind."""
