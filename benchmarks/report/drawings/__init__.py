"""Figures (PNG, with matplotlib) and the charts of single units (SVG)."""
