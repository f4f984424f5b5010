"""One file per wrapper of a prefill method; `base.py` has the contract."""
