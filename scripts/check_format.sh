#!/usr/bin/env bash
# Style of the tree: C++ and CUDA files are as clang-format writes them, and no shell script has
# findings of the linter.
#
#   scripts/check_format.sh         name the files that are not; exit 1 if any
#   scripts/check_format.sh --fix   reformat them
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in clang-format shellcheck; do
  command -v "$tool" >/dev/null && continue
  echo "check_format: $tool is not installed; run scripts/setup.sh" >&2
  exit 2
done

mapfile -t sources < <(git ls-files --cached --others --exclude-standard -- \
  '*.h' '*.cpp' '*.cu' '*.cuh' '*.inl')
if [ "${1:-}" = --fix ]; then
  clang-format -i "${sources[@]}"
  echo "check_format: ${#sources[@]} files formatted"
  exit 0
fi

bad=()
for file in "${sources[@]}"; do
  clang-format --dry-run -Werror "$file" 2>/dev/null || bad+=("$file")
done
status=0
if [ "${#bad[@]}" != 0 ]; then
  printf '%s: not formatted (scripts/check_format.sh --fix)\n' "${bad[@]}"
  status=1
fi
mapfile -t shell < <(git ls-files --cached --others --exclude-standard -- '*.sh' '*.sbatch' '.ci/run')
# Not its advice on style: tests split words and list small folders on purpose.
shellcheck --severity=warning --exclude=SC2010 "${shell[@]}" || status=1
echo "check_format: ${#sources[@]} sources, ${#bad[@]} not formatted; ${#shell[@]} shell scripts checked"
exit "$status"
