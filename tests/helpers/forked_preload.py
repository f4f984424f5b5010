"""What every forked `scope` has imported already; nothing computes here: threads do not survive a fork."""

import matplotlib.figure  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401
