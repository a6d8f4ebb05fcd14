# The compiled Hopper backward kernels: dtype, head dims (the tiles of config.h). One generated file each, for sm_90a
# alone, and a table of them, empty in a build without it.
set(HOPPER_BACKWARD_INSTANTIATIONS "")
if("90a" IN_LIST JAX_BARACUDA_CUDA_ARCHS)
  foreach(dtype kF16 kBF16)
    foreach(tile "64 64 false" "96 96 false" "128 128 false" "192 128 false" "192 192 false" "256 256 false"
                 "64 64 true" "128 128 true")
      list(APPEND HOPPER_BACKWARD_INSTANTIATIONS "${dtype} ${tile}")
    endforeach()
  endforeach()
endif()

set(HOPPER_BACKWARD_INSTANTIATION_SOURCES "")
set(HOPPER_BACKWARD_ENTRIES "")
foreach(instantiation IN LISTS HOPPER_BACKWARD_INSTANTIATIONS)
  string(REPLACE " " ";" fields "${instantiation}")
  list(GET fields 0 DTYPE)
  list(GET fields 1 DIM)
  list(GET fields 2 DIM_V)
  list(GET fields 3 FEATURES)
  set(file "${CMAKE_CURRENT_BINARY_DIR}/attention/hopper_backward_${DTYPE}_${DIM}_${DIM_V}_${FEATURES}.cu")
  configure_file("${CMAKE_CURRENT_LIST_DIR}/inst/kernel.cu.in" "${file}" @ONLY)
  list(APPEND HOPPER_BACKWARD_INSTANTIATION_SOURCES "${file}")
  string(APPEND HOPPER_BACKWARD_ENTRIES
         "      hopper_backward_kernel_entry<DType::${DTYPE}, ${DIM}, ${DIM_V}, ${FEATURES}>(),\n")
endforeach()
set(HOPPER_BACKWARD_TABLE_SOURCE "${CMAKE_CURRENT_BINARY_DIR}/attention/hopper_backward_table.cc")
configure_file("${CMAKE_CURRENT_LIST_DIR}/inst/table.cc.in" "${HOPPER_BACKWARD_TABLE_SOURCE}" @ONLY)
