"""The programs here are run by themselves, as CI and `make fuzz` run them; only test_fuzz.py is collected."""

collect_ignore = ["mutate.py", "run.py", "seeds.py", "targets.py"]
