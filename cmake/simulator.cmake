# The simulator of CUDA kernels, and the libraries that run kernels on it. For tests: nothing here is installed.
add_library(weft_simulator STATIC
            csrc/gpu/sim/async.cpp
            csrc/gpu/sim/engine.cpp
            csrc/gpu/sim/fiber.cpp
            csrc/gpu/sim/memory.cpp
            csrc/gpu/sim/races.cpp
            csrc/gpu/sim/report.cpp
            csrc/gpu/sim/sync.cpp
            csrc/gpu/sim/tensor.cpp
            csrc/gpu/sim/wgmma.cpp
            csrc/gpu/tensor_map.cpp)
# Line numbers, for the simulator's messages.
target_compile_options(weft_simulator PUBLIC -O2 -g1 -Wno-psabi)
target_link_libraries(weft_simulator PUBLIC ${CMAKE_DL_LIBS})

# The kernels of tests/gpu, in namespace weft_gpu_tests.
add_library(weft_gpu_tests MODULE tests/gpu/kernels/library.cpp)
target_link_libraries(weft_gpu_tests PRIVATE weft_simulator torch_stable)

# The CUDA kernels behind the ops, on CPU tensors, in namespace weft_simulator. To the host compiler a .cu file is C++.
set(simulated ${cuda_sources})
list(FILTER simulated INCLUDE REGEX "csrc/(attention|comm|int8|norm)/.*[.]cu$")
set(simulated_cpp)
foreach(source IN LISTS simulated)
  string(REGEX REPLACE "^csrc/" "" source ${source})
  file(CONFIGURE OUTPUT simulated/${source}.cpp CONTENT "#include \"${source}\"\n")
  list(APPEND simulated_cpp ${CMAKE_CURRENT_BINARY_DIR}/simulated/${source}.cpp)
endforeach()
add_library(weft_simulated_ops MODULE csrc/library_simulator.cpp csrc/attention/cuda/backward_plan.cpp
            csrc/attention/cuda/backward_plan_sm90.cpp csrc/attention/cuda/plan.cpp csrc/attention/cuda/plan_sm90.cpp
            csrc/comm/cuda/communicator.cpp csrc/comm/cuda/plan.cpp csrc/int8/cuda/plan.cpp
            csrc/int8/cuda/plan_sm90.cpp csrc/norm/cuda/plan.cpp ${simulated_cpp})
target_link_libraries(weft_simulated_ops PRIVATE weft_simulator torch_stable)
