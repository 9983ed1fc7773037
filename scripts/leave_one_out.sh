#!/usr/bin/env bash
# Leave one corpus out: for each corpus, train on all the others (teacher, distillation) and caption the one left
# out, which nothing of the model has heard; a table for each, with the linear probe on the same encoder.
#
#   bash scripts/leave_one_out.sh runs/leave-one-out ravdess=ravdess.jsonl crema-d=crema-d.jsonl nemo=nemo.jsonl
#
# Manifests with captions and clues (`aligncap annotate`, `aligncap clues`); CORPUS is the name that is in them.
# SEEDS (default "0 1 2") chooses the seeds, STEPS and TEACHER_STEPS the steps, LABELS a choice of labels that
# all corpora have, scored apart (such as "angry happy sad neutral"), LABEL_MAP what captions say that counts as another label
# ("nemo:calm=neutral …"), DEV the number of speakers by which the probe's layer is chosen (default 2).
# What stands is reused; a run that was stopped goes on.
source "$(dirname "$0")/setup.sh"
cd "$root"
[ $# -ge 3 ] || { echo "usage: bash scripts/leave_one_out.sh RUN CORPUS=MANIFEST CORPUS=MANIFEST …" >&2; exit 2; }
out=$1
shift
for pair in "$@"; do
  [[ $pair == ?*=?* && $pair != */*=* ]] || { echo "$pair: write CORPUS=MANIFEST" >&2; exit 2; }
  [ -e "${pair#*=}" ] || { echo "${pair#*=}: no such manifest; \`aligncap prepare\`, annotate and clues make one" >&2; exit 2; }
done
seeds=${SEEDS:-0 1 2}
steps=${STEPS:-$(sed -n 's/^max_steps: //p' configs/recipes/distill.yaml)}
teacher_steps=${TEACHER_STEPS:-$(sed -n 's/^max_steps: //p' configs/recipes/teacher.yaml)}
labels=${LABELS:-}

train() { # VERB FOLDER FLAGS…
  local verb=$1 to=$2 resume=()
  shift 2
  [ ! -e "$to/run.json" ] && [ ! -e "$to/base" ] || resume=(--resume_from_checkpoint true)
  aligncap train "$verb" --config "configs/recipes/$verb.yaml" --output_dir "$to" "$@" "${resume[@]}"
}

for left in "$@"; do
  corpus=${left%%=*} manifest=${left#*=}
  at=$out/without-$corpus
  others=() maps=() models=()
  for pair in "$@"; do
    [ "$pair" = "$left" ] || others+=("${pair#*=}")
  done
  for map in ${LABEL_MAP:-}; do
    [[ $map != "$corpus:"* ]] || maps+=("$map")
  done
  [ -e "$at/all.jsonl" ] || aligncap join "${others[@]}" --out "$at/all.jsonl"
  [ -e "$at/dev.jsonl" ] ||
    aligncap split "$at/all.jsonl" --by speaker --dev "${DEV:-2}" --test 0 --seed 0 --out "$at"
  [ -e "$at/probe.json" ] || aligncap probe --train "$at/train.jsonl" --dev "$at/dev.jsonl" --test "$manifest" \
    --out "$at/probe.json"
  [ -e "$at/teacher/config.json" ] ||
    train teacher "$at/teacher" --train_manifest "$at/train.jsonl" --max_steps "$teacher_steps"
  for seed in $seeds; do
    [ -e "$at/distill-$seed/adapter_model.safetensors" ] ||
      train distill "$at/distill-$seed" --train_manifest "$at/train.jsonl" --max_steps "$steps" \
        --llm "$at/teacher" --seed "$seed"
    models+=("$at/distill-$seed")
  done
  # Scored anew each time: captions that stand are reused, and other seeds or label maps then show.
  aligncap zeroshot --model "${models[@]}" --manifest "$manifest" ${labels:+--labels $labels} \
    ${maps[@]:+--label-map "${maps[@]}"} --probe "$at/probe.json" --name distill --out "$at/zeroshot"
done
for left in "$@"; do
  printf '\n%s left out:\n\n' "${left%%=*}"
  cat "$out/without-${left%%=*}/zeroshot/zero_shot.md"
done
