# libweft_cuda.so. WEFT_CUDA=auto builds it where nvcc and a torch with CUDA are, `on` also beside a CPU build of torch:
# what is built there runs in a torch with CUDA elsewhere.
if(WEFT_CUDA STREQUAL "off")
  return()
endif()

include(CheckLanguage)
if(DEFINED ENV{CUDA_HOME} AND NOT DEFINED ENV{CUDACXX})
  set(ENV{CUDACXX} $ENV{CUDA_HOME}/bin/nvcc)
endif()
check_language(CUDA)
set(torch_cuda ${torch_dir}/lib/libtorch_cuda.so)
if(WEFT_CUDA STREQUAL "auto" AND NOT (CMAKE_CUDA_COMPILER AND EXISTS ${torch_cuda}))
  return()
endif()
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "WEFT_CUDA=on, but nvcc was not found: put it on PATH, or set CUDACXX or CUDA_HOME")
endif()

# SASS for sm_80 and sm_90a, and compute_80 PTX for what comes after. TORCH_CUDA_ARCH_LIST ("8.0 9.0a+PTX") narrows it.
set(architectures 80-real 90a-real 80-virtual)
if(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  set(architectures)
  string(REGEX MATCHALL "[^ ;,]+" wanted "$ENV{TORCH_CUDA_ARCH_LIST}")
  foreach(arch IN LISTS wanted)
    if(NOT arch MATCHES "^([0-9]+)\\.([0-9]+[af]?)(\\+PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST has '${arch}', expected entries like 8.0, 9.0a or 8.0+PTX")
    endif()
    list(APPEND architectures ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real)
    if(CMAKE_MATCH_3)
      list(APPEND architectures ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-virtual)
    endif()
  endforeach()
endif()
set(CMAKE_CUDA_ARCHITECTURES ${architectures})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
# params.h speaks to the host compiler in pragmas that nvcc's front end does not know.
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-diag-suppress=1675>")

# A CPU build of torch has no libtorch_cuda.so to link to; a library of that soname with the symbols that we use does.
if(NOT EXISTS ${torch_cuda})
  add_library(torch_cuda SHARED csrc/torch/libtorch_cuda_stub.cpp)
  set(torch_cuda torch_cuda)
endif()

# For people: "80-real" is sm_80, "80-virtual" compute_80.
list(TRANSFORM architectures REPLACE "(.*)-real" "sm_\\1" OUTPUT_VARIABLE names)
list(TRANSFORM names REPLACE "(.*)-virtual" "compute_\\1")
list(JOIN names " " names)

add_library(weft_cuda SHARED ${cuda_sources})
# Multiplications and additions are fused where the source says fma: the same row has the same bits in every kernel.
set(unfused ${cuda_sources})
list(FILTER unfused INCLUDE REGEX "csrc/(attention|comm|int8|norm)/.*[.]cu$")
set_source_files_properties(${unfused} PROPERTIES COMPILE_OPTIONS -fmad=false)
target_compile_definitions(weft_cuda PRIVATE USE_CUDA WEFT_CUDA_ARCHITECTURES="${names}")
target_link_libraries(weft_cuda PRIVATE torch_stable ${torch_cuda})
install(TARGETS weft_cuda LIBRARY DESTINATION .)

# The kernels of tests/gpu, which a source distribution lacks. Not installed, and built on request only.
if(EXISTS ${PROJECT_SOURCE_DIR}/tests/gpu)
  option(WEFT_GPU_TESTS "Build the test kernels for the GPU" OFF)
  add_library(weft_gpu_tests_cuda MODULE EXCLUDE_FROM_ALL tests/gpu/kernels/library.cu csrc/gpu/ptx/tensor_map.cu
                                                          csrc/gpu/tensor_map.cpp)
  target_compile_definitions(weft_gpu_tests_cuda PRIVATE USE_CUDA)
  target_link_libraries(weft_gpu_tests_cuda PRIVATE torch_stable ${torch_cuda})
  if(WEFT_GPU_TESTS)
    set_target_properties(weft_gpu_tests_cuda PROPERTIES EXCLUDE_FROM_ALL OFF)
  endif()
endif()
