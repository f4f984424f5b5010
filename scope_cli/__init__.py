"""Long-output generation with a bounded cache for the output and a preserved one for the prompt."""

__version__ = "0.1.0"
