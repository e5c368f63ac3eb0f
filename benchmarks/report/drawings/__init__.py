"""Figures and charts with matplotlib."""
