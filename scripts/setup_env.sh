# Finds or makes a Python that has what the project needs. Sourced by run_loramoe.sh, run_tests.sh and .ci/run:
#
#   source scripts/setup_env.sh
#   use_environment train          # sets PYTHON; extras of pyproject.toml: train, dev, gguf, deepspeed
#
# To prepare a machine, such as a login node whose compute nodes have no network: bash scripts/setup_env.sh deepspeed
#
# The active Python is taken if it has everything already (set PYTHON to name another). Otherwise .venv is made, once, with
# pinned versions. A finished .venv has a stamp, so later starts need neither time nor network.

project_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { printf '%s\n' "$*" >&2; exit 1; }

use_environment() {
    local candidate file=requirements.txt
    [[ " $* " == *" dev "* ]] && file=requirements-dev.txt
    [[ " $* " == *" deepspeed "* ]] && file=requirements-deepspeed.txt
    for candidate in ${PYTHON:-python3 python}; do
        if "$candidate" "$project_root/scripts/check_env.py" "$@" >/dev/null 2>&1; then
            PYTHON=$candidate
            return
        fi
    done
    [[ -z ${PYTHON:-} ]] || fail "PYTHON=$PYTHON: $("$PYTHON" "$project_root/scripts/check_env.py" "$@" 2>&1)"
    make_venv "$project_root/.venv" "$file"
    PYTHON=$project_root/.venv/bin/python
}

# make_venv FOLDER FILE: installs the requirements of FILE, a path within the project, into a virtual environment.
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
    ) 9>"$venv/.being-set-up" || fail "$venv could not be set up; the message above says why. Fix that and start again."
}

fill_venv() {
    local venv=$1 file=$2 base torch
    base=$(find_python) || fail "Python 3.10, 3.11, 3.12 or 3.13 is needed and was not found. Install one of them."
    echo "Setting up $venv with $("$base" --version) and $file; this is done once."
    [[ -x $venv/bin/python ]] || "$base" -m venv "$venv" || fail "python -m venv failed. On Debian: apt install python3-venv"
    # torch first and exactly: a range, or a dependency that asks for it, may bring another build of several GB.
    torch=$(grep -h '^torch==' "$project_root/$file" "$project_root/requirements.txt" | head -n 1)
    install "$venv/bin/python" "$torch" && install "$venv/bin/python" -r "$project_root/$file"
}

# With UV, the path of that program, several environments share one copy of what they have in common, by hard links.
install() {
    local python=$1
    shift
    if [[ -z ${UV:-} ]]; then
        "$python" -m pip install --disable-pip-version-check "$@"
    else
        # uv does not read the settings of pip: a folder of wheels, or an index with a CPU build of torch.
        UV_FIND_LINKS=${UV_FIND_LINKS-$(pip_setting find-links)} UV_EXTRA_INDEX_URL=${UV_EXTRA_INDEX_URL-${PIP_EXTRA_INDEX_URL-}} \
            UV_INDEX_STRATEGY=unsafe-best-match "$UV" pip install --quiet --python "$python" "$@"
    fi
}

pip_setting() { python3 -m pip config get ":env:.$1" 2>/dev/null || python3 -m pip config get "global.$1" 2>/dev/null || true; }

# BASE_PYTHON, where it is set, else the first of the usual names that is new enough.
find_python() {
    local name
    for name in ${BASE_PYTHON:-python3 python python3.13 python3.12 python3.11 python3.10}; do
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

# python_of 3.12: a Python of that version, on the path or of pyenv.
python_of() {
    local candidate
    for candidate in "python$1" ~/.pyenv/versions/"$1".*/bin/python; do
        if "$candidate" -c '' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# DeepSpeed is large, so it is installed only for several GPUs, or where engine= or deepspeed= asks for it.
wants_deepspeed() {
    case ${engine:-}${deepspeed-auto} in
        ddp* | fsdp2*) return 1 ;;
        zero* | *.json) return 0 ;;
        auto) [[ ${CUDA_VISIBLE_DEVICES-,} == *,* ]] && (($(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') > 1)) ;;
        *) return 1 ;;
    esac
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    use_environment train "$@"
    echo "$PYTHON has what the project needs."
fi
