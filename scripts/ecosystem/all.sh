#!/usr/bin/env bash
# Runs the script of every tool in this folder, or those that are named, two at a time, and ends with a table:
#
#   bash scripts/ecosystem/all.sh            # all of them: each makes its environment once, some 20 GB together
#   bash scripts/ecosystem/all.sh lm_eval trl
#   jobs=1 bash scripts/ecosystem/all.sh     # one at a time
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export logs=output/ecosystem OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$logs"
if (($#)); then tools=("$@"); else mapfile -t tools < <(ls scripts/ecosystem/*.sh | xargs -n 1 basename -s .sh | grep -vxE 'all|common'); fi

# Begun last, the longest would be left running alone: OpenCompass takes twice as long as any other.
mapfile -t tools < <(printf '%s\n' "${tools[@]}" | grep -x opencompass; printf '%s\n' "${tools[@]}" | grep -vx opencompass)

run_tool() {
    local tool=$1 outcome=ok
    echo "=== $tool: begun, see $logs/$tool.log"
    SECONDS=0
    bash "scripts/ecosystem/$tool.sh" >"$logs/$tool.log" 2>&1 </dev/null || outcome=FAILED
    printf '%-16s %-7s %4d s  %s\n' "$tool" "$outcome" "$SECONDS" \
        "$(grep -aE '(passed|failed|error).* in [0-9.]+s' "$logs/$tool.log" | tail -n 1)" >"$logs/$tool.row"
    [[ $outcome == ok ]] || { echo "=== $tool: the end of $logs/$tool.log" && tail -n 60 "$logs/$tool.log"; }
}
export -f run_tool

rm -f "$logs"/*.row
printf '%s\n' "${tools[@]}" | xargs -P "${jobs:-2}" -I{} bash -c 'run_tool {}'
printf '\n'
cat "$logs"/*.row
# Each has a row, and none says FAILED.
(($(cat "$logs"/*.row | grep -c ' ok ') == ${#tools[@]}))
