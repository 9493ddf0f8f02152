#!/usr/bin/env bash
# Runs each fuzz target for a while and keeps what it finds: fuzz/run.sh SECONDS [TARGET...]
#
#   RUNS   each target ends after so many inputs, if the seconds have not passed before
#   JOBS   so many targets at a time (1); each has its own log in fuzz/logs
#   TRACE_COMPARES=0   builds without what leads the fuzzer to the values that the code compares with: nearly twice
#                      as many inputs, for long runs that begin with a corpus
#
# Begins with the seeds (seeds.py), the committed regressions and the corpus of earlier runs. Inputs that reach new code are
# kept in fuzz/corpus, findings in fuzz/artifacts; a finding ends the run with an error. It becomes a unit test where the fault
# was, and goes to fuzz/regressions/TARGET.
#
# Builds with the coverage that libFuzzer needs and without a sanitizer: these paths have no unsafe code, and what is searched
# for is panics, endless work and memory. So a stable toolchain does, and cargo-fuzz is not needed.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:?seconds for each target}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || for file in targets/*.rs; do targets+=("$(basename "$file" .rs)"); done

coverage=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table --cfg fuzzing)
[ "${TRACE_COMPARES:-1}" = 0 ] || coverage+=(-Cllvm-args=-sanitizer-coverage-trace-compares)
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target the flags are for the targets alone, not for build scripts and macros.
RUSTFLAGS="${coverage[*]}" "${CARGO:-cargo}" build --release --locked --target "$host" \
    "${targets[@]/#/--bin=}"
python3 seeds.py seeds

mkdir -p logs
# 1 GB of memory and ten seconds for one input are far more than any input may take.
run_target() {
    mkdir -p "corpus/$1" "artifacts/$1" "regressions/$1" "seeds/$1"
    if "target/$host/release/$1" "corpus/$1" "seeds/$1" "regressions/$1" \
        -max_total_time="$seconds" ${RUNS:+-runs="$RUNS"} -max_len=65536 -rss_limit_mb=1024 -timeout=10 \
        -artifact_prefix="artifacts/$1/" -print_final_stats=1 -verbosity=0 >"logs/$1" 2>&1; then
        echo "$1: $(sed -n 's/^stat::number_of_executed_units: //p' "logs/$1") inputs," \
            "$(sed -n 's/^stat::peak_rss_mb: *//p' "logs/$1") MB at most"
    else
        echo "$1: FOUND SOMETHING"
        tail -n 30 "logs/$1"
        return 1
    fi
}
export -f run_target
export host seconds
status=0
printf '%s\n' "${targets[@]}" | xargs -P "${JOBS:-1}" -I{} bash -c 'run_target "$1"' fuzz {} || status=1
rm -rf /dev/shm/rollcall-fuzz-*
exit $status
