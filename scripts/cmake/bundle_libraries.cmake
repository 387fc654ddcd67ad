# Run by cmake --install after the programs are in place: copies Open MPI and every shared library
# that a machine with glibc and CUDA lacks, strips them, and makes all of them find one another.
if(NOT FARSPAN_OMPI_INFO)
  message(FATAL_ERROR "the bundle holds Open MPI, and ompi_info, which says where it lies, is not installed (scripts/setup.sh)")
endif()
set(bundle "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}")

function(ompi_folder which result)
  execute_process(COMMAND ${FARSPAN_OMPI_INFO} --parsable --path ${which}
    OUTPUT_VARIABLE text OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX REPLACE ".*path:${which}:([^\n]*).*" "\\1" folder "${text}")
  set(${result} ${folder} PARENT_SCOPE)
endfunction()
ompi_folder(prefix ompi_prefix)
ompi_folder(bindir ompi_bin)
ompi_folder(pkglibdir ompi_plugins)
ompi_folder(pkgdatadir ompi_data)

# Copies with links followed, for the bundle holds none, and lays down names in `result`.
function(put result folder)
  set(placed)
  foreach(file ${ARGN})
    get_filename_component(name ${file} NAME)
    file(REAL_PATH ${file} real)
    file(COPY ${real} DESTINATION ${folder})
    get_filename_component(real_name ${real} NAME)
    if(NOT real_name STREQUAL name)
      file(RENAME ${folder}/${real_name} ${folder}/${name})
    endif()
    list(APPEND placed ${folder}/${name})
  endforeach()
  set(${result} ${placed} PARENT_SCOPE)
endfunction()

# Where Open MPI looks below OPAL_PREFIX: as far below as below the prefix it was built for, so that
# daemons on other machines, which are told OPAL_PREFIX alone, find it too.
file(RELATIVE_PATH plugins_below ${ompi_prefix} ${ompi_plugins})
file(RELATIVE_PATH data_below ${ompi_prefix} ${ompi_data})
# Without networks other than TCP, one-sided SHMEM, MPI's files, checkpoints and the monitors: what
# they need is large, and Farspan uses none of it.
file(GLOB plugins ${ompi_plugins}/mca_*.so)
list(FILTER plugins EXCLUDE REGEX
  "mca_([a-z]+_(ofi|ucx|openib|psm2?|monitoring|flux|jsm|netlink|bzip|pessimist|mindist)|(atomic|crs|fbtl|fcoll|fs|io|memheap|scoll|sharedfp|spml|sshmem)_.*)\\.so$")
put(ompi_programs ${bundle}/bin ${ompi_bin}/orterun ${ompi_bin}/orted)
put(ompi_modules ${bundle}/${plugins_below} ${plugins})
file(GLOB help ${ompi_data}/help-*.txt)
put(ompi_help ${bundle}/${data_below} ${help})

file(GLOB programs ${bundle}/libexec/*)
list(FILTER programs EXCLUDE REGEX "\\.sh$")
file(GET_RUNTIME_DEPENDENCIES EXECUTABLES ${programs} ${ompi_bin}/orterun ${ompi_bin}/orted MODULES ${plugins}
  RESOLVED_DEPENDENCIES_VAR libraries UNRESOLVED_DEPENDENCIES_VAR lacking
  PRE_EXCLUDE_REGEXES
    "^(ld-linux|linux-vdso)" "^lib(c|m|dl|rt|pthread|resolv|util|anl|nsl|mvec)\\.so"
    "^lib(cuda|cudart|cublas|cublasLt|cudnn|nccl|nvrtc|nvidia-ml)[._-]"
  POST_EXCLUDE_REGEXES "^${bundle}/lib/")
if(lacking)
  message(FATAL_ERROR "these libraries are needed and cannot be found here: ${lacking}")
endif()
put(ours ${bundle}/lib ${libraries})
if(FARSPAN_STRIP)
  execute_process(COMMAND ${FARSPAN_STRIP} --strip-unneeded ${programs} ${ours} ${ompi_programs} ${ompi_modules}
    COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND ${FARSPAN_PYTHON} ${FARSPAN_SOURCE}/scripts/bundle/set_run_path.py ${bundle}/lib
    ${ours} ${ompi_programs} ${ompi_modules}
  COMMAND_ERROR_IS_FATAL ANY)

file(GLOB_RECURSE all LIST_DIRECTORIES false ${bundle}/*)
set(total 0)
foreach(file ${all})
  file(SIZE ${file} size)
  math(EXPR total "${total} + ${size}")
endforeach()
math(EXPR total "${total} / 1048576")
message(STATUS "Bundle: ${bundle}, ${total} MiB")
