# Finds or makes a Python that has what the project needs. Sourced by run_loramoe.sh, run_tests.sh and .ci/run:
#
#   source scripts/setup_env.sh
#   use_environment train          # sets PYTHON; extras of pyproject.toml: train, dev, gguf, deepspeed
#
# The active Python is taken if it has everything already (set PYTHON to name another). Otherwise .venv is made, once, with
# the pinned versions of requirements.txt. A finished .venv is known by its stamp, so later starts need neither time nor network.

project_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { printf '%s\n' "$*" >&2; exit 1; }

use_environment() {
    local candidate file=requirements.txt
    for candidate in ${PYTHON:-python3 python}; do
        if "$candidate" "$project_root/scripts/check_env.py" "$@" >/dev/null 2>&1; then
            PYTHON=$candidate
            return
        fi
    done
    [[ -z ${PYTHON:-} ]] || fail "PYTHON=$PYTHON: $("$PYTHON" "$project_root/scripts/check_env.py" "$@" 2>&1)"
    [[ " $* " == *" dev "* ]] && file=requirements-dev.txt
    make_venv "$project_root/.venv" "$file"
    PYTHON=$project_root/.venv/bin/python
    [[ " $* " == *" deepspeed "* ]] && install_deepspeed
    return 0
}

# make_venv FOLDER FILE: a virtual environment with the requirements of FILE, a path within the project, whatever was there before.
make_venv() {
    local venv=$1 file=$2 stamp
    # The stamp's name is a sum over all requirements, so an edited file makes the environment anew.
    stamp=$venv/.installed-${file##*/}-$(cat "$project_root"/requirements*.txt "$project_root/$file" | cksum | cut -d' ' -f1)
    [[ -f $stamp ]] && return
    mkdir -p "$venv"
    (
        if command -v flock >/dev/null; then flock 9; fi # of two starts at once the second waits here …
        [[ -f $stamp ]] && exit 0                        # … and finds the work done
        fill_venv "$venv" "$file" && touch "$stamp"
    ) 9>"$venv/.lock" || fail "$venv could not be set up; the message above says why. Mend that and start again."
}

fill_venv() {
    local venv=$1 file=$2 base
    base=$(find_python) || fail "Python 3.10, 3.11, 3.12 or 3.13 is needed and was not found. Install one of them."
    echo "Setting up $venv with $("$base" --version) and $file; this is done once."
    [[ -x $venv/bin/python ]] || "$base" -m venv "$venv" || fail "python -m venv failed. On Debian: apt install python3-venv"
    # torch first and exactly: a range, or a dependency that asks for it, may bring another build of several GB.
    "$venv/bin/python" -m pip install --disable-pip-version-check "$(grep '^torch==' "$project_root/$file" \
        "$project_root/requirements.txt" -h | head -n 1)" || return
    "$venv/bin/python" -m pip install --disable-pip-version-check -r "$project_root/$file"
}

find_python() {
    local name
    for name in python3 python python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

# DeepSpeed is large and of no use without a GPU, so it is installed only when a run asks for it.
install_deepspeed() {
    "$PYTHON" "$project_root/scripts/check_env.py" deepspeed >/dev/null 2>&1 ||
        "$PYTHON" -m pip install --disable-pip-version-check deepspeed==0.19.8 ninja
    export PATH=${PYTHON%/*}:$PATH # DeepSpeed looks there for ninja, with which it compiles what a run needs
}
