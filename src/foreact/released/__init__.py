"""Files of other projects: archives, downloads, restricted pickles."""
