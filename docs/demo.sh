#!/bin/sh
# The demo, a command for each stage: what `restage demo` does, to read line by line and to change.
# Run it from the folder of the clone after `make demo` or `make test` has set up .venv:
#
#     sh docs/demo.sh runs/by_hand
#
# Stop it at any time, and start it again: every command does only what is missing.
set -eu
run=${1:-runs/by_hand}
restage() { .venv/bin/restage "$@"; }

# Prompt pairs, two captions that differ by one edit, written by the grammar of the miniature world.
restage prompts "$run" --num-prompts 64

# Image pairs: the shipped text-to-image model paints both captions under attention control; CLIP scores each pair, and
# the rule keeps or rejects it. The thresholds belong to the miniature's CLIP.
restage pairs "$run" --pairs-per-shard 32 --generate.sampler.num-steps 14 --generate.guidance 3 \
    --rule.min-image-similarity 0.3 --rule.min-direction-similarity 0.3 --rule.min-text-similarity 0.75

# The shipped edit model, trained a little further on these pairs: too little to become better, enough to see it work.
restage train "$run" --training.num-steps 60 --training.batch-size 16 --training.learning-rate 2e-5 \
    --training.num-warmup-steps 10 --training.ema-decay 0.95

# A scene of one object, photographed by 40 cameras of which every fifth is held out, and the exact truth of two edits.
restage world "$run" --num-objects 1

# Gaussian splats, fitted to the training views.
restage scenes "$run"

# Both edits by each method, with the trained edit model and with exact truth in its place (the editor "exact").
restage edits "$run"

# Scores on the held-out views, which no method has seen, and the page that shows them.
restage compare "$run"
restage show "$run"
restage report "$run"
