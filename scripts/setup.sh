#!/usr/bin/env bash
# Make .venv with everything the project needs, from pinned versions; nothing to do when it stands.
# The other scripts source it. PYTHON chooses the interpreter (3.10 or later).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
want=$(cat "$root/pyproject.toml" "$root/configs/constraints.txt" | cksum)
if [ "$(cat "$venv/.installed" 2>/dev/null || true)" != "$want" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "Python 3.10 or later is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
  echo "installing into $venv (a few minutes the first time)"
  "$python" -m venv "$venv"
  # torch first and pinned: a machine with a CPU wheel at hand takes that one.
  pip=("$venv/bin/python" -m pip --disable-pip-version-check install -q -c "$root/configs/constraints.txt")
  "${pip[@]}" torch 2> >(grep -v 'is ignored' >&2)
  "${pip[@]}" -e "$root[test,pictures]" 2> >(grep -v 'is ignored' >&2)
  echo "$want" >"$venv/.installed"
fi
export PATH="$venv/bin:$PATH"
