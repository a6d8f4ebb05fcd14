#!/bin/sh
# Compiler launcher: runs nvcc and keeps what `ptxas -v` prints in DIR/<object>.log.
# Usage: ptxas_log.sh DIR nvcc ARGUMENTS...
# Only ptxas's routine lines are kept away from the build output; warnings and errors stay there.
dir=$1
shift
object=unknown
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
mkdir -p "$dir"
log=$dir/$(basename "$object").log
"$@" 2>"$log"
status=$?
grep -vE '^ptxas info|bytes stack frame|^ *$' "$log" >&2
exit $status
