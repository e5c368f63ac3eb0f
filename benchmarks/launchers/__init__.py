"""Ways to run jobs: in worker processes of this machine, or on a Ray cluster."""
