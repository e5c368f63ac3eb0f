"""The numbers of a view: published figures, suites, records by cell, tables, comparisons."""
