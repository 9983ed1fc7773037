#!/usr/bin/env bash
# SFT against distillation at equal steps over three seeds, with the untrained model, wrong audio and the linear
# probe, in one report; and zero-shot on a corpus never seen.
#
#   bash scripts/quickstart.sh --corpus ravdess RAVDESS_FOLDER
#   bash scripts/compare.sh runs/ravdess nemo NEMO_FOLDER
#
# SEEDS (default "0 1 2") chooses the seeds, STEPS the steps. What stands is reused.
source "$(dirname "$0")/setup.sh"
cd "$root"
[ $# = 1 ] || [ $# = 3 ] || { echo "usage: bash scripts/compare.sh RUN [OTHER_CORPUS OTHER_FOLDER]" >&2; exit 2; }
out=$1 other=${2:-} steps=${STEPS:-$(sed -n 's/^max_steps: //p' configs/recipes/distill.yaml)}
[ -e "$out/teacher/config.json" ] || { echo "$out/teacher: no teacher; run scripts/quickstart.sh first" >&2; exit 2; }
tests=(test)
if [ -n "$other" ]; then
  zero=$out/data/$other.jsonl
  if [ ! -e "$zero" ]; then
    aligncap prepare "$other" "$(realpath "$3")" --out "$out/data/$other.all.jsonl"
    aligncap annotate "$out/data/$other.all.jsonl" --references 5 --out "$zero"
  fi
  tests+=("$other")
fi
probe=$out/probe-all.json
sets=("${tests[@]/%/.jsonl}")
[ -e "$probe" ] || aligncap probe --train "$out/data/train.jsonl" --dev "$out/data/dev.jsonl" \
  --test "${sets[@]/#/$out/data/}" --out "$probe"

caption_on() { # SET MODEL NAME FLAGS…
  local set=$1 model=$2 name=$3
  shift 3
  [ -e "$out/compare/$set/$name.jsonl" ] ||
    aligncap caption --model "$model" --manifest "$out/data/$set.jsonl" --out "$out/compare/$set/$name.jsonl" "$@"
}
# The quickstart captioned the test set with seed 0 already.
for name in distill:distill untrained:untrained; do
  if [ -e "$out/${name%:*}.jsonl" ] && [ ! -e "$out/compare/test/${name#*:}-0.jsonl" ]; then
    mkdir -p "$out/compare/test"
    cp "$out/${name%:*}.jsonl" "$out/compare/test/${name#*:}-0.jsonl"
  fi
done
seeds=${SEEDS:-0 1 2}
for seed in $seeds; do
  for verb in sft distill; do
    run=$out/compare/$verb-$seed
    [ "$verb-$seed" != distill-0 ] || run=$out/distill # the quickstart trained it
    if [ ! -e "$run/adapter_model.safetensors" ]; then
      resume=()
      [ ! -e "$run/run.json" ] && [ ! -e "$run/base" ] || resume=(--resume_from_checkpoint true)
      aligncap train $verb --config configs/recipes/$verb.yaml --llm "$out/teacher" --seed "$seed" --max_steps "$steps" \
        --train_manifest "$out/data/train.jsonl" --output_dir "$run" "${resume[@]}"
    fi
    caption_on test "$run" "$verb-$seed"
  done
  # $run is the distilled one here. What it started from, wrong audio and the other corpus: the first seed, unless
  # ALL=1 asks for the hours of captioning that all seeds take.
  [ "$seed" = "${seeds%% *}" ] || [ -n "${ALL:-}" ] || continue
  [ -z "$other" ] || caption_on "$other" "$run" "distill-$seed"
  caption_on test "$run/base" "aligned-$seed"
  caption_on test "$run" "wrong-$seed" --wrong-audio "$seed"
  untrained=$out/compare/untrained-$seed
  [ "$seed" != 0 ] || untrained=$out/untrained
  [ -e "$untrained/config.json" ] || aligncap build --llm "$out/teacher" --seed "$seed" --out "$untrained"
  caption_on test "$untrained" "untrained-$seed"
done

for set in "${tests[@]}"; do
  at=$out/compare/$set
  systems=()
  for name in untrained aligned sft; do
    for seed in $seeds; do
      [ ! -e "$at/$name-$seed.jsonl" ] || systems+=("$name=$at/$name-$seed.jsonl")
    done
  done
  first=${seeds%% *} wrong=()
  for seed in $seeds; do
    [ ! -e "$at/wrong-$seed.jsonl" ] || wrong+=("$at/wrong-$seed.jsonl")
    [ "$seed" = "$first" ] || [ ! -e "$at/distill-$seed.jsonl" ] || systems+=("distill=$at/distill-$seed.jsonl")
  done
  aligncap evaluate "$at/distill-$first.jsonl" --name distill --references "$out/data/$set.jsonl" --out "$at/report" \
    ${systems[@]:+--system "${systems[@]}"} ${wrong[@]:+--wrong-audio "${wrong[@]}"} --probe "$probe" --title "Speech emotion captions: $set"
done
