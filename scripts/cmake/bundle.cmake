# cmake --install build/PRESET --prefix DIST makes a folder that runs on a machine without Farspan's
# build and its packages, wherever the folder lies (docs/bundle.md):
#
#   bin/       what users start: one script per program, mpirun, Open MPI's own programs
#   libexec/   the programs
#   lib/       every shared library but glibc's, CUDA's and the driver's; Open MPI's plugins below it
#   configs/ launch/ scripts/ share/
set(FARSPAN_GPU_TESTS ${CMAKE_BINARY_DIR}/gpu_tests.txt)
file(WRITE ${FARSPAN_GPU_TESTS} "# program, then numbers of ranks under mpirun (none: without it); ':' and a filter of tests\n")

# bundle_program(TARGET): installs it, with its libraries found relative to itself. A target that
# was not built is left out.
function(bundle_program target)
  # The libraries' libraries too: DT_RPATH serves them all, DT_RUNPATH only the program's own.
  target_link_options(${target} PRIVATE LINKER:--disable-new-dtags)
  set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
  install(TARGETS ${target} RUNTIME DESTINATION libexec OPTIONAL)
  install(PROGRAMS ${CMAKE_SOURCE_DIR}/scripts/bundle/run.sh DESTINATION bin RENAME ${target})
endfunction()

# bundle_gpu_test(TARGET [RANKS n...] [FILTER filter]): also names it in the list that
# scripts/gpu_check.sh runs. add_farspan_test does it for tests with the label gpu.
function(bundle_gpu_test target)
  cmake_parse_arguments(B "" "FILTER" "RANKS" ${ARGN})
  get_property(listed GLOBAL PROPERTY FARSPAN_LISTED_GPU_TESTS)
  if(target IN_LIST listed)
    return()
  endif()
  set_property(GLOBAL APPEND PROPERTY FARSPAN_LISTED_GPU_TESTS ${target})
  bundle_program(${target})
  string(JOIN " " line ${target} ${B_RANKS})
  if(B_FILTER)
    string(APPEND line " :${B_FILTER}")
  endif()
  file(APPEND ${FARSPAN_GPU_TESTS} "${line}\n")
endfunction()

# Called last, when every program has its install rule.
function(bundle_everything_else)
  set(source ${CMAKE_SOURCE_DIR})
  install(PROGRAMS ${source}/scripts/bundle/mpirun.sh DESTINATION bin RENAME mpirun)
  install(FILES ${source}/scripts/bundle/environment.sh DESTINATION libexec)
  install(DIRECTORY ${source}/configs DESTINATION .)
  install(DIRECTORY ${source}/launch DESTINATION . USE_SOURCE_PERMISSIONS)
  file(GLOB measuring RELATIVE ${source} ${source}/scripts/gpu_check.sh ${source}/scripts/gpu_check
    ${source}/scripts/bench_gpu_vs_torch.py)
  foreach(item ${measuring})
    if(IS_DIRECTORY ${source}/${item})
      install(DIRECTORY ${source}/${item} DESTINATION scripts USE_SOURCE_PERMISSIONS PATTERN __pycache__ EXCLUDE)
    else()
      install(PROGRAMS ${source}/${item} DESTINATION scripts)
    endif()
  endforeach()
  install(FILES ${FARSPAN_GPU_TESTS} ${source}/LICENSE ${source}/NOTICE DESTINATION share/farspan)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  find_program(OMPI_INFO ompi_info)
  install(CODE "
    set(FARSPAN_SOURCE [[${source}]])
    set(FARSPAN_PYTHON [[${Python3_EXECUTABLE}]])
    set(FARSPAN_STRIP [[${CMAKE_STRIP}]])
    set(FARSPAN_OMPI_INFO [[${OMPI_INFO}]])")
  install(SCRIPT ${source}/scripts/cmake/bundle_libraries.cmake)
endfunction()
