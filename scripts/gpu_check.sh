#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command: the tests marked `gpu`, then the table of steps, candidates and
# captions at the shapes of 1B and 7B LLMs (scripts/benchmarks/gpu.py). Needs no network, weights or speech.
#
#   scripts/gpu_check.sh [--minutes 20] [--out runs/gpu_check] [--tiny]      where AlignCap is installed
#   scripts/gpu_check.sh --wheels DIR                                        for a machine that has torch, transformers
#       and accelerate alone: with DIR empty, says and fetches what must be carried (--python 3.12: of that machine);
#       with the wheels in DIR, installs them beside, for this run, and goes on.
#
# --tiny: the same at tiny shapes, on a CPU in some minutes. Results are kept in OUT as they come, and a second call
# goes on where the time was over.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
minutes=20 out=runs/gpu_check wheels= tiny=() version=3.12
while (($#)); do
  case $1 in
    --minutes) minutes=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --wheels) wheels=$2; shift 2 ;;
    --python) version=$2; shift 2 ;;
    --tiny) tiny=(--tiny); shift ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "gpu_check.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
done
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "gpu_check.sh: --minutes $minutes: a number is needed" >&2; exit 2; }
began=$SECONDS
if [ -n "$wheels" ] && ! ls "$wheels"/*.whl >/dev/null 2>&1; then
  python3 "$root/scripts/benchmarks/bare.py" "$wheels" --python "$version"
  echo "carry the repository and $wheels, and there run: scripts/gpu_check.sh --wheels $wheels"
  exit 0
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  mine=("$wheels"/*.whl)
  if ! python3 -c 'import pandas, pyarrow' 2>/dev/null; then
    echo "pandas and pyarrow are not here: no trl, so dpo is left out"
    mine=()
    for file in "$wheels"/*.whl; do
      case ${file##*/} in trl-* | datasets-*) ;; *) mine+=("$file") ;; esac
    done
  fi
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "${mine[@]}"
  export PYTHONPATH=$site:$PYTHONPATH
fi
mkdir -p "$out"
# The tests take some minutes, at most half of the time; the table runs whatever they say.
timeout "$(python3 -c "print(max(60, int(30 * $minutes)))")" python3 -m pytest -q -p no:cacheprovider -m gpu -rs "$root/tests/gpu" 2>&1 | tee "$out/tests.txt" || failed=1
left=$(python3 -c "print(max(1.0, $minutes - ($SECONDS - $began) / 60))")
python3 "$root/scripts/benchmarks/gpu.py" run --minutes "$left" --out "$out" "${tiny[@]}"
exit "${failed:-0}"
