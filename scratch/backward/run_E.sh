[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
timeout -s KILL 7 ./ab bench 64 -s512,1024,4096,16384 -r7 b_all on
timeout -s KILL 7 ./ab bench 128 -s2048,16384 -r7 b_all head on
