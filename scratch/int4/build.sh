#!/bin/bash
# Builds the test and timing program of the int4 kernels, every instantiation a job of its own:
#   scratch/int4/build.sh [jobs]     about 8 minutes of one core; gives scratch/int4/build/int4_bench
# EXTRA=-DJAX_BARACUDA_WATCHDOG: a pipeline that has lost step traps and does not hang.
# One nvcc line is all that it does for each file; the program needs no CUDA library but libcublas, found at run time.
set -e
cd "$(dirname "$0")/../.."
jobs=${1:-$(nproc)} out=scratch/int4/build
mkdir -p $out
flags="-std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -cudart static --expt-relaxed-constexpr -I ffi $EXTRA"
entries_small= entries_hopper=
for dtype in kF16 kBF16; do
  for kind in small medium large; do
    case $kind in small) tiles=8 steps="2 4 8" type=Small ;; medium) tiles=8 steps="2 4 8" type=Hopper ;; large) tiles=1 steps="2 4" type=Hopper ;; esac
    for tile in $(seq 0 $tiles); do
      for s in $steps; do
        file=$out/${kind}_${dtype}_${tile}_$s.cu
        sed "s/@DTYPE@/$dtype/; s/@TILE@/$tile/; s/@SCALES@/$s/" ffi/int4/inst/$kind.cu.in > $file.new
        cmp -s $file.new $file && rm $file.new || mv $file.new $file
        line="      ${kind}_int4_kernel_entry<DType::$dtype, $tile, $s>(),"
        [ $type = Small ] && entries_small+="$line"$'\n' || entries_hopper+="$line"$'\n'
      done
    done
  done
done
python3 - "$entries_small" "$entries_hopper" > $out/table.cu <<'PY'
import sys
text = open("ffi/int4/inst/table.cc.in").read()
for name, value in (("SMALL", sys.argv[1]), ("MEDIUM", sys.argv[2]), ("LARGE", "")):
    text = text.replace(f"@{name}_INT4_ENTRIES@", value)
print(text)
PY
cp ffi/int4/dispatch.cc $out/dispatch.cu
cp ffi/int4/combine.cu ffi/common/tensor_map.cc $out/
mv $out/tensor_map.cc $out/tensor_map.cu
for extra in ffi/common/device_info.cc; do [ -f $extra ] && cp $extra $out/device_info.cu; done
cp scratch/int4/bench.cu $out/bench.cu
newest=$(ls -t ffi/int4/*.cuh ffi/int4/*.h ffi/int4/inst/*.cuh ffi/device/*.cuh scratch/int4/*.cuh | head -1)
for file in $out/*.cu; do
  object=${file%.cu}.o
  [ $object -nt $file ] && [ $object -nt $newest ] || echo $file
done | xargs -r -P $jobs -I{} sh -c "nvcc $flags -Xptxas=-v -I scratch/int4 -c {} -o {}.tmp > {}.log 2>&1 && mv {}.tmp \$(echo {} | sed 's/.cu\$/.o/') || { echo {}; grep -m5 error {}.log; exit 255; }"
nvcc $flags $out/*.o -o $out/int4_bench -ldl -Xcompiler=-static-libstdc++,-static-libgcc
grep -l "C75[0-9][0-9]\|[1-9][0-9]* bytes spill stores" $out/*.log | sed 's/^/spills or serialised wgmma: /' || true
ls -la $out/int4_bench
