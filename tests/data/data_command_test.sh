#!/bin/sh
# farspan data, as a user types it: exit codes, messages, files. Usage: data_command_test.sh FARSPAN
set -u
farspan=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/work" && cd "$scratch/work" || exit 1
output=$scratch/output
failures=0

# expect CODE TEXT COMMAND...: the exit code, and TEXT somewhere in what is printed.
expect() {
  code=$1 text=$2
  shift 2
  "$@" >"$output" 2>&1
  got=$?
  if [ $got -ne "$code" ] || { [ -n "$text" ] && ! grep -qF -- "$text" "$output"; }; then
    echo "FAILED: $*: exit code $got (expected $code), should say: $text"
    sed 's/^/    /' "$output"
    failures=$((failures + 1))
  fi
}
expect_files() {
  found=$(echo *)
  if [ "$found" != "$1" ]; then
    echo "FAILED: files are '$found' but should be '$1'"
    failures=$((failures + 1))
  fi
}

printf 'one\n\ntwo\n\nthree\n\nfour\n' > a.txt
: > empty.txt
printf '{"text": "x"}\n{"text": \n' > bad.jsonl
printf '{"input_ids": [1, 2, 3]}\n{"input_ids": [1, 99]}\n' > ids.jsonl
inputs='a.txt bad.jsonl empty.txt ids.jsonl'
expect_files "$inputs"

import() {
  "$farspan" data import --format text --tokenizer bytes "$@"
}
limited_import() (
  ulimit -f 1
  import "$@"
)
expect 3 'absent.txt' import --out o.h5 absent.txt
expect 3 'empty.txt' import --out o.h5 a.txt empty.txt
expect 3 'bad.jsonl:2:' "$farspan" data import --format jsonl --out o.h5 bad.jsonl
expect 3 'ids.jsonl:2, input_ids[1]' "$farspan" data import --format tokens --vocab-size 99 --out o.h5 ids.jsonl
expect 2 'cannot be read yet' "$farspan" data import --format megatron --out o.h5 a.txt
expect 2 'this build has only' "$farspan" data import --format text --tokenizer my.model --out o.h5 a.txt
expect 2 '--split' import --split val --out o.h5 a.txt
expect 2 '--document' "$farspan" data import --format jsonl --document line --out o.h5 bad.jsonl
expect 2 'out' import a.txt
expect 2 '/proc/none' import --out /proc/none/o.h5 a.txt
expect 4 'o.h5' limited_import --out o.h5 a.txt
expect_files "$inputs"

expect 0 'o.h5: 19 tokens in 4 documents' import --out o.h5 a.txt
expect 2 '--force' import --out o.h5 a.txt
expect 0 '' import --out o.h5 --force --quiet a.txt
[ -s "$output" ] && { echo "FAILED: --quiet says something"; failures=$((failures + 1)); }
expect 0 '"tokens": 19' import --out o.h5 --force --json a.txt
expect 0 's.val.h5' import --out s.train.h5 --split val=0.3 a.txt
expect 0 'sub/dir/o.h5' import --out sub/dir/o.h5 a.txt
expect 0 'k.h5: 65536 tokens in 64 documents' "$farspan" data synth --kind passkey --tokens 64k --out k.h5
expect 2 "is not known" "$farspan" data synth --kind nothing --out n.h5
expect 2 'whole number' "$farspan" data synth --kind copy --tokens lots --out n.h5
expect 0 'documents' "$farspan" data synth --help

exit $((failures > 0))
