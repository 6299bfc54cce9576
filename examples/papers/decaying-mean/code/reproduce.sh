for a in 0.1 0.5 0.9; do seq 8 | awk -v a=$a -f mean.awk; done
