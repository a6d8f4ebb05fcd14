F="-std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 --expt-relaxed-constexpr -cudart static -Xcompiler=-static-libstdc++,-static-libgcc -Iffi"
for h in 128 64 256; do nvcc $F -DHEAD=$h -o bench$h bench.cu /tmp/combine.o && nvcc $F -DJAX_BARACUDA_WATCHDOG -DHEAD=$h -o check$h bench.cu /tmp/combine.o; strip bench$h check$h; gzip -f bench$h check$h; done; ls -la
