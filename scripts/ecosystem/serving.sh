#!/usr/bin/env bash
# `transformers serve` with a LoRAMoE adapter: an OpenAI-compatible server on this machine, asked once in one piece and once
# as a stream. That it answers as `model.generate` does: tests/ecosystem/test_serving.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment serving
versions transformers peft torch openai fastapi uvicorn
trained_adapter

# The server wants one folder with the base model and the adapter; links do, and cost no space.
served=output/ecosystem/served
mkdir -p "$served"
show cp -rsf "$PWD/$BASE/." "$PWD/$ADAPTER/." "$served"

port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PYTHONPATH=. # the door
printf '\n$ transformers serve %s --device cpu --host 127.0.0.1 --port %s &\n' "$served" "$port"
timeout 300 transformers serve "$served" --device cpu --host 127.0.0.1 --port "$port" &
server=$!
trap 'kill "$server" && wait "$server" || true' EXIT
curl --silent --fail --retry 120 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$port/health" >/dev/null

ask() {
    show curl --silent --fail --max-time 60 "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' -d \
        '{"model": "'"$served"'", "messages": [{"role": "user", "content": "Which city does Mila Rodak come from?"}], "max_tokens": 12, "temperature": 0'"$1"'}'
    echo
}
ask ''
ask ', "stream": true'
check tests/ecosystem/test_serving.py
