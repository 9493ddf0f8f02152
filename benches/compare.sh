#!/bin/sh
# Runs the recognition of this project and the same networks driven from Python on the same photographs, one after the
# other in one run, and prints the CPU milliseconds of each stage side by side.
#   benches/compare.sh PHOTOS_DIR [PHOTOS_MAX]
# Needs python3 with pip and venv, a release build (target/release/rollcall) and the fp32 twins of the networks
# (models/build/build.sh --fp32-only). What Python needs is installed into .cache/reference, pinned.
set -eu
# ONNX Runtime 1.32 reports each process to its maker unless told not to before it is loaded.
export ORT_DISABLE_TELEMETRY=1
cd "$(dirname "$0")/.."
photos=${1:?usage: benches/compare.sh PHOTOS_DIR [PHOTOS_MAX]}
most=${2:-200}
rollcall=${ROLLCALL:-target/release/rollcall}
venv=.cache/reference/venv
python=$venv/bin/python

[ -x "$rollcall" ] || { echo "compare: $rollcall is missing: cargo build --release" >&2; exit 66; }
[ -s models/fp32/fr_feature.onnx ] || { echo "compare: the fp32 twins are missing: models/build/build.sh --fp32-only" >&2; exit 66; }
[ -x $python ] || ${PYTHON:-python3} -m venv $venv
cmp -s benches/requirements.txt $venv/installed || {
    $venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --requirement benches/requirements.txt
    cp benches/requirements.txt $venv/installed
}

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Twice each, turn by turn, and the better of each: a busy spell of the machine must not decide.
for turn in 1 2; do
    "$rollcall" bench --json --precision int8 --seconds 1 --photos "$photos" --photos-max "$most" > "$out/ours.$turn"
    $python benches/python_reference.py models "$photos" "$most" > "$out/python.$turn"
done
$python - "$out" <<'PY'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
def best(kind):
    runs = [json.loads((out / f"{kind}.{turn}").read_text()) for turn in (1, 2)]
    return min(runs, key=lambda run: run["stages_ms"]["decode_to_template"]["median"])
ours, python = best("ours"), best("python")
print(f"{ours['photographs']} photographs; a face in {ours['faces']} (rollcall) and {python['faces']} (Python)")
print(f"{'CPU ms, median, one thread':<28}{'rollcall int8':>14}{'Python fp32':>14}{'ratio':>8}")
for stage in ("decode", "detect", "refine", "align", "embed", "decode_to_template"):
    a, b = ours["stages_ms"][stage]["median"], python["stages_ms"][stage]["median"]
    print(f"{stage.replace('_', ' '):<28}{a:>14.2f}{b:>14.2f}{a / b:>8.2f}")
a, b = ours["rss_bytes"] / 1e6, python["rss_bytes"] / 1e6
print(f"{'resident memory, MB':<28}{a:>14.0f}{b:>14.0f}{a / b:>8.2f}   (rollcall: with 10,000 references)")
PY
