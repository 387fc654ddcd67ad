# CUDA compiler and libraries of the `cuda` preset. nvcc from CUDACXX, PATH, or /usr/local/cuda/bin.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(CMAKE_CUDA_COMPILER nvcc PATHS /usr/local/cuda/bin REQUIRED)
endif()
# Machine code for A100 (80) and H100/H200 (90a), and PTX for what comes after.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
endif()
# One CUDA runtime per program: nvcc's own choice, named here because CUDA::cudart would be a second.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit REQUIRED)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
add_library(farspan_nccl INTERFACE)
target_include_directories(farspan_nccl SYSTEM INTERFACE ${NCCL_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(farspan_nccl INTERFACE ${NCCL_LIBRARY} CUDA::cudart_static)
# Attention through cuDNN: its headers, and those of its frontend, which scripts/setup.sh puts into the
# cache folder. Where one is absent the build has its own kernels only. The library is loaded at run time.
option(FARSPAN_CUDNN "Attention through cuDNN as well as by our own kernels" ON)
set(FARSPAN_CUDNN_FRONTEND_VERSION 1.32.0) # that of scripts/setup.sh
set(cache $ENV{XDG_CACHE_HOME})
if(NOT cache)
  set(cache $ENV{HOME}/.cache)
endif()
find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
  HINTS ${cache}/farspan/cudnn-frontend/${FARSPAN_CUDNN_FRONTEND_VERSION}/include)
if(FARSPAN_CUDNN AND NOT CUDNN_INCLUDE_DIR)
  message(WARNING "no cudnn.h: the build has its own attention kernels only (install cuDNN 9 for CUDA)")
elseif(FARSPAN_CUDNN AND NOT CUDNN_FRONTEND_INCLUDE_DIR)
  message(WARNING "no cudnn_frontend.h: the build has its own attention kernels only; scripts/setup.sh "
    "fetches cuDNN's frontend headers (or set -DFARSPAN_CUDNN=OFF)")
elseif(FARSPAN_CUDNN)
  add_library(farspan_cudnn INTERFACE)
  target_include_directories(farspan_cudnn SYSTEM INTERFACE
    ${CUDNN_FRONTEND_INCLUDE_DIR} ${CUDNN_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(farspan_cudnn INTERFACE ${CMAKE_DL_LIBS})
endif()
# fmt 9 switches constexpr off under nvcc, which its own consteval checks then miss.
add_compile_definitions($<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
