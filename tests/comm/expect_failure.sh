#!/bin/sh
# expect_failure.sh CODE TEXT COMMAND...: the command must exit with CODE and say TEXT exactly once
# ("-" for nothing expected).
code=$1 text=$2
shift 2
output=$("$@" 2>&1)
got=$?
printf '%s\n' "$output"
[ "$got" = "$code" ] || { echo "exit code $got, expected $code"; exit 1; }
[ "$text" = "-" ] && exit 0
count=$(printf '%s\n' "$output" | grep -cF -- "$text")
[ "$count" = 1 ] || { echo "said $count times: $text"; exit 1; }
