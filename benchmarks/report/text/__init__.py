"""Tables and comparisons as text: Markdown, LaTeX, CSV, HTML fragments."""
