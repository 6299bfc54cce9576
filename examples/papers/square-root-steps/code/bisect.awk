{ l = 0; h = $1; k = 0; while (h - l > 1e-6) { c = (l + h) / 2; if (c * c > $1) h = c; else l = c; k++ } print "bisect", $1, k }
