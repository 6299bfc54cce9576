{ m = NR == 1 ? $1 : a * $1 + (1 - a) * m }
END { printf "%s %.3f %.3f\n", a, m, $1 - m }
