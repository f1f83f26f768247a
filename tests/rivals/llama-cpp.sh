#!/usr/bin/env bash
# The rival of `takt bench --compare`: llama.cpp's llama-bench, built for this processor from the source inside PyPI's llama-cpp-python, and a model
# of random weights in the shape of Qwen3-0.6B, quantized by llama.cpp's own tool.
# Usage: tests/rivals/llama-cpp.sh FOLDER. Needs Python 3.9+ with venv, a C++ compiler, 3 GB of disk and about 15 minutes on two cores.
# What FOLDER already holds is kept, so it can be run again after it was interrupted.
set -euo pipefail

version=0.3.36
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$folder"

# Runs a command whose output goes to a file; says how that ends when it fails.
logged() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 || { printf '%s failed, see %s:\n' "$1" "$folder/$log" >&2; tail -n 3 "$log" >&2; exit 1; }
}

if [ ! -x venv/bin/ninja ]; then
  python3 -m venv venv
  venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: cmake ninja gguf numpy
fi
PATH=$folder/venv/bin:$PATH

source=llama_cpp_python-$version/vendor/llama.cpp
if [ ! -f "$source/CMakeLists.txt" ]; then
  pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version"
  tar xf "llama_cpp_python-$version.tar.gz"
fi
if [ ! -x build/bin/llama-bench ] || [ ! -x build/bin/llama-quantize ]; then
  logged cmake.log cmake -S "$source" -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
  cmake --build build --target llama-bench llama-quantize
fi

for kind in Q4_0 Q4_K_M; do
  model=qwen3-0.6b-${kind,,}.gguf
  [ ! -f "$model" ] || continue
  # Whole or not at all.
  if [ ! -f qwen3-0.6b-f16.gguf ]; then
    python "$here/random_gguf.py" qwen3-0.6b-f16.gguf.part
    mv qwen3-0.6b-f16.gguf.part qwen3-0.6b-f16.gguf
  fi
  logged "quantize-${kind,,}.log" build/bin/llama-quantize qwen3-0.6b-f16.gguf "$model.part" "$kind" "$(nproc)"
  mv "$model.part" "$model"
done
rm -f qwen3-0.6b-f16.gguf

cat <<END

takt bench --shape qwen3-0.6b --prompt-len 256 --compare llama-bench=$folder/build/bin/llama-bench,model=$folder/qwen3-0.6b-q4_0.gguf
END
