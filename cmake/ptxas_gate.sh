#!/bin/sh
# Compiles one CUDA file (the whole command is given) and lets it pass only if ptxas has nothing to complain of: no spill,
# no stack frame, no note that wgmma is serialised or that a register budget is ignored (C7500 to C7599). What ptxas said
# stays beside the object, for kernel_table.cmake.
object=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
log=${object%.o}.ptxas
"$@" >"$log" 2>&1
status=$?
if [ $status -ne 0 ]; then
  cat "$log" >&2
  exit $status
fi
grep -v -e '^ptxas info' -e 'bytes stack frame' -e '^$' "$log" >&2
bad=$(grep -e 'C75[0-9][0-9]' "$log"; grep 'bytes stack frame' "$log" | grep -v -e ' 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads')
if [ -n "$bad" ]; then
  echo "$object: refused, ptxas reports:" >&2
  echo "$bad" >&2
  rm -f "$object"
  exit 1
fi
exit 0
