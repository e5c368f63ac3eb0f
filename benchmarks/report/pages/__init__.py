"""The static report and its HTML fragments."""
