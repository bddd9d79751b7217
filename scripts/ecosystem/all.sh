#!/usr/bin/env bash
# Runs the script of every tool in this folder, or those that are named, one after the other, and ends with a table:
#
#   bash scripts/ecosystem/all.sh            # all of them: each makes its own environment once, some GB together
#   bash scripts/ecosystem/all.sh lm_eval trl
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
logs=output/ecosystem
mkdir -p "$logs"
if (($#)); then tools=("$@"); else mapfile -t tools < <(ls scripts/ecosystem/*.sh | xargs -n 1 basename -s .sh | grep -vxE 'all|common'); fi

rows=()
failures=0
for tool in "${tools[@]}"; do
    printf '\n=== %s\n' "$tool"
    SECONDS=0
    if bash "scripts/ecosystem/$tool.sh" 2>&1 | tee "$logs/$tool.log"; then outcome=ok; else outcome=FAILED && failures=$((failures + 1)); fi
    rows+=("$(printf '%-16s %-7s %4d s  %s' "$tool" "$outcome" "$SECONDS" "$(grep -aE '(passed|failed|error).* in [0-9.]+s' "$logs/$tool.log" | tail -n 1)")")
done

printf '\n'
printf '%s\n' "${rows[@]}"
((failures == 0))
