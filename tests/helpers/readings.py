"""A cache's reading, made up."""

from scope_cli.events import Reading

READING = Reading(
    kept_prompt=3210,
    kept_generated=256,
    slots=3467,
    held_bytes=12 * 2**20,
    overhead_bytes=3 * 2**18,
    allocated_bytes=14 * 2**20,
    full_bytes=96 * 2**20,
    read_bytes=13 * 2**20,
    moved_bytes=1 * 2**20,
    reference_moved_bytes=5 * 2**30,
    host_bytes=25680,
    evictions=17,
    evicted_tokens=1071,
)
