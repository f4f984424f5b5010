"""GGUF files: header (what a file says), config (as transformers says it), weights, tokenizer, convert."""
