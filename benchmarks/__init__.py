"""Speed and quality, measured as ratios in one run, by programs that anyone can run."""
