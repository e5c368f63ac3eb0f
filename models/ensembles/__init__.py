"""Ensembles of registered methods: of their features, of their scores, and what both share."""
