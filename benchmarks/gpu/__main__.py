"""`python -m benchmarks.gpu`: see benchmarks.gpu.conductor, which the processes it starts can import."""

from benchmarks.gpu.conductor import main

if __name__ == "__main__":
    main()
