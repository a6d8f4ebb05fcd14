f=$1; n=$2; shift 2; ./build.sh $n ${OUT:-B2} $f "$@"; grep -E "error|C75" ../obj/$n.log|cut -c1-150
