#!/usr/bin/env bash
# Install the package and run its fast tests under every promised Python that this machine has, in PATH or pyenv.
#
#   bash scripts/test_pythons.sh             3.11, 3.12 and 3.13
#   bash scripts/test_pythons.sh 3.12        one of them
#
# torch is taken from the CPU wheels at hand (pip's find-links); a version that has none is left out, since the
# registry's build for Linux brings several GB of CUDA. TORCH names what to install in its place: a wheel, a URL, or
# plain `torch` for the registry's build.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
eval "$(sed -n '/^install()/,/^}/p' "$root/scripts/setup.sh")" # its function, without its environment

test_one() { # VERSION: prints what became of it last
  local python torch=${TORCH:-} candidate venv=$work/$1
  for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"*/bin/python $(type -aP "python$1"); do
    [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$1" ] || python=$candidate
  done
  [ -n "${python:-}" ] || { echo "$1: absent, not tested"; return; }
  "$python" -m venv "$venv"
  if [ -z "$torch" ] && "$venv/bin/pip" install -q --dry-run --no-deps --no-index -c "$root/configs/constraints.txt" torch &>/dev/null; then
    torch=torch
  fi
  [ -n "$torch" ] || { echo "$1: no CPU torch at hand, not tested; TORCH=torch takes the registry's build (several GB)"; return; }
  install "$venv" "$python" "$torch" && cd "$root" &&
    OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -q -p no:cacheprovider -n "${WORKERS:-2}" --dist loadfile -m "not real and not slow" &&
    echo "$1: passed" || { echo "$1: FAILED"; return 1; }
}

failed=0 summary=()
for version in "${@:-3.11 3.12 3.13}"; do
  for one in $version; do
    (test_one "$one") 2>&1 | tee "$work/log" || failed=1
    summary+=("$(tail -n 1 "$work/log")")
  done
done
printf '%s\n' "" "${summary[@]}"
exit $failed
