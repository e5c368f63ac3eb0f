"""Directions of imports. The contracts stand in pyproject.toml; import-linter looks at neighbours, here at modules."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

grimp = pytest.importorskip("grimp", reason="import-linter is not installed (requirements-dev.txt)")


def imports() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, inside functions too; not those for type checkers alone."""
    graph = grimp.build_graph("benchmarks", "models", "datasets", exclude_type_checking_imports=True, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_circle_of_modules() -> None:
    """Also none through a package's own __init__, which import-linter's acyclic_siblings does not see."""
    found = imports()
    assert "benchmarks.metrics.scorer" in found["benchmarks.metrics"], "the graph is empty"
    TopologicalSorter(found).prepare()  # CycleError names the modules
    with pytest.raises(CycleError):
        TopologicalSorter(found | {"benchmarks.metrics.ranks": {"benchmarks.metrics"}}).prepare()
