#!/usr/bin/env bash
# Makes the demo's trained parts again, from packages to deploy/demo/weights: data, five stages, release.
#
#   deploy/demo/train.sh WORK_FOLDER          about two hours on two CPU cores with AVX-512 BF16
#
# Every step that finished is skipped when the script is started again. Needs the `train` extra and, for the
# scenes, the Debian packages fonts-noto-color-emoji, openclipart-png, mate-backgrounds, fonts-dejavu-core and
# fonts-liberation.
set -euo pipefail

work=$(mkdir -p "${1:?usage: deploy/demo/train.sh WORK_FOLDER}" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
python=.venv/bin/python
processes=${TEPHRA_TRAIN_PROCESSES:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

[ -d "$work/base" ] || $python -m deploy.demo --base-only --out "$work/base"

scenes() { # NAME COUNT SEED
    [ -f "$work/data/$1/train.json" ] || $python -m training.scenes --out "$work/data/$1" --mix "$1" --count "$2" --seed "$3"
}
scenes see 30000 1
scenes caption 2000 1
scenes instruct 8000 0
scenes anyres 4000 2

if [ ! -f "$work/text.merged" ]; then
    $python -m worker --model "$work/base" --served-name base --port 18099 > "$work/base-worker.log" 2>&1 &
    worker=$!
    trap 'kill $worker 2> /dev/null || true' EXIT
    until grep -q "worker ready" "$work/base-worker.log"; do kill -0 $worker && sleep 1; done
    for set in instruct anyres; do
        $python -m training.scenes.chat_answers --base-url http://127.0.0.1:18099/v1 --model base \
            --out "$work/chat.jsonl" --merge-into "$work/data/$set/train.json"
    done
    kill $worker
    $python -m training.scenes.spelled --count 500 --merge-into "$work/data/instruct/train.json"
    $python -m training.scenes.spelled --count 150 --seed 1 --merge-into "$work/data/anyres/train.json"
    touch "$work/text.merged"
fi

stage() { # RECIPE [--set KEY=VALUE ...]
    [ -f "$work/runs/$1/summary.json" ] || $python -m torch.distributed.run --standalone --nproc-per-node="$processes" \
        -m training "$@" --base "$work/base" --data "$work/data" --runs "$work/runs" --threads "$OMP_NUM_THREADS"
}
stage demo-see
stage demo-name
stage demo-align
stage demo-instruct
stage demo-anyres

$python -m deploy.demo.release "$work/runs/demo-anyres" demo-anyres
echo "Released to deploy/demo/weights. Next: 'tephra up' and, beside it, 'tephra eval demo'."
