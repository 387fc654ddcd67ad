"""The small model of the experiments on context extension, and the base that all arms start from.

A Llama of 2 layers x 128, bytes, trained at 256 tokens: first on passkeys, of which only the answer is
scored, until it looks them up; then also on English text, of which each token is scored. (On both from
the start the text's many targets drown the keys' few, and it learns to look up much later.)
"""

import statistics

from lab import cores as lab_cores

ORIGINAL = 256
TARGET = 2048
TEXT_SHARE = 0.1  # of the samples once there is text; about four fifths of the scored tokens


def model(scaling=None):
    rope = {"theta": 10000}
    if scaling:
        rope["scaling"] = {"type": scaling, "original_context": ORIGINAL, "target_context": TARGET}
    return {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
            "tie_word_embeddings": True, "initializer_range": 0.05, "rope": rope}


def config(lab, steps, seed, lr, length=ORIGINAL, scaling=None, text_share=TEXT_SHARE, **sections):
    """A run on passkeys and text, 8192 tokens a step in sequences of `length`: passkeys of ORIGINAL tokens,
    twice as long, and so on to `length`, in equal shares. `text_share`: of the tokens at ORIGINAL; beyond,
    as many scored tokens of text for each answer."""
    lengths = [n for n in (256, 512, 1024, 2048) if n <= length]
    text_share *= statistics.mean(ORIGINAL / n for n in lengths)
    text, held_out = lab.text()
    train = [{"path": str(lab.synth(f"passkey{n}", "passkey", n, "8M", seed=n)),
              "weight": (1 - text_share) / len(lengths)} for n in lengths]
    if text_share:
        train.append({"path": str(text), "weight": text_share})
    return {"seed": seed, "model": {**model(scaling), **sections.pop("model", {})},
            "data": {"train": train, "validation": str(held_out)},
            "train": {"sequence_length": length, "batch_tokens": 8192, "steps": steps,
                      "precision": "bf16"},
            "optimizer": {"lr": lr, "weight_decay": 0.01},
            "schedule": {"type": "cosine", "warmup": min(50, steps // 4)},
            "parallel": {"data": 1, "context": 1},
            "logging": {"every": 10, "tensorboard": False}, **sections}


def base(lab, plan, seed):
    """The model trained at ORIGINAL tokens; its run's folder."""
    threads = max(1, lab_cores() // len(plan["seeds"]))
    keys = lab.train(f"keys_{seed}", config(lab, plan["key_steps"], seed, 2.0e-3, text_share=0), threads)
    return lab.train(f"base_{seed}", config(lab, plan["base_steps"], seed + 500, 2.0e-3,
                                            model={"from": str(keys)}), threads)
