#!/usr/bin/env bash
# From nothing to a scored report: environment, models, speech, training, preferences, captions, report.
#
#   bash scripts/quickstart.sh                              made (synthetic) speech
#   bash scripts/quickstart.sh --corpus ravdess FOLDER      the same on real speech
#
# What stands already is reused; a run that was stopped goes on. OUT chooses the folder (default runs/<corpus>).
source "$(dirname "$0")/setup.sh"
corpus=made folder= test=4 dev=2
limits=(60 80 30) clips=100 # steps of teacher, student and preferences; real speech takes the recipes'
while [ $# -gt 0 ]; do
  case $1 in
    --corpus)
      [ $# -ge 3 ] || { echo "usage: bash scripts/quickstart.sh [--corpus NAME FOLDER]" >&2; exit 2; }
      corpus=$2 folder=$(realpath -m "$3") limits=() clips=600
      shift 3 ;;
    *) echo "unknown argument $1; usage: bash scripts/quickstart.sh [--corpus NAME FOLDER]" >&2; exit 2 ;;
  esac
done
cd "$root"
out=${OUT:-runs/$corpus}
folder=${folder:-$out/speech}
mkdir -p "$out"
if [ "$(cat "$out/made-of" 2>/dev/null || echo "$folder")" != "$folder" ]; then
  echo "$out holds a run on $(cat "$out/made-of"); set OUT to another folder" >&2
  exit 2
fi
if [ -e "$out/model" ] && [ ! -e "$out/prefer" ]; then
  echo "$out holds a run from before preferences; set OUT to another folder" >&2
  exit 2
fi
echo "$folder" >"$out/made-of"

begin=$SECONDS
say() { printf '\n[%3d s] %s\n' $((SECONDS - begin)) "$*"; }
# stage FILE TITLE COMMAND…: run the command unless FILE stands.
stage() {
  local file=$1 title=$2
  shift 2
  if [ -e "$file" ]; then say "$title: stands ($file)"; return; fi
  say "$title"
  # Exit 1 with the file written: single clips could not be used and were named; the rest goes on.
  "$@" || { local code=$?; [ $code = 1 ] && [ -e "$file" ] || exit $code; }
}
# train VERB FOLDER FLAGS…: go on from a checkpoint where there is one.
train() {
  local verb=$1 to=$2
  shift 2
  local resume=()
  [ ! -e "$to/run.json" ] && [ ! -e "$to/base" ] || resume=(--resume_from_checkpoint true)
  aligncap train "$verb" --config "configs/recipes/$verb.yaml" --train_manifest "$out/data/train.jsonl" \
    --output_dir "$to" "$@" "${resume[@]}"
}

say "models"
aligncap models fetch
stage "$out/all.jsonl" "speech: $corpus" aligncap prepare "$corpus" "$folder" --out "$out/all.jsonl"
stage "$out/captioned.jsonl" "cues and captions" \
  aligncap annotate "$out/all.jsonl" --references 5 --out "$out/captioned.jsonl" --report "$out/cues"
stage "$out/clued.jsonl" "emotion clues" aligncap clues "$out/captioned.jsonl" --out "$out/clued.jsonl"
stage "$out/data/test.jsonl" "split by speaker" \
  aligncap split "$out/clued.jsonl" --by speaker --dev $dev --test $test --out "$out/data"
stage "$out/probe.json" "linear probe, the yardstick" \
  aligncap probe --train "$out/data/train.jsonl" --dev "$out/data/dev.jsonl" --test "$out/data/test.jsonl" --out "$out/probe.json"
stage "$out/teacher/config.json" "teacher: text LLM reads transcript and clues" \
  train teacher "$out/teacher" ${limits[0]:+--max_steps ${limits[0]}}
stage "$out/distill/adapter_model.safetensors" "distillation: speech student" \
  train distill "$out/distill" --llm "$out/teacher" --seed 0 ${limits[1]:+--max_steps ${limits[1]}}
stage "$out/start/config.json" "merge" aligncap merge "$out/distill" --out "$out/start"
stage "$out/candidates.jsonl" "candidates: eight captions a clip" \
  aligncap candidates --model "$out/start" --manifest "$out/data/train.jsonl" --temperature 0.7 --limit $clips --dtype auto --out "$out/candidates.jsonl"
stage "$out/scored.jsonl" "verdicts of the offline rubric" \
  aligncap judge "$out/candidates.jsonl" --judge rubric --out "$out/scored.jsonl"
stage "$out/pairs.jsonl" "preference pairs" aligncap pairs "$out/scored.jsonl" --per-clip 2 --out "$out/pairs.jsonl"
stage "$out/prefer/adapter_model.safetensors" "preferences: DPO from the distilled student" \
  train prefer "$out/prefer" --model "$out/start" --train_pairs "$out/pairs.jsonl" --dev_manifest "$out/data/dev.jsonl" \
  --seed 0 ${limits[2]:+--max_steps ${limits[2]} --eval_steps ${limits[2]} --save_steps ${limits[2]}}
stage "$out/model/config.json" "merge" aligncap merge "$out/prefer" --out "$out/model"
stage "$out/captions.jsonl" "captions" \
  aligncap caption --model "$out/model" --manifest "$out/data/test.jsonl" --dtype auto --out "$out/captions.jsonl"
stage "$out/distill.jsonl" "captions before preferences" \
  aligncap caption --model "$out/start" --manifest "$out/data/test.jsonl" --dtype auto --out "$out/distill.jsonl"
stage "$out/untrained/config.json" "an untrained student" aligncap build --llm "$out/teacher" --out "$out/untrained"
stage "$out/untrained.jsonl" "captions of the untrained student" \
  aligncap caption --model "$out/untrained" --manifest "$out/data/test.jsonl" --dtype auto --out "$out/untrained.jsonl"
listening=()
for heard in wrong silence noise same-words; do
  stage "$out/$heard.jsonl" "proof of listening: $heard" \
    aligncap caption --model "$out/model" --manifest "$out/data/test.jsonl" --heard $heard --dtype auto --out "$out/$heard.jsonl"
  listening+=("$heard=$out/$heard.jsonl")
done
say "scores"
aligncap evaluate "$out/captions.jsonl" --references "$out/data/test.jsonl" --name prefer --out "$out/report" \
  --system untrained="$out/untrained.jsonl" distill="$out/distill.jsonl" --listening "${listening[@]}" --probe "$out/probe.json"
say "done"
