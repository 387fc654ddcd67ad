#!/bin/sh
# Makes data/kjv.train.h5 and data/kjv.val.h5: the King James Bible as Debian packages it
# (bible-kjv, bible-kjv-text), one document per chapter, 3% of the chapters held out. Where the
# `bible` program cannot be had, synthetic text takes its place and the last line says so.
#
#   scripts/make_kjv.sh [--force] [FOLDER]       FOLDER defaults to data/ of the repository;
#                                                FARSPAN names another farspan executable
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
farspan=${FARSPAN:-$root/build/cpu/farspan}
force=
folder=$root/data
for argument; do
  case $argument in
    --force) force=--force ;;
    -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "make_kjv.sh: unknown option $argument (see --help)" >&2; exit 2 ;;
    *) folder=$argument ;;
  esac
done
if [ ! -x "$farspan" ]; then
  echo "make_kjv.sh: $farspan is not built; run: cmake --preset cpu && cmake --build --preset cpu" >&2
  exit 2
fi
train=$folder/kjv.train.h5
val=$folder/kjv.val.h5
if [ -z "$force" ] && [ -f "$train.manifest.json" ] && [ -f "$val.manifest.json" ]; then
  echo "$train and $val exist already (--force makes them again)"
  exit 0
fi
mkdir -p "$folder"
scratch=$(mktemp -d "${TMPDIR:-/tmp}/kjv.XXXXXX")
text=$scratch/kjv.txt
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# -f turns pretty-printing off: one verse a line as "Ge1:1 In the beginning ..."; out: the verses' text, a blank line between
# chapters, and each chapter headed by its book and number.
if command -v bible >/dev/null 2>&1 &&
   bible -f 'Genesis1:1-Revelation22:21' </dev/null 2>/dev/null |
     awk '{
       split($1, place, ":")
       if (place[1] != chapter) {
         if (chapter != "") print ""
         chapter = place[1]
         print chapter
       }
       print substr($0, length($1) + 2)
     }' > "$text" &&
   [ "$(grep -c '^$' "$text")" -eq 1188 ]; then
  # Anything left over from an interrupted run is replaced.
  "$farspan" data import --format text --tokenizer bytes --document paragraph \
    --out "$train" --split val=0.03 --force "$text"
else
  echo "make_kjv.sh: no text from the program \`bible\` (apt-get install bible-kjv bible-kjv-text);" \
       "making synthetic text instead" >&2
  "$farspan" data synth --kind documents --tokens 4M --length 1k --out "$train" --split val=0.03 --force
  echo "NOTE: $train and $val hold synthetic text, not the Bible."
fi
