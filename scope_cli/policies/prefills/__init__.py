"""One file per prefill method; `base.py` has the contract."""
