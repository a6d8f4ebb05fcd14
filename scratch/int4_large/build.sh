#!/bin/bash
# build.sh TREE NAME [kinds as "medium:kF16:tile:steps ..."]; objects of a tree in obj_NAME
tree=$1 name=$2; shift 2; out=obj_$name; mkdir -p $out
flags="-std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -cudart static --expt-relaxed-constexpr -I $tree/ffi"
[ $name = old ] && flags="$flags -Djax_baracuda=jb_old"
[ $name != new ] && [ $name != old ] && flags="$flags -Djax_baracuda=jb_$name"
[ $name != old ] && flags="$flags -DHAS_STREAM $EXTRA"
flags="$flags -DAPI_LAUNCH=${name}_launch -DAPI_PLAN=${name}_plan"
entries=
for k in "$@"; do
  IFS=: read kind dtype tile steps <<< "$k"
  f=$out/${kind}_${dtype}_${tile}_$steps.cu
  sed "s/@DTYPE@/$dtype/; s/@TILE@/$tile/; s/@SCALES@/$steps/" $tree/ffi/int4/inst/$kind.cu.in > $f.new; cmp -s $f.new $f && rm $f.new || mv $f.new $f
  entries+="      ${kind}_int4_kernel_entry<DType::$dtype, $tile, $steps>(),"$'\n'
done
cat > $out/table.cu.new <<EOT
#include "int4/launch.h"
namespace jax_baracuda {
const std::vector<HopperInt4Kernel>& hopper_int4_kernels() {
  static const std::vector<HopperInt4Kernel> kernels = {
$entries  };
  return kernels;
}
}
EOT
cmp -s $out/table.cu.new $out/table.cu && rm $out/table.cu.new || mv $out/table.cu.new $out/table.cu
cp -u $tree/ffi/int4/dispatch.cc $out/dispatch.cu; cp -u $tree/ffi/common/tensor_map.cc $out/tensor_map.cu; cp -u api.cu $out/api.cu; cp -u $tree/ffi/int4/combine.cu $out/combine.cu
[ -f $tree/ffi/common/device_info.cc ] && cp -u $tree/ffi/common/device_info.cc $out/device_info.cu
newest=$(ls -t $tree/ffi/int4/*.cuh $tree/ffi/int4/*.h $tree/ffi/int4/inst/*.cuh $tree/ffi/device/*.cuh | head -1)
for f in $out/*.cu; do o=${f%.cu}.o
  [ $o -nt $f ] && [ $o -nt $newest ] && continue
  nice -n 10 nvcc $flags -Xptxas=-v -c $f -o $o.tmp > ${f%.cu}.log 2>&1 && mv $o.tmp $o || { echo FAILED $f; grep -m5 error ${f%.cu}.log; exit 1; }
done
grep -l "C75[0-9][0-9]\|[1-9][0-9]* bytes spill stores" $out/*.log | sed 's/^/spills or serialised wgmma: /'
true
