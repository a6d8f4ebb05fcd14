#!/bin/bash
chmod +x int4s
echo "## check"; timeout 30 ./int4s check; echo "rc $?"
echo "## f16"; timeout 32 ./int4s f16 16 8 1 32
echo "## bf16"; timeout 32 ./int4s bf16 16 8 1 32
echo "## g32"; timeout 15 ./int4s g32
