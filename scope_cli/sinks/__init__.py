"""Events in, one destination each: a terminal, a pipe, a file, a script, a record, a summary."""
