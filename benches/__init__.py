"""Speed beside the rivals: programs that measure and print, never tests.

make bench BENCH_ARGS="decode --model model.gguf"        or: python -m benches decode --model model.gguf
"""
