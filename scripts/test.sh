#!/usr/bin/env bash
# All tests, style and types, in the project's own environment. Arguments go to pytest: `bash scripts/test.sh -k audio`.
# Tests of real weights fetch the default models once (about 320 MB); tests of real speech look for
# $ALIGNCAP_CORPORA or ../shared/corpora. Both skip with their reason where that is not to be had.
source "$(dirname "$0")/setup.sh"
cd "$root"
ruff check .
ruff format --check .
mypy >.venv/mypy.txt 2>&1 &  # beside the tests; what it says comes after theirs
# One thread a worker: two workers share two cores. The order of files is that of tests/conftest.py.
OMP_NUM_THREADS=1 python -m pytest -q -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder --durations 8 "$@" || failed=$?
wait $! || failed=$?
cat .venv/mypy.txt; exit ${failed:-0}
