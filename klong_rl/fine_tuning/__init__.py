"""Trajectory-splitting SFT: from rows in files to the steps of a learner. `klong_rl.sft` is its command line."""
