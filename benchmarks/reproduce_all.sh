#!/usr/bin/env bash
# Runs what is missing and writes every table; finished units are never run again.
#   benchmarks/reproduce_all.sh                              embedded demo set, no network, no weights
#   DATA_ROOT=DIR [WEIGHTS=DIR] benchmarks/reproduce_all.sh  all tables of all papers on the data under DIR
# Further flags go to `run_benchmark.py reproduce`, for example --quick or --seeds 0 1 2.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [ -z "${DATA_ROOT:-}" ]; then
  exec "$python" run_benchmark.py demo "$@"
fi
"$python" run_benchmark.py reproduce --paper all --data-root "$DATA_ROOT" --weights "${WEIGHTS:-auto}" "$@" || code=$?
[ "${code:=0}" -le 1 ] || exit "$code"  # 1: some units or data are missing; the report shows what is there
"$python" run_benchmark.py report
exit "$code"
