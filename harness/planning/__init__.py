"""A study before anything runs: its runs, paths and keys, what each job hangs on and asks for."""
