#!/usr/bin/env bash
# Make .venv with everything the project needs, from pinned versions; nothing to do when it stands.
# The other scripts source it. PYTHON chooses the interpreter (3.11 or later).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

# install VENV PYTHON [TORCH]: a virtual environment with the package, editable, and its tests' requirements.
# torch comes first and pinned: a machine with a CPU wheel at hand takes that one.
install() {
  "$2" -m venv "$1"
  local pip=("$1/bin/python" -m pip --disable-pip-version-check install -q -c "$root/configs/constraints.txt")
  "${pip[@]}" "${3:-torch}" 2> >(grep -v 'is ignored' >&2)
  "${pip[@]}" -e "$root[test]" 2> >(grep -v 'is ignored' >&2)
}

want=$(cat "$root/pyproject.toml" "$root/configs/constraints.txt" | cksum)
if [ "$(cat "$venv/.installed" 2>/dev/null || true)" != "$want" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "Python 3.11 or later is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
  echo "installing into $venv (a few minutes the first time)"
  install "$venv" "$python"
  echo "$want" >"$venv/.installed"
fi
export PATH="$venv/bin:$PATH"
