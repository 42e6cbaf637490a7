"""Training speed and memory beside the usual tools, in one run on one machine."""
