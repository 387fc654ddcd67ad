# cmake -DOUTPUT=FILE -DSOURCE=DIR -P git_revision.cmake: writes a source file that defines
# git_revision() (src/app/build_info.h), and touches it only when the revision of the tree changed, so
# that a build without a new commit does nothing.
execute_process(COMMAND git -C ${SOURCE} rev-parse --short=7 HEAD
  OUTPUT_VARIABLE revision OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(revision "unknown")
else()
  execute_process(COMMAND git -C ${SOURCE} status --porcelain --untracked-files=no
    OUTPUT_VARIABLE changes ERROR_QUIET)
  if(changes)
    string(APPEND revision "+changes")
  endif()
endif()
set(text "#include \"app/build_info.h\"\n
namespace farspan::app {
const char* git_revision() { return \"${revision}\"; }
}  // namespace farspan::app\n")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} old)
endif()
if(NOT "${old}" STREQUAL "${text}")
  file(WRITE ${OUTPUT} "${text}")
endif()
