"""Bytes and seconds in, the share of the limit out; a loaded model in, what a step reads of it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from scope_cli.engine import roofline
from scope_cli.engine.roofline import bandwidth, share_of_limit, step_weight_bytes
from scope_cli.models.packed import pack

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip


def model(tied):
    config = LlamaConfig(**SIZES, tie_word_embeddings=tied)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)


def test_reading_6_gb_at_10_gb_a_second_takes_060_s():
    assert share_of_limit(1.2, 5 * 10**9, 10**9, 10e9) == pytest.approx(50)


def test_of_an_embedding_that_nobody_shares_a_step_reads_one_row_a_lane():
    plain = model(tied=False)
    rotary = sum(buffer.nbytes for buffer in plain.buffers())
    everything = sum(parameter.nbytes for parameter in plain.parameters()) + rotary
    table = 128 * 64 * 4
    assert step_weight_bytes(plain, lanes=3) == everything - table + 3 * 64 * 4


def test_a_tied_table_is_read_once_as_lm_head():
    plain = model(tied=True)
    rotary = sum(buffer.nbytes for buffer in plain.buffers())
    assert step_weight_bytes(plain) == sum(parameter.nbytes for parameter in plain.parameters()) + rotary


def test_a_packed_table_is_read_whole_where_lm_head_shares_it_and_else_by_groups_of_rows():
    tied, plain = model(tied=True), model(tied=False)
    table = 128 * 64 + 128 * 2 * 2  # codes and scales
    group = 8 * (64 + 2 * 2)  # of rows, which lie together
    for packed, unread in ((tied, 0), (plain, table - group)):
        pack(packed, 4)
        everything = sum(tensor.nbytes for tensor in {*packed.parameters(), *packed.buffers()})
        assert step_weight_bytes(packed) == everything - unread


def test_the_bandwidth_is_that_of_reading_a_buffer(monkeypatch):
    monkeypatch.setattr(roofline, "PROBE_BYTES", 2**24)
    found = bandwidth(torch.device("cpu"))
    assert 1e8 < found < 1e13


def test_the_faster_way_of_reading_counts(monkeypatch):
    monkeypatch.setattr(roofline, "_plain_rate", lambda device: 2.0)
    monkeypatch.setattr(roofline, "_native_rate", lambda: 3.0)
    assert bandwidth(torch.device("cpu")) == 3 and bandwidth(torch.device("mps")) == 2


def test_the_native_way_reads_all_of_its_buffer_and_needs_the_library(monkeypatch):
    monkeypatch.setattr(roofline, "PROBE_BYTES", 2**24)
    read = []

    class Library:
        def product(self, weight, row):
            read.append((weight.rows * weight.columns * 34 // 32, row.shape))

    monkeypatch.setattr(roofline, "library", Library)
    assert roofline._native_rate() > 0
    assert read == [(2**24 // 8704 * 8704, (1, 1024))] * roofline.PASSES
    monkeypatch.setattr(roofline, "library", lambda: None)
    assert roofline._native_rate() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_copies_at_some_hundred_gigabytes_a_second():
    assert bandwidth(torch.device("cuda", 0)) > 5e10
