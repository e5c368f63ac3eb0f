"""Tables and comparisons as text: laid out in a grid, then Markdown, LaTeX or CSV."""
