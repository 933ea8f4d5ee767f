"""Named, typed, complete runs: each verb of the command line is a function here."""
