#!/usr/bin/env bash
# All tests, style and types, in the project's own environment. Arguments go to pytest: `bash scripts/test.sh -k audio`.
#
# Tests of real weights fetch the default models once (about 320 MB); tests of real speech look for
# $ALIGNCAP_CORPORA or ../shared/corpora. Both skip with their reason where that is not to be had.
source "$(dirname "$0")/setup.sh"
cd "$root"
ruff check .
ruff format --check .
mypy
# One thread a worker: two workers share two cores.
OMP_NUM_THREADS=1 python -m pytest -q -n "${WORKERS:-2}" --dist loadfile --durations 8 "$@"
