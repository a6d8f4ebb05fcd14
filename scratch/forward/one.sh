# one.sh NAME TREE ARGS [extra flags]: compiles obj/NAME.o
cd $HERE/src
NAME=$1; TREE=$2; ARGS=$3; shift 3
INC="-I$HERE/src/$TREE"; [ $TREE = main ] && INC=""
{ echo "#define jax_baracuda v_$NAME"; echo "#define NAME $NAME"; echo "#define ARGS $ARGS"; cat one.cu; } > ../obj/$NAME.cu
(time nice -n 10 nvcc -c -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -DNDEBUG --expt-relaxed-constexpr -Xfatbin=-compress-all -Xptxas -v $INC -I$ROOT/ffi "$@" -o ../obj/$NAME.o ../obj/$NAME.cu) > ../obj/$NAME.log 2>&1
echo "$NAME rc $? $(grep -o 'Used [0-9]* reg' ../obj/$NAME.log|head -1) $(grep -o '[0-9]* bytes spill stores' ../obj/$NAME.log | sort -u | tr '\n' ' ') $(grep -o 'C75[0-9]*' ../obj/$NAME.log | sort -u) $(grep real ../obj/$NAME.log)"; grep -m3 error ../obj/$NAME.log
