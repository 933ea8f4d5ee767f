"""One module per verb of the command line; nobody imports them but the command line."""
