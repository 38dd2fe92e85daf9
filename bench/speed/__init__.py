"""Times against peers: each module has `run(quick)`, which first finds both programs equal."""
