#!/usr/bin/env bash
# The embedded hybrid models from the embedded softmax teacher, in one command:
# clips -> align (stage 1, all layers) -> sensitivity -> distill (stage 2) -> DMD and the mean of both (where there is a
# recipe) -> the same again on long clips (where there is a recipe) -> rounds of DMD and means (the same) -> export.
#
#   recipes/shapes.sh                                    75 % of the layers hybrid, into runs/recipe
#   FOLDER=runs/mine MODELS=all PROCESSES=2 recipes/shapes.sh
#   FOLDER=runs/quick CLIPS=32 HIDING_CLIPS=32 recipes/shapes.sh loop.steps=30
#
# The same command continues what was stopped, killed or lost its power; other settings are refused where they would
# mix two recipes. Every setting of training is in recipes/shapes-align.json (shapes-align-MODEL.json where the layers of
# a model are of other kinds), recipes/shapes-distill-MODEL.json and recipes/shapes-dmd-MODEL.json, but for what this
# script alone knows: teacher, clips (by the last part of their path), aligned, plan and start_from. Stage 2 of a model
# with a shapes-distill-MODEL-late.json continues with these settings when it has finished with the others. One with a
# shapes-distill-MODEL-long.json goes through stage 2 and DMD once more, from the mean; with a
# shapes-distill-MODEL-long-memory.json DMD and one more stage 2 both begin after that, and the result is halfway between.
# Where there is a shapes-distill-MODEL-recall.json, one more stage 2 follows, and three rounds of DMD
# (shapes-dmd-MODEL-bounce1.json to 3): the first from the same model as that stage 2, the others from a mean of what is
# made by then. The result is the mean of all four. Where there is a shapes-dmd-MODEL-bounce.json, one more run of DMD
# comes last.
#
# Environment, each with its default:
#   FOLDER=runs/recipe     where everything is written, a path from the repository's root: clips/, align/ and align-MODEL/,
#                          sensitivity/, distill-MODEL/, dmd-MODEL/, mean-MODEL/, and the results: shapes-MODEL/ (for
#                          from_pretrained) and, of layers that it has names for, shapes-MODEL.safetensors (published
#                          key layout)
#   MODELS=75              per cent of hybrid layers, such as "50 75 100", or all. Each is the MODEL of a
#                          recipes/shapes-distill-MODEL.json. The least sensitive layers become hybrid, unless the model
#                          has a stage 1 of its own: then its recipes name the kind of every layer
#   TEACHER=shapes-teacher embedded name, or a pipeline's folder
#   PROCESSES=1            1 or 2; the result is the same but for rounding
#   THREADS=1              CPU threads of each
#   CLIPS=2048  HIDING_CLIPS=2048  CLIP_FRAMES=27  KNOWN_BLOCKS=3  SHARD_CLIPS=64  CLIP_SEED=1     the clips
#   LONG_CLIPS=1536  LONG_CLIP_FRAMES=54   those of the second time, as many with an occlusion as without
#   SENSITIVITY_PROMPTS=64  SENSITIVITY_FRAMES=6                                                  the ranking
#   ALIGN=""  DISTILL=""  DMD=""  settings (name=value) of one stage alone; arguments of the script go to stages 1 and 2,
#                          those of the loop (loop.name=value) to all
#   PYTHON=.venv/bin/python, or python3 where that is not there
set -euo pipefail
set -f # settings such as frames=[9] are no file patterns
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${FOLDER:-runs/recipe} models=${MODELS:-75} teacher=${TEACHER:-shapes-teacher}
processes=${PROCESSES:-1} threads=${THREADS:-1}
clips=${CLIPS:-2048} hiding_clips=${HIDING_CLIPS:-2048} clip_frames=${CLIP_FRAMES:-27}
known_blocks=${KNOWN_BLOCKS:-3} shard_clips=${SHARD_CLIPS:-64} clip_seed=${CLIP_SEED:-1}
long_clips=${LONG_CLIPS:-1536} long_clip_frames=${LONG_CLIP_FRAMES:-54}
sensitivity_prompts=${SENSITIVITY_PROMPTS:-64} sensitivity_frames=${SENSITIVITY_FRAMES:-6}
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
[[ $models == all ]] && models="50 75 100"
loop_words=()
for word in "$@"; do [[ $word == loop.* ]] && loop_words+=("$word"); done
export OMP_NUM_THREADS=$threads

one=("$python" -m arl2.cli.main)
case $processes in
  1) several=("${one[@]}") ;;
  2) several=("$python" -m torch.distributed.run --standalone --nproc-per-node 2 -m arl2.cli.main) ;;
  *) echo "recipes/shapes.sh: PROCESSES is '$processes'; give 1 or 2." >&2; exit 2 ;;
esac
for model in $models; do
  [[ -f recipes/shapes-distill-$model.json && $model =~ ^[0-9]+$ ]] && continue
  echo "recipes/shapes.sh: there is no recipes/shapes-distill-$model.json; MODELS takes 50, 75, 100, all." >&2
  exit 2
done

# Another teacher makes everything anew, or is refused where that would mix the two.
if [[ -d $teacher ]]; then weights=$teacher/transformer; else weights=src/arl2/shapes/weights; fi
teacher_sum=$(find "$weights" -type f -print0 | sort -z | xargs -0 cat | cksum)

# finish MARK RECIPE COMMAND...: run it, unless MARK says that it has finished with the same words, recipe and teacher.
finish() {
  local mark=$1 words
  words="${*:2} $(cksum <"$2") $teacher_sum"
  words=${words//"$folder"/FOLDER}
  if [[ -f $mark && $(<"$mark") == "$words" ]]; then
    echo "finished before: $mark"
    return
  fi
  "${@:3}"
  mkdir -p "${mark%/*}"
  printf '%s\n' "$words" >"$mark.partial"
  mv "$mark.partial" "$mark"
}

# Marks say neither which Python it was nor how many processes shared the work: that changes a result by rounding alone.
alone() {
  "${one[@]}" "$@"
}

together() {
  "${several[@]}" "$@"
}

# Which of the two runs a recipe: one batch a step is not shared.
who() {
  "$python" -c 'import json, sys
print("alone" if json.load(open(sys.argv[1]))["loop"]["batches_per_step"] % 2 else "together")' "$1"
}

# Names of the clips that a recipe trains on: the last part of each of its paths, one a line.
clips_of() {
  "$python" -c 'import json, pathlib, sys
for clips in json.load(open(sys.argv[1]))["clips"]: print(pathlib.Path(clips).name)' "$1"
}

# The setting that finds them in this folder.
clips_setting() {
  clips_of "$1" | sed "s|.*|\"$folder/clips/&\"|" | paste -sd, - | sed 's|.*|clips=[&]|'
}

make_clips() {
  local what frames=$clip_frames
  if [[ $1 == long* ]]; then frames=$long_clip_frames; fi
  case $1 in
    shapes) what=(--shapes-prompts "$clips" --real) ;;
    shapes-hiding) what=(--shapes-prompts "$hiding_clips" --real --hiding) ;;
    long) what=(--shapes-prompts "$long_clips" --real) ;;
    long-hiding) what=(--shapes-prompts "$long_clips" --real --hiding) ;;
    rollouts) what=(--shapes-prompts "$clips") ;;
    rollouts-hiding) what=(--shapes-prompts "$hiding_clips" --hiding --known-blocks "$known_blocks") ;;
    *) echo "recipes/shapes.sh: clips '$1' are not known; recipes may name shapes, shapes-hiding, long, long-hiding (true" \
      "clips), rollouts and rollouts-hiding (the teacher's)." >&2; exit 2 ;;
  esac
  finish "$folder/clips/$1.finished" /dev/null together rollouts -o "$folder/clips/$1" --model "$teacher" "${what[@]}" --latent-frames "$frames" \
    --seed "$clip_seed" --shard-clips "$shard_clips" --threads "$threads"
}

# Stage 1 that a model begins with: its own where its layers are of other kinds, otherwise the one of all.
align_of() {
  if [[ -f recipes/shapes-align-$1.json ]]; then echo "align-$1"; else echo align; fi
}

# The plan of a model: so many per cent of the layers, the least sensitive ones; its recipe's own if it has a stage 1 of
# its own.
plan_of() {
  "$python" -c 'import json, sys
ranking, recipe, model, stage = sys.argv[1:]
if stage == "align":
    found = json.load(open(ranking))
    print(found["plans"][str(round(len(found["ranking"]) * int(model) / 100))])
else:
    print(json.load(open(recipe))["plan"])
' "$folder/sensitivity/ranking.json" "recipes/shapes-distill-$1.json" "$1" "$(align_of "$1")"
}

stages=$(for model in $models; do align_of "$model"; done | sort -u)

echo "1. Clips"
for name in $( (for stage in $stages; do clips_of "recipes/shapes-$stage.json"; done; for model in $models; do
  for recipe in "recipes/shapes-distill-$model"{,-long,-long-memory,-recall}.json; do
    if [[ -f $recipe ]]; then clips_of "$recipe"; fi
  done
done) | sort -u); do
  make_clips "$name"
done

echo "2. Stage 1: every layer learns to give what the softmax layer in its place gives"
for stage in $stages; do
  recipe=recipes/shapes-$stage.json
  # shellcheck disable=SC2086 # words of ALIGN and DISTILL are settings, each its own
  finish "$folder/$stage/finished" "$recipe" together train align "$folder/$stage" \
    "teacher=$teacher" "$(clips_setting "$recipe")" "$@" ${ALIGN:-} --settings "$recipe" --threads "$threads"
done

if grep -qx align <<<"$stages"; then # models with a stage 1 of their own name their layers
  echo "3. Sensitivity: which layers a rollout can do without"
  finish "$folder/sensitivity/finished" recipes/shapes-align.json alone sensitivity "$teacher" \
    --aligned "$folder/align/export" -o "$folder/sensitivity/ranking.json" --plot "$folder/sensitivity/ranking.png" \
    --limit "$sensitivity_prompts" --latent-frames "$sensitivity_frames" --overwrite --threads "$threads"
fi

# distill MARK RECIPE WORD...: stage 2 of $model in $run, with the words that the script was given.
distill() {
  # shellcheck disable=SC2086
  finish "$1" "$2" "$(who "$2")" train distill "$run" "teacher=$teacher" "$3" "plan=$plan" \
    "$(clips_setting "$2")" "${@:4}" ${DISTILL:-} --settings "$2" --threads "$threads"
}

# outdate MARK FOLDER...: what was made of these is made again, where one of them was made since.
outdate() {
  local made
  for made in "${@:2}"; do
    if [[ $made/finished -nt $1 || $made/finished-late -nt $1 ]]; then rm -f "$1"; fi
  done
}

# mean FOLDER RECIPE WORD...: of exports, with the words of average.py.
mean() {
  local exports=("${@:3}")
  outdate "$1/finished" "${exports[@]/%\/export/}"
  finish "$1/finished" "$2" average_of "$1/export" "${@:3}"
}

average_of() {
  rm -rf "$1"
  "$python" recipes/average.py "${@:2}" -o "$1"
}

# The run's own export is a folder for from_pretrained already. The published layout knows hybrid and softmax layers, and
# no horizon.
export_model() {
  rm -rf "$2" "$2.safetensors"
  if [[ $3 =~ ^[HS]+$ ]] && ! grep -Eq '"state_horizon": [0-9]' "$1/transformer/config.json"; then
    alone export "$1" -o "$2.safetensors"
  fi
  cp -R "$1" "$2"
}

# dmd SUFFIX: of $model, from $run.
dmd() {
  local made=$folder/dmd-$model$1 recipe=recipes/shapes-dmd-$model$1.json
  # shellcheck disable=SC2086
  finish "$made/finished" "$recipe" "$(who "$recipe")" train dmd "$made" \
    "start_from=$run/export" ${loop_words[@]+"${loop_words[@]}"} ${DMD:-} --settings "$recipe" --threads "$threads"
}

# stages_of SUFFIX WORD...: stage 2 of $model and its end, then DMD and the mean of both, as far as it has recipes for
# them. $run is the result. WORD says what stage 2 begins with.
stages_of() {
  local suffix=$1 recipe=recipes/shapes-distill-$model$1.json
  run=$folder/distill-$model$suffix
  echo "4. Stage 2, $model$suffix: plan $plan"
  distill "$run/finished" "$recipe" "${@:2}"

  local late=recipes/shapes-distill-$model$suffix-late.json
  if [[ -f $late ]]; then
    echo "   Stage 2, $model$suffix, continues with the settings of its end"
    distill "$run/finished-late" "$late" "${@:2}" --accept-changes
  fi

  local remembers=$run memory=recipes/shapes-distill-$model$suffix-memory.json
  if [[ -f $memory ]]; then
    echo "   Stage 2, $model$suffix, from there: what the mean has its memory from"
    local start=$run
    run=$folder/distill-$model$suffix-memory
    distill "$run/finished" "$memory" "start_from=$start/export" "${@:3}"
    remembers=$run run=$start
  fi

  recipe=recipes/shapes-dmd-$model$suffix.json
  if [[ -f $recipe ]]; then
    echo "5. DMD, $model$suffix: few levels learn to draw what the many-step model draws at many"
    dmd "$suffix"

    echo "6. Halfway between the two, $model$suffix: DMD moves better, stage 2 remembers more"
    run=$folder/mean-$model$suffix
    mean "$run" "$recipe" "$remembers/export" "$folder/dmd-$model$suffix/export"
  fi
}

# rounds WORD...: stage 2 of $model from $run once more, and rounds of DMD that see bouncing objects more often. The first
# begins with $run too, each other with a mean of that stage 2 and of all rounds so far. $run is the last mean.
rounds() {
  local recall=$folder/distill-$model-recall start=$run recipe round made=() shares=(0.5 0.8 0.7) # weight of the DMD runs together
  echo "7. Stage 2, $model, once more: the next means take their memory from it"
  run=$recall
  distill "$run/finished" "recipes/shapes-distill-$model-recall.json" "start_from=$start/export" "$@"
  run=$start
  for round in 1 2 3; do
    echo "8. DMD, $model, round $round: objects that bounce, four times as often"
    recipe=recipes/shapes-dmd-$model-bounce$round.json
    dmd "-bounce$round"
    made+=("$folder/dmd-$model-bounce$round/export")
    run=$folder/mean-$model-bounce$round
    mean "$run" "$recipe" "$recall/export" "${made[@]}" --share "${shares[round - 1]}"
  done
}

for model in $models; do
  plan=$(plan_of "$model") run=
  stages_of "" "aligned=$folder/$(align_of "$model")/export" "$@"
  if [[ -f recipes/shapes-distill-$model-long.json ]]; then
    echo "   $model again, on long clips, from there"
    stages_of -long "start_from=$run/export" "$@"
  fi
  if [[ -f recipes/shapes-distill-$model-recall.json ]]; then rounds "$@"; fi
  if [[ -f recipes/shapes-dmd-$model-bounce.json ]]; then
    echo "8. DMD, $model, once more: objects that bounce, four times as often"
    dmd -bounce
    run=$folder/dmd-$model-bounce
  fi

  echo "9. Export, $model"
  outdate "$run/exported" "$run"
  finish "$run/exported" "recipes/shapes-distill-$model.json" export_model "$run/export" "$folder/shapes-$model" "$plan"
done
