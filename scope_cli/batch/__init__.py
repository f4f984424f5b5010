"""A directory of prompts in, one text each out, through kills and bad files; docs/how-to/batch.md tells how.

inputs - outputs - ledger - groups - fit - desk - local or on_ray - board, report
"""
