"""One file per scorer; `base.py` has the view and the contract."""
