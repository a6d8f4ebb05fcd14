#!/bin/bash
# Builds the emulator from the sources of this checkout: [MAIN=pages.cc|dense.cc] [OUT=emu] build.sh [-DDIM=..] ...; see README.md.
set -e
here=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
cp -r "${FFI}"/* "$tree"
cp "$here"/device/* "$tree/device"
cp "$here"/stub/* "$tree"
python3 - "$tree" <<'P'
# Inline assembly of the consumers becomes plain code.
import re, sys

def replace(name, *changes):
    path = f"{sys.argv[1]}/attention/hopper/{name}"
    text = open(path).read()
    for pattern, by, count in changes:
        text, found = re.subn(pattern, by, text, flags=re.S)
        assert found == count, (name, pattern, found)
    open(path, "w").write(text)

replace(
    "consumer.cuh",
    (r'asm volatile\("st\.shared\.v4[^;]*;\\n" ::"r"\(to\), "r"\(0\) : "memory"\);', "memset(emul_smem + to, 0, 16);", 1),
    (r'asm volatile\(\s*"\{\\n \.reg \.pred p;.*?: "memory"\);', "", 1),
)
replace(
    "consumer_base.cuh",
    (r'asm volatile\("mov\.u32 %0, %%tid\.x;\\n" : "=r"\(thread\)\);', "thread = threadIdx.x;", 1),
)
replace(
    "schedule.cuh",
    (r'asm volatile\("atom\.relaxed.*?: "memory"\);', "taken_ = (*counter_)++;", 1),
)
replace(
    "epilogue.cuh",
    (r'asm\("cvt\.rn\.bf16x2[^;]*;[^;]*;', "r = uint32_t(__nv_bfloat16(high).x) << 16 | __nv_bfloat16(low).x;", 1),
    (r'asm\("cvt\.rn\.f16x2[^;]*;[^;]*;', "r = 0;", 1),
)
P
g++ -std=c++17 -O2 -fpermissive -w "$@" -include "$here/emul.h" -I"$tree" -I"$here" -isystem "${CUDA_HOME:-/usr/local/cuda}/include" \
  "$here/${MAIN:-pages.cc}" "$tree/attention/hopper/dispatch.cc" -o "${OUT:-emu}"
