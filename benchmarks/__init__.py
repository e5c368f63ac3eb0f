"""The harness: plan, runner, launchers, store, metrics, report, regression."""
