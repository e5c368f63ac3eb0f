"""Ways to run jobs: `local` in worker processes of this machine, `ray` on a cluster."""
