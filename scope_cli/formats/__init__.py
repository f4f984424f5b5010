"""One file per format in which keys or values lie in their slots; `base.py` has the contract."""
