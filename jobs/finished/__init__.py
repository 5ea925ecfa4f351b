"""What rows of finished requests say: `tiebreak report`."""
