#!/usr/bin/env bash
# From nothing to a scored report: environment, models, speech, training, preferences, captions, report.
#
#   bash scripts/quickstart.sh                              synthetic speech
#   bash scripts/quickstart.sh --corpus ravdess FOLDER      the same on real speech
#   bash scripts/quickstart.sh --corpus ravdess FOLDER --corpus emovo FOLDER     on several corpora at once
#
# What is finished is reused; a run that was stopped goes on. OUT chooses the folder (default runs/<corpus>).
source "$(dirname "$0")/setup.sh"
names=() folders=()
teacher=(--max_steps 60) distill=(--max_steps 80) dpo=(--max_steps 30 --eval_steps 30 --save_steps 30) clips=100
while [ $# -gt 0 ]; do
  [ "$1" = --corpus ] && [ $# -ge 3 ] || { echo "usage: bash scripts/quickstart.sh [--corpus NAME FOLDER]…" >&2; exit 2; }
  names+=("$2") folders+=("$(realpath -m "$3")")
  teacher=() distill=() dpo=() clips=600 # real speech takes the recipes' steps
  shift 3
done
cd "$root"
[ ${#names[@]} -gt 0 ] || names=(synthetic)
out=${OUT:-runs/$(IFS=-; echo "${names[*]}")}
data=$out/data
[ ${#folders[@]} -gt 0 ] || folders=("$out/speech")
mkdir -p "$out"
if [ "$(cat "$out/source" 2>/dev/null || echo "${folders[*]}")" != "${folders[*]}" ]; then
  echo "$out holds a run on $(cat "$out/source"); set OUT to another folder" >&2
  exit 2
fi
echo "${folders[*]}" >"$out/source"

say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }
# stage FILE TITLE COMMAND…: run the command unless FILE exists.
stage() {
  local file=$1 title=$2
  shift 2
  if [ -e "$file" ]; then say "$title: done before ($file)"; return; fi
  say "$title"
  # Exit 1 with the file written: single clips could not be used and were named; the rest goes on.
  "$@" || { local code=$?; [ $code = 1 ] && [ -e "$file" ] || exit $code; }
}
# train COMMAND FOLDER FLAGS…: by the packaged recipe; go on from a checkpoint where there is one.
train() {
  local command=$1 to=$2 resume=()
  shift 2
  [ ! -e "$to/run.json" ] && [ ! -e "$to/base" ] || resume=(--resume_from_checkpoint true)
  aligncap train "$command" --config "$command" --output_dir "$to" "$@" "${resume[@]}"
}
# caption MODEL FILE FLAGS…: captions of the test clips, which have every emotion as often.
caption() { aligncap caption --model "$1" --manifest "$data/test.jsonl" --dtype auto --prior equal --out "$2" "${@:3}"; }

say "models"
aligncap models fetch
prepared=()
for i in "${!names[@]}"; do
  file=$out/${names[i]}.jsonl
  case " ${names[*]:0:i} " in *" ${names[i]} "*) file=$out/${names[i]}-$i.jsonl ;; esac # a corpus in several folders
  prepared+=("$file")
  stage "$file" "speech: ${names[i]}" aligncap prepare "${names[i]}" "${folders[i]}" --out "$file"
done
stage "$out/all.jsonl" "one manifest" aligncap join "${prepared[@]}" --out "$out/all.jsonl"
stage "$out/captioned.jsonl" "cues and captions" \
  aligncap annotate "$out/all.jsonl" --references 5 --out "$out/captioned.jsonl" --report "$out/cues"
stage "$out/clued.jsonl" "emotion clues" aligncap clues "$out/captioned.jsonl" --out "$out/clued.jsonl"
stage "$data/test.jsonl" "split by speaker" aligncap split "$out/clued.jsonl" --dev 2 --test 4 --out "$data"
stage "$out/probe.json" "linear probe, the baseline" \
  aligncap probe --train "$data/train.jsonl" --dev "$data/dev.jsonl" --test "$data/test.jsonl" --out "$out/probe.json"
stage "$out/teacher/config.json" "teacher: text LLM reads transcript and clues" \
  train teacher "$out/teacher" --train_manifest "$data/train.jsonl" "${teacher[@]}"
stage "$out/distill/adapter_model.safetensors" "distillation: speech student" \
  train distill "$out/distill" --train_manifest "$data/train.jsonl" --llm "$out/teacher" --seed 0 "${distill[@]}"
stage "$out/start/config.json" "merge" aligncap merge "$out/distill" --out "$out/start"
stage "$out/candidates.jsonl" "candidates: eight captions a clip" \
  aligncap candidates --model "$out/start" --manifest "$data/train.jsonl" --limit $clips --dtype auto --out "$out/candidates.jsonl"
stage "$out/scored.jsonl" "scores of the offline rubric" aligncap judge "$out/candidates.jsonl" --out "$out/scored.jsonl"
stage "$out/pairs.jsonl" "preference pairs" aligncap pairs "$out/scored.jsonl" --out "$out/pairs.jsonl"
stage "$out/dpo/adapter_model.safetensors" "preferences: DPO from the distilled student" \
  train dpo "$out/dpo" --model "$out/start" --train_pairs "$out/pairs.jsonl" --dev_manifest "$data/dev.jsonl" --seed 0 "${dpo[@]}"
stage "$out/model/config.json" "merge" aligncap merge "$out/dpo" --out "$out/model"
stage "$out/captions.jsonl" "captions" caption "$out/model" "$out/captions.jsonl"
stage "$out/distill.jsonl" "captions before preferences" caption "$out/start" "$out/distill.jsonl"
# The student's own architecture, as distillation begins, without alignment or training.
stage "$out/untrained/base/config.json" "an untrained student" aligncap train align --llm "$out/teacher" \
  --train_manifest "$data/train.jsonl" --align_steps 0 --output_dir "$out/untrained"
stage "$out/untrained.jsonl" "captions of the untrained student" caption "$out/untrained/base" "$out/untrained.jsonl"
listening=()
for condition in wrong silence noise same-words; do
  stage "$out/$condition.jsonl" "proof of listening: $condition" \
    caption "$out/model" "$out/$condition.jsonl" --condition "$condition"
  listening+=("$condition=$out/$condition.jsonl")
done
say "scores"
aligncap evaluate "$out/captions.jsonl" --references "$data/test.jsonl" --name dpo --out "$out/report" \
  --system untrained="$out/untrained.jsonl" distill="$out/distill.jsonl" --listening "${listening[@]}" --probe "$out/probe.json"
say "done"
