# add_module and add_farspan_test: the two ways in which code enters the build.

set(FARSPAN_WARNINGS -Wall -Wextra -Wpedantic -Wshadow
    -Wno-missing-field-initializers)

add_library(farspan_flags INTERFACE)
target_include_directories(farspan_flags INTERFACE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR})
target_compile_options(farspan_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${FARSPAN_WARNINGS}>")
if(FARSPAN_SANITIZE)
  # g1: lines in reports without doubling the build. The standard library checks its own indices too.
  # detect_stack_use_after_return stays 0 in the test presets: with it g++ 12 misaligns 64-byte vectors
  # on the stack, and the AVX-512 kernels crash.
  target_compile_options(farspan_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${FARSPAN_SANITIZE};-g1;-fno-omit-frame-pointer;-fno-sanitize-recover=all;-D_GLIBCXX_ASSERTIONS>")
  target_link_options(farspan_flags INTERFACE -fsanitize=${FARSPAN_SANITIZE})
endif()

# What tests under mpirun need. Open MPI frees little at its end and unloads its plugins, after which
# the leaks they leave have no name to suppress: leaks are looked for in the other tests.
set(FARSPAN_MPI_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1 ASAN_OPTIONS=detect_leaks=0)

# add_module(NAME [DEPS module...] [SOURCES file...] [PROTOS file...] [VENDOR target...])
# A static library farspan_NAME. DEPS are the only modules whose headers it may include;
# scripts/check_layers.py reads these calls and checks every #include against them.
function(add_module name)
  cmake_parse_arguments(M "" "" "DEPS;SOURCES;PROTOS;VENDOR" ${ARGN})
  list(TRANSFORM M_DEPS PREPEND farspan_)
  set(target farspan_${name})
  if(NOT M_SOURCES AND NOT M_PROTOS)
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE farspan_flags ${M_DEPS} ${M_VENDOR})
    return()
  endif()
  add_library(${target} STATIC ${M_SOURCES})
  if(M_PROTOS)
    # Not protobuf_generate: CMake's own (FindProtobuf) drops the folder of the output, so that
    # #include "config/run_config.pb.h" would not be found.
    file(RELATIVE_PATH folder ${CMAKE_SOURCE_DIR}/src ${CMAKE_CURRENT_SOURCE_DIR})
    foreach(proto ${M_PROTOS})
      get_filename_component(stem ${proto} NAME_WE)
      set(generated ${CMAKE_BINARY_DIR}/generated/${folder}/${stem}.pb)
      add_custom_command(OUTPUT ${generated}.cc ${generated}.h
        COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/generated
        COMMAND protobuf::protoc --proto_path=${CMAKE_SOURCE_DIR}/src
                --cpp_out=${CMAKE_BINARY_DIR}/generated ${CMAKE_CURRENT_SOURCE_DIR}/${proto}
        DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${proto} VERBATIM)
      target_sources(${target} PRIVATE ${generated}.cc ${generated}.h)
      set_source_files_properties(${generated}.cc PROPERTIES COMPILE_OPTIONS "-w")
    endforeach()
    target_include_directories(${target} SYSTEM PUBLIC ${CMAKE_BINARY_DIR}/generated)
    target_link_libraries(${target} PUBLIC protobuf::libprotobuf)
  endif()
  target_link_libraries(${target} PUBLIC farspan_flags ${M_DEPS} ${M_VENDOR})
endfunction()

# add_farspan_test(NAME SOURCES file... [DEPS module...] [LABELS label...] [RANKS n...])
# One GoogleTest program. Without RANKS: gtest_discover_tests, one CTest test per case. With RANKS:
# one CTest test per n, `mpirun -np n` of the whole program (label mpi).
function(add_farspan_test name)
  cmake_parse_arguments(T "" "TIMEOUT" "DEPS;SOURCES;LABELS;RANKS;VENDOR" ${ARGN})
  list(TRANSFORM T_DEPS PREPEND farspan_)
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 300)
  endif()
  add_executable(${name} ${T_SOURCES})
  target_link_libraries(${name} PRIVATE farspan_flags ${T_DEPS} ${T_VENDOR} GTest::gtest GTest::gmock)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  if("gpu" IN_LIST T_LABELS)
    bundle_gpu_test(${name} RANKS ${T_RANKS})
  endif()
  if(T_RANKS)
    foreach(n ${T_RANKS})
      add_test(NAME ${name}.np${n} COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe -np ${n} $<TARGET_FILE:${name}>)
      set_tests_properties(${name}.np${n} PROPERTIES LABELS "mpi;${T_LABELS}" TIMEOUT ${T_TIMEOUT} PROCESSORS 2
        ENVIRONMENT "${FARSPAN_MPI_ENVIRONMENT}")
    endforeach()
  else()
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    # An empty or a longer list would shift the properties after it.
    set(properties TIMEOUT ${T_TIMEOUT})
    list(LENGTH T_LABELS num_labels)
    if(num_labels EQUAL 1)
      list(APPEND properties LABELS ${T_LABELS})
      if(T_LABELS STREQUAL "mpi") # it starts mpirun itself
        list(APPEND properties ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
      endif()
    elseif(num_labels GREATER 1)
      message(FATAL_ERROR "${name}: a test without RANKS takes one label, not '${T_LABELS}'")
    endif()
    gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES ${properties})
  endif()
endfunction()
