export PYTHONPATH=$TREE
cd b
nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
timeout -s KILL 30 python bench_attention.py --cells 16384-128-full --passes fwd --impls torch_cudnn,torch_flash,jax_baracuda,jax_cudnn --budget 100 --out - --commit 12b7687 2>&1 | grep -v -i warning
