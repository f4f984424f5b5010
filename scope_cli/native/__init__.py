"""Packed weights, and the native code that multiplies with them."""
