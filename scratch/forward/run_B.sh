chmod +x bench
nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
timeout -s KILL 29 python turns.py cells.txt 2>&1 | grep -v -i warn
