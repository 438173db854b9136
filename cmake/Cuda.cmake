# The CUDA part: whether it is built, with which compiler, for which GPU. FLASH3_HAS_CUDA says the outcome.
set(FLASH3_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE FLASH3_CUDA PROPERTY STRINGS AUTO ON OFF)
set(flash3_cuda_minimum 12.3)  # the first nvcc that C++20 and Hopper's wgmma both work well in

set(FLASH3_HAS_CUDA OFF)
if(FLASH3_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # our own -gencode below: older CMakes do not know 90a
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS flash3_cuda_minimum)
      set(cuda_lack "${CMAKE_CUDA_COMPILER} is version ${CMAKE_CUDA_COMPILER_VERSION}, accepted is ${flash3_cuda_minimum} or later")
    else()
      set(FLASH3_HAS_CUDA ON)
      find_package(CUDAToolkit REQUIRED)
      message(STATUS "CUDA part: built for sm_90a with nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
    endif()
  else()
    set(cuda_lack "no CUDA compiler found (set CUDACXX to an nvcc, or ./dev --cuda-from-pypi build)")
  endif()
  if(NOT FLASH3_HAS_CUDA)
    if(FLASH3_CUDA STREQUAL "AUTO")
      message(STATUS "CUDA part: not built, ${cuda_lack}")
    else()
      message(FATAL_ERROR "FLASH3_CUDA is ${FLASH3_CUDA}, but ${cuda_lack}")
    endif()
  endif()
else()
  message(STATUS "CUDA part: not built, FLASH3_CUDA is ${FLASH3_CUDA}")
endif()

# What every .cu file is compiled with. The standard stands here because CMake before 3.26 refuses C++20 for CUDA.
add_library(flash3_cuda_flags INTERFACE)
target_compile_options(flash3_cuda_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr>)
