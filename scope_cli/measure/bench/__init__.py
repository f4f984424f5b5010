"""`scope bench`: contenders, each in a process of its own, stepped in turn; ratios within one run."""
