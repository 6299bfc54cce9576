{ x = $1; k = 0; while (x * x - $1 > 1e-6) { x = (x + $1 / x) / 2; k++ } print "newton", $1, k }
