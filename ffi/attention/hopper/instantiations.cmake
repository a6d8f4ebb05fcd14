# The compiled Hopper kernels: dtype, head dims, keys a block, warpgroups (the tiles of config.h). One generated file each,
# for sm_90a alone, and a table of them, empty in a build without it.
set(HOPPER_INSTANTIATIONS "")
if("90a" IN_LIST JAX_BARACUDA_CUDA_ARCHS)
  foreach(dtype kF16 kBF16)
    foreach(tile "64 64 128 3" "64 64 128 2" "96 96 176 2" "96 96 128 2" "128 128 128 2" "192 128 128 2"
                 "192 192 112 2" "256 256 80 2")
      list(APPEND HOPPER_INSTANTIATIONS "${dtype} ${tile}")
    endforeach()
  endforeach()
endif()

set(HOPPER_INSTANTIATION_SOURCES "")
set(HOPPER_ENTRIES "")
foreach(instantiation IN LISTS HOPPER_INSTANTIATIONS)
  string(REPLACE " " ";" fields "${instantiation}")
  list(GET fields 0 DTYPE)
  list(GET fields 1 DIM)
  list(GET fields 2 DIM_V)
  list(GET fields 3 N)
  list(GET fields 4 GROUPS)
  set(file "${CMAKE_CURRENT_BINARY_DIR}/attention/hopper_${DTYPE}_${DIM}_${DIM_V}_${N}_${GROUPS}.cu")
  configure_file("${CMAKE_CURRENT_LIST_DIR}/inst/kernel.cu.in" "${file}" @ONLY)
  list(APPEND HOPPER_INSTANTIATION_SOURCES "${file}")
  string(APPEND HOPPER_ENTRIES
         "      hopper_kernel_entry<DType::${DTYPE}, ${DIM}, ${DIM_V}, ${N}, ${GROUPS}>(),\n")
endforeach()
set(HOPPER_TABLE_SOURCE "${CMAKE_CURRENT_BINARY_DIR}/attention/hopper_table.cc")
configure_file("${CMAKE_CURRENT_LIST_DIR}/inst/table.cc.in" "${HOPPER_TABLE_SOURCE}" @ONLY)
