"""The numbers of a view: records by cell, published figures, suites, tables, comparisons. Knows no form of output."""
