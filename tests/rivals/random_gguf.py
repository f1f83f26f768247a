"""Writes a GGUF of random F16 weights in the shape of Qwen3-0.6B: `random_gguf.py OUT.gguf`. How fast a model runs does not depend on what it says."""

import os
import sys

import gguf
import numpy as np

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 1024, 3072, 28, 16, 8, 128, 151_936


class Writer:
    def __init__(self, path: str):
        self.file, self.noise = gguf.GGUFWriter(path, "qwen3"), np.random.default_rng(0)

    def matrix(self, name: str, rows: int, cols: int):
        values = self.noise.standard_normal((rows, cols), dtype=np.float32) * cols**-0.5
        self.file.add_tensor(name, values.astype(np.float16))

    def ones(self, name: str, length: int):
        self.file.add_tensor(name, np.ones(length, dtype=np.float32))


def write(path: str):
    writer = Writer(path)
    file = writer.file
    file.add_context_length(40_960)
    file.add_embedding_length(HIDDEN)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(INNER)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KV_HEADS)
    file.add_key_length(HEAD_DIM)
    file.add_value_length(HEAD_DIM)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_freq_base(1e6)
    # No tokenizer: llama-bench makes its tokens up.
    file.add_vocab_size(VOCAB)
    file.add_tokenizer_model("none")
    file.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    # The output head is the embedding, as in the original.
    writer.matrix("token_embd.weight", VOCAB, HIDDEN)
    writer.ones("output_norm.weight", HIDDEN)
    for idx in range(LAYERS):
        layer = f"blk.{idx}."
        for name, length in [("attn_norm", HIDDEN), ("ffn_norm", HIDDEN), ("attn_q_norm", HEAD_DIM), ("attn_k_norm", HEAD_DIM)]:
            writer.ones(f"{layer}{name}.weight", length)
        for name, rows, cols in [
            ("attn_q", HEADS * HEAD_DIM, HIDDEN),
            ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_output", HIDDEN, HEADS * HEAD_DIM),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ]:
            writer.matrix(f"{layer}{name}.weight", rows, cols)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    write(sys.argv[1] + ".part")
    os.replace(sys.argv[1] + ".part", sys.argv[1])
