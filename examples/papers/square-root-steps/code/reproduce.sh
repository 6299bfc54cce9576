for f in newton bisect; do printf '2\n10\n1000\n' | awk -f $f.awk; done
