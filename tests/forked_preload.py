"""What every forked `scope` has imported already; nothing computes here: threads do not survive a fork."""

import matplotlib.figure  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

import scope_cli.batch.report
import scope_cli.batch.session
import scope_cli.cli
import scope_cli.generate
import scope_cli.model  # noqa: F401
