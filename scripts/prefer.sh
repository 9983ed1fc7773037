#!/usr/bin/env bash
# Preferences over three seeds: DPO from each distilled start on best-worst, reference-worst and counterfactual pairs,
# judged by the offline rubric, in one report.
#
#   bash scripts/quickstart.sh --corpus ravdess RAVDESS_FOLDER
#   SEEDS="1 2" bash scripts/compare.sh runs/ravdess
#   bash scripts/prefer.sh runs/ravdess
#
# SEEDS (default "0 1 2") chooses the seeds, CLIPS (default 600) the clips that get candidates. What stands is reused.
source "$(dirname "$0")/setup.sh"
cd "$root"
[ $# = 1 ] || { echo "usage: bash scripts/prefer.sh RUN" >&2; exit 2; }
out=$1 at=$1/preferences
seeds=${SEEDS:-0 1 2} kinds=(best-worst reference-worst counterfactual)
declare -A of=([best-worst]=best-worst [reference-worst]=reference-worst
  [counterfactual]=flipped-emotion,flipped-claim,other-clip)
need() { [ -e "$1" ] || { echo "$1 is missing; $2" >&2; exit 2; }; }
need "$out/data/dev.jsonl" "run scripts/quickstart.sh --corpus … first"
caption() { # MODEL NAME
  [ -e "$at/$2.jsonl" ] || aligncap caption --model "$1" --manifest "$out/data/test.jsonl" --dtype bfloat16 --out "$at/$2.jsonl"
}
for seed in $seeds; do
  start=$out/distill
  [ "$seed" = 0 ] || start=$out/compare/distill-$seed
  need "$start/adapter_model.safetensors" "run scripts/compare.sh with this seed first"
  # One whole folder, so that the three runs share it instead of folding the adapter in three times.
  model=$at/start-model-$seed
  [ -e "$model/config.json" ] || aligncap merge "$start" --out "$model"
  made=$at/candidates-$seed.jsonl scored=$at/scored-$seed.jsonl pairs=$at/pairs-$seed.jsonl
  [ -e "$made" ] || aligncap candidates --model "$model" --manifest "$out/data/train.jsonl" --temperature 0.7 \
    --limit "${CLIPS:-600}" --seed "$seed" --dtype bfloat16 --out "$made"
  [ -e "$scored" ] || aligncap judge "$made" --judge rubric --out "$scored"
  [ -e "$pairs" ] || aligncap pairs "$scored" --kinds best-worst reference-worst flipped-emotion flipped-claim other-clip \
    --per-clip 2 --seed "$seed" --out "$pairs"
  caption "$model" "start-$seed"
  for kind in "${kinds[@]}"; do
    run=$at/$kind-$seed-run resume=()
    if [ ! -e "$run/adapter_model.safetensors" ]; then
      [ ! -e "$run/run.json" ] || resume=(--resume_from_checkpoint true)
      aligncap train prefer --config configs/recipes/prefer.yaml --model "$model" --train_pairs "$pairs" \
        --pair_kinds "${of[$kind]}" --dev_manifest "$out/data/dev.jsonl" --seed "$seed" --output_dir "$run" "${resume[@]}"
    fi
    caption "$run" "$kind-$seed"
  done
done
systems=()
for name in start counterfactual reference-worst best-worst; do
  for seed in $seeds; do systems+=("$name=$at/$name-$seed.jsonl"); done
done
lead=${systems[-1]#*=}
aligncap evaluate "$lead" --name best-worst --against start --references "$out/data/test.jsonl" --out "$at/report" \
  --system "${systems[@]:0:${#systems[@]}-1}" --probe "$out/probe.json" --title "Preferences: DPO from the distilled start"
