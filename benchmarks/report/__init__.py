"""Views over records and published numbers: tables, comparisons, figures, HTML."""
